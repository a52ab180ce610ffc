"""Compute the seconds of an update: the one time model of `maskgym plan` and of ``maskgym reproduce --plan``.

Each part is its operations, or the bytes that it reads, divided by what the device reaches
(`maskgym.experiments.planning.devices`). Left out are reading and drawing images, the image processor, exchanging
gradients, the optimizer and checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from maskgym.experiments.planning.devices import Device
from maskgym.experiments.planning.models import Model
from maskgym.experiments.planning.segmenters import PREPARED, Segmenter
from maskgym.experiments.planning.work import TOGETHER, Work

# Seconds of one core per image, measured with 448 pixels on a Xeon core at about 2 GHz: `sam_pixels` 13 ms and
# `beit3_pixels` 2 ms of an image that is new, `PREPARED` of them at a time; `pixels_key` 0.7 ms of every image.
PREPARE, HASH = 0.015, 0.0007
PREPARED_SIDE = 1024  # pixels of the square that was prepared then
BUS = 20e9  # bytes per second from main memory to the GPU, of the 32 of PCIe 4
HEAD_PASSES = 3  # of the output layer in training: forward, again in the backward pass, and backward to its inputs
START_S = 60.0  # of a command that loads 16 GB of weights from a local disk


@dataclass(frozen=True)
class Seconds:
    """Seconds of an update of one worker, by part.

    Attributes:
        generation: Sampling answers.
        segmenter: Segmenting what they name.
        scoring: Forward passes over the answers before they are trained on.
        training: Forward and backward passes.
        supervised: Seconds of a supervised update.
        share: Share of updates that are supervised.
    """

    generation: float
    segmenter: float
    scoring: float
    training: float
    supervised: float
    share: float

    @property
    def sampled(self) -> float:
        """Seconds of an update on sampled answers."""
        return self.generation + self.segmenter + self.scoring + self.training

    @property
    def update(self) -> float:
        """Seconds of an update, on average."""
        return self.share * self.supervised + (1 - self.share) * self.sampled


def of_update(model: Model, work: Work, device: Device, segmenter: Segmenter | None) -> Seconds:
    """Compute the seconds of an update; ``segmenter`` is None for one that is not counted."""
    trained = training(model, work, device)
    segmented = segmenting(segmenter, work, device)[0] if segmenter and work.segments else 0.0
    sampled = work.supervised < 1
    return Seconds(
        sampled * generation(model, work, device) / work.reuses,
        sampled * segmented / work.reuses,
        sampled * work.scorings * scoring(model, work, device) / work.reuses,
        sampled * trained,
        trained,
        work.supervised,
    )


def of_evaluation(
    model: Model, work: Work, device: Device, segmenter: Segmenter | None, samples: int, together: int
) -> float:
    """Compute the seconds to answer, segment and score held-out samples, some of them together."""
    rows = min(together, TOGETHER, samples)
    if not rows:
        return 0.0
    batch = replace(work, answers=rows, prompts=None)
    batches = ceil(ceil(samples / rows) / (1 if work.sharded else work.workers))
    segmented = segmenting(segmenter, batch, device)[0] if segmenter else 0.0
    return batches * (generation(model, batch, device) + segmented)


def generation(model: Model, work: Work, device: Device) -> float:
    """Compute the seconds to generate all answers of a worker together."""
    prompt = work.prompt(model)
    begin = work.answers * (_layers(model, prompt) + work.images * vision(model, work) + 2 * model.head)
    token = work.answers * 2 * (model.products + model.head) / device.flops
    kept = work.answers * work.values * model.layers * model.cached * (prompt + work.answer / 2)
    read = (work.size * (model.products + model.head) + kept) / device.bandwidth
    each = max(token, read) + model.layers * device.layer_s + device.token_s
    return begin / device.flops + work.answer * each


def scoring(model: Model, work: Work, device: Device) -> float:
    """Compute the seconds of a forward pass over the answers."""
    layers = _layers(model, work.prompt(model) + work.answer) + work.images * vision(model, work)
    return work.answers * (layers / device.flops + _head(model, work, device, 1))


def training(model: Model, work: Work, device: Device) -> float:
    """Compute the seconds of the forward and backward passes over the answers."""
    tokens = work.prompt(model) + work.answer
    passes = 2 + (not work.adapters) + work.checkpointing  # backward to inputs, and to weights; forward again
    head = _head(model, work, device, HEAD_PASSES + (not work.adapters))
    operations = passes * _layers(model, tokens) + work.images * vision(model, work)
    return work.answers * (operations / device.flops + head)


def segmenting(segmenter: Segmenter, work: Work, device: Device) -> tuple[float, float]:
    """Compute the seconds to segment the answers of new images, and of images whose encodings are cached."""
    rate, prepare = device.segmenter_flops, PREPARE * (segmenter.pixels / PREPARED_SIDE) ** 2
    phrases = work.answers * work.images * work.phrases * (segmenter.prompt + segmenter.decode) / rate
    warm = phrases + work.shown * (HASH + segmenter.encoding * segmenter.size / BUS)
    return warm + work.shown * segmenter.encode / rate + ceil(work.shown / PREPARED) * prepare, warm


def vision(model: Model, work: Work) -> int:
    """Count the operations of the vision encoder on one image, without attention between patches (a few percent)."""
    return 2 * (model.patches(work.image) * model.vision + model.tokens(work.image) * model.merger)


def _layers(model: Model, tokens: int) -> int:
    """Count the operations of the language layers on one text: their weights, and attention of all to all."""
    return tokens * (2 * model.products + 4 * model.layers * model.heads * tokens)


def _head(model: Model, work: Work, device: Device, passes: int) -> float:
    """Compute the seconds of the output layer on one answer, and on its prompt where there is no Triton."""
    scored = work.answer if device.gpu else work.prompt(model) + work.answer
    return passes * 2 * model.head * scored / (device.head_flops or device.flops)
