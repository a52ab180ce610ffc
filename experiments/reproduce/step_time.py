"""Compute the segmenter's share of a reinforcement step at a paper's size.

    python experiments/reproduce/step_time.py

Nothing is measured on a GPU. The seconds are those of `maskgym.experiments.planning.seconds`, without its time to
launch kernels. The policy's part is a lower bound: it has no time for Python, for the image processor or for waiting.
The segmenter's share is therefore an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maskgym.experiments.planning import seconds
from maskgym.experiments.planning.devices import DEVICES, Device
from maskgym.experiments.planning.models import Model, published
from maskgym.experiments.planning.segmenters import count
from maskgym.experiments.planning.work import PHRASES, Work

PAPER = {  # 3,000 examples of each task over 3,000 steps: one of each, or three of one task in a unified run
    task: Work(images=8 if task == "cosod" else 1, phrases=PHRASES[task]) for task in ("sod", "sis", "cosod")
}


@dataclass(frozen=True)
class Step:
    """Seconds of a step by part: a lower bound of the policy's, and the segmenter's with a cold and a warm cache."""

    generation: float
    training: float
    cold: float
    warm: float

    def share(self, warm: bool) -> float:
        """Compute the segmenter's share of the step, an upper bound."""
        segmenter = self.warm if warm else self.cold
        return segmenter / (self.generation + self.training + segmenter)


def estimate(work: Work, device: Device, model: Model) -> Step:
    """Compute the seconds of one reinforcement step with LoRA, ready policy and segmenter on one GPU."""
    bound = replace(device, layer_s=0.0)
    cold, warm = seconds.segmenting(count(), work, bound)
    return Step(seconds.generation(model, work, bound), seconds.training(model, work, bound), cold, warm)


def unified(device: Device, model: Model) -> float:
    """Compute the segmenter's share of three steps of a unified run with a cold cache: three answers of each task."""
    steps = [estimate(replace(work, answers=3), device, model) for work in PAPER.values()]
    cold = sum(step.cold for step in steps)
    return cold / (cold + sum(step.generation + step.training for step in steps))


def table() -> str:
    """Write the shares at the paper's shape and at larger batches as Markdown."""
    works = {
        **{f"{task}, one answer" + ", group of 8" * (task == "cosod"): work for task, work in PAPER.items()},
        "cosod, 3 answers, groups of 8": replace(PAPER["cosod"], answers=3),
        "sod, 3 prompts of 8 answers": Work(24, prompts=3),
        "sod, 128 answers": Work(128),
    }
    lines = [
        "| step | GPU | generation, s | training, s | cold cache, s | share | warm cache, s | share |",
        "|---" * 8 + "|",
    ]
    model = published("7b")
    for name, work in works.items():
        for device in ("a100", "h100", "h200", "h20"):
            found = estimate(work, DEVICES[device], model)
            parts = (found.generation, found.training, found.cold, found.share(warm=False))
            cells = (*parts, found.warm, found.share(warm=True))
            shown = (f"{value:.1%}" if place in (3, 5) else f"{value:.3f}" for place, value in enumerate(cells))
            lines.append(f"| {name} | {device.upper()} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
