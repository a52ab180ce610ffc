"""Compute the seconds of a reinforcement step at a paper's size, and the segmenter's share of them.

Nothing is measured on a GPU. Each part is its floating-point operations, or the bytes that it reads, divided by the
published peak of the device times a stated utilisation. The policy's part is a lower bound: it has no time for Python,
for launching kernels, for the image processor or for waiting. The segmenter's share is therefore an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgym.experiments.reproduce.miniature_models import POLICIES, SEGMENTER, PolicySizes
from maskgym.segmenters.phrases.evf_sam import PREPARED, EvfSam

TERA = 1e12


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        flops: Peak of dense bfloat16, operations per second; a multiplication and an addition are two.
        bandwidth: Peak of its memory, bytes per second.
    """

    flops: float
    bandwidth: float


DEVICES = {  # NVIDIA's data sheets; the last two are the paper's
    "a100": Device(312 * TERA, 2.039 * TERA),  # 80 GB, SXM
    "h100": Device(989 * TERA, 3.35 * TERA),  # 80 GB, SXM
    "h200": Device(989 * TERA, 4.8 * TERA),
    "h20": Device(148 * TERA, 4.0 * TERA),
    "l20": Device(119.5 * TERA, 0.864 * TERA),
}
COMPUTE = 0.4  # share of the peak that training and prefill reach; large language models report 0.3 to 0.5
SEGMENTER_COMPUTE = 0.3  # of EVF-SAM: its attention with relative positions runs no fused kernel
BANDWIDTH = 0.6  # share of the memory's peak while tokens are generated
# Seconds of one core per image, measured with 448 pixels on a Xeon core at about 2 GHz: `sam_pixels` 13 ms and
# `beit3_pixels` 2 ms of an image that is new, `PREPARED` of them at a time; `pixels_key` 0.7 ms of every image.
PREPARE, HASH = 0.015, 0.0007
BUS = 20e9  # bytes per second from main memory to the GPU, of the 32 of PCIe 4
ENCODING = 2 * (256 * 64 * 64 + 3 * 224 * 224)  # bytes of a cached image in half precision
PATCH = 28  # pixels of a visual token's side, after merging
PASSES = (
    3  # of training with frozen weights and gradient checkpointing: forward, again, and backward to the activations
)


@dataclass(frozen=True)
class Shape:
    """Numbers of one step.

    Attributes:
        answers: Sampled answers.
        images: Images per prompt.
        phrases: Phrases per image that the segmenter decodes.
        prompts: Prompts; None for one per answer.
        side: Side of an image in pixels, as the policy sees it.
        text: Tokens of the instruction.
        answer: Tokens of an answer.
    """

    answers: int
    images: int = 1
    phrases: float = 2.0
    prompts: int | None = None
    side: int = 448
    text: int = 150
    answer: int = 400

    @property
    def shown(self) -> int:
        """Number of images of all prompts."""
        return self.images * (self.answers if self.prompts is None else self.prompts)

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.text + self.images * (self.side // PATCH) ** 2


PAPER = {  # 3,000 examples of each task over 3,000 steps: one of each, or three of one task in a unified run
    "sod": Shape(1, phrases=2.0),
    "sis": Shape(1, phrases=3.0),
    "cosod": Shape(1, images=8, phrases=1.0),
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


def estimate(shape: Shape, device: Device, sizes: PolicySizes = POLICIES["7b"]) -> Step:
    """Compute the seconds of one reinforcement step with LoRA, ready policy and segmenter on one GPU.

    Args:
        shape: What the step takes.
        device: The GPU.
        sizes: Sizes of the policy.
    """
    language, vision = language_weights(sizes), vision_flops(sizes, shape.side)
    per_answer = shape.prompt + shape.answer
    prefill = shape.answers * (2 * language * shape.prompt + shape.images * vision)
    cache = 4 * sizes.layers * sizes.key_value_heads * (sizes.hidden_size // sizes.heads)  # bytes per token
    read = 2 * language + shape.answers * cache * (shape.prompt + shape.answer / 2)
    generation = prefill / (device.flops * COMPUTE) + shape.answer * read / (device.bandwidth * BANDWIDTH)
    trained = shape.answers * (PASSES * 2 * language * per_answer + shape.images * vision)
    encode, prompt, decode = segmenter_flops()
    rate = device.flops * SEGMENTER_COMPUTE
    phrases = shape.answers * shape.images * shape.phrases * (prompt + decode) / rate
    warm = phrases + shape.shown * (HASH + ENCODING / BUS)
    cold = warm + shape.shown * encode / rate + ceil(shape.shown / PREPARED) * PREPARE
    return Step(generation, trained / (device.flops * COMPUTE), cold, warm)


def language_weights(sizes: PolicySizes) -> int:
    """Count the weights of the language part that a token is multiplied with: its layers and the output."""
    head = sizes.hidden_size // sizes.heads
    attention = 2 * sizes.hidden_size * head * (sizes.heads + sizes.key_value_heads)
    layer = attention + 3 * sizes.hidden_size * sizes.intermediate_size
    return sizes.layers * layer + sizes.vocab_size * sizes.hidden_size


def vision_flops(sizes: PolicySizes, side: int) -> int:
    """Count the operations of the vision encoder on one image, without attention between patches (a few percent)."""
    patches, width = 4 * (side // PATCH) ** 2, sizes.vision_hidden_size
    layer = 4 * width * width + 3 * width * sizes.vision_intermediate_size
    merger = 4 * width * (4 * width + sizes.hidden_size)
    return 2 * patches * (sizes.vision_depth * layer + 3 * 2 * 14 * 14 * width) + 2 * (patches // 4) * merger


@cache
def segmenter_flops() -> tuple[int, int, int]:
    """Count the operations of the published EVF-SAM: per image, per phrase in BEiT-3, and per phrase in the decoder."""
    with torch.device("meta"), torch.no_grad():
        model = EvfSam(SEGMENTER).eval().requires_grad_(False)
        side, small, index = SEGMENTER.sam.image_size, SEGMENTER.beit3.image_size, torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as encoding:
            embeddings = model.encode_images(torch.empty(1, 3, side, side))
        words = torch.zeros(1, 12, dtype=torch.int64)
        with FlopCounterMode(display=False) as prompting:
            prompts = model.embed_prompts(torch.empty(1, 3, small, small), words, words > 0, index)
        with FlopCounterMode(display=False) as decoding:
            model.decode(embeddings, prompts, index)
    return encoding.get_total_flops(), prompting.get_total_flops(), decoding.get_total_flops()


def unified(device: Device) -> float:
    """Compute the segmenter's share of three steps of a unified run with a cold cache: three answers of each task."""
    steps = [estimate(replace(shape, answers=3), device) for shape in PAPER.values()]
    cold = sum(step.cold for step in steps)
    return cold / (cold + sum(step.generation + step.training for step in steps))


def table() -> str:
    """Write the shares at the paper's shape and at larger batches as Markdown."""
    shapes = {
        **{f"{task}, one answer" + ", group of 8" * (task == "cosod"): shape for task, shape in PAPER.items()},
        "cosod, 3 answers, groups of 8": Shape(3, images=8, phrases=1.0),
        "sod, 3 prompts of 8 answers": Shape(24, prompts=3),
        "sod, 128 answers": Shape(128),
    }
    lines = [
        "| step | GPU | generation, s | training, s | cold cache, s | share | warm cache, s | share |",
        "|---" * 8 + "|",
    ]
    for name, shape in shapes.items():
        for device in ("a100", "h100", "h200", "h20"):
            found = estimate(shape, DEVICES[device])
            parts = (found.generation, found.training, found.cold, found.share(warm=False))
            cells = (*parts, found.warm, found.share(warm=True))
            shown = (f"{value:.1%}" if place in (3, 5) else f"{value:.3f}" for place, value in enumerate(cells))
            lines.append(f"| {name} | {device.upper()} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
