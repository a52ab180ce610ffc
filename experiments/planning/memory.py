"""Compute the memory of a worker: the one memory model of `maskgym plan` and of ``maskgym reproduce --plan``.

What a worker holds all the time is added up: weights, adapters, moments, a reference model, the segmenter. On top
comes the larger of what its phases need, which follow each other: generation, a training pass, a pass of the segmenter.
Activations of a training pass are those of `maskgym.agents.text.forward_size`. What an allocator wastes is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maskgym.agents.text.forward_size import FLOAT, bytes_per_answer, head_bytes, state_bytes
from maskgym.experiments.planning.devices import Device
from maskgym.experiments.planning.models import CHANNELS, FRAMES, Model
from maskgym.experiments.planning.segmenters import Segmenter
from maskgym.experiments.planning.work import Work
from maskgym.experiments.wiring.process import KEPT

LOGITS = 4  # copies of the logits of a generated token in float32: processed, divided, as probabilities, and these


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker.

    Attributes:
        held: What it holds all the time, by part.
        phases: What its phases need beside that, by part.
    """

    held: dict[str, float]
    phases: dict[str, float]

    @property
    def total(self) -> float:
        """Compute the peak: what is held, and the largest phase."""
        return sum(self.held.values()) + max(self.phases.values())


def of_worker(model: Model, work: Work, device: Device, segmenter: Segmenter | None) -> Memory:
    """Compute the memory of a worker; ``segmenter`` is None for one that is not counted."""
    shards = work.workers if work.sharded else 1
    weights = work.size * model.total
    held = {
        "process": device.held,
        "weights": weights / shards + _gathered(model, work),
        "moments": FLOAT * model.trained * (2 * work.pairs + work.adapters) / shards,
        "reference model": work.reference * weights / shards,
    }
    phases = {
        "generation": _generation(model, replace(work, answers=work.together)),
        "training": training(model, work, device.gpu, work.in_pass) + gradients(model, work),
    }
    if segmenter is not None and work.segments:
        held["segmenter"] = segmenter.weights
        phases["segmenter"] = segmenter.working
    if not device.gpu:  # the C library does not give all freed memory back, see `maskgym.experiments.wiring.process`
        held["freed"] = min(KEPT, max(phases.values()))
    return Memory(held, phases)


def gradients(model: Model, work: Work) -> float:
    """Compute the bytes of gradients; workers that do not shard them keep a second copy, which they sum."""
    one = state_bytes(model.trained, 0)
    return one / work.workers if work.sharded else one * (2 if work.workers > 1 else 1)


def cache(model: Model, work: Work) -> int:
    """Compute the bytes of the keys and values of all answers of a worker at their longest."""
    return work.answers * work.tokens(model) * model.layers * model.cached * work.values


def training(model: Model, work: Work, gpu: bool, answers: int) -> float:
    """Compute the bytes of activations of a training pass over some answers."""
    scored = max(work.longest, work.answer) if gpu else work.tokens(model)  # TRL scores prompts too without Triton
    tiles = head_bytes(model.words, gpu, answers * scored)
    if not gpu and work.values < FLOAT:  # there, words of the output layer are cast to multiply with their gradients
        tiles += FLOAT * model.hidden * min(model.words, 32768)
    copies = work.values * model.trained if work.values < work.size else 0  # of trained weights, in half precision
    return answers * per_answer(model, work) + tiles + copies + _pixels(model, work)


def per_answer(model: Model, work: Work) -> int:
    """Compute the bytes of activations that one answer adds to a training pass."""
    return bytes_per_answer(
        model.hidden, model.inner, model.layers, work.tokens(model), work.values, work.checkpointing, work.adapters
    )


def _generation(model: Model, work: Work) -> float:
    """Compute the bytes of generation: the larger of its first pass, and keys, values and logits at its end."""
    return max(_prefill(model, work), cache(model, work) + LOGITS * FLOAT * work.answers * model.words)


def _prefill(model: Model, work: Work) -> float:
    """Compute the bytes of the first pass of generation, which reads all prompts: the larger of its two parts."""
    prompts = work.answers * work.prompt(model)
    seen = work.answers * work.images * model.patches(work.image) * model.vision_width * work.values
    # Without autograd a layer holds three times its inner units, the residual stream and the input of the units.
    read = prompts * ((3 * model.inner + 3 * model.hidden) + model.layers * model.cached) * work.values
    return max(seen, read) + _pixels(model, work)


def _pixels(model: Model, work: Work) -> float:
    """Compute the bytes of the patches of all prompts, which are float32 and repeated for each answer."""
    patches = work.answers * work.images * model.patches(work.image)
    return FLOAT * patches * CHANNELS * FRAMES * model.patch**2


def _gathered(model: Model, work: Work) -> float:
    """Compute the bytes of the layer that workers gather who shard the weights."""
    return work.size * model.products / model.layers if work.sharded else 0.0
