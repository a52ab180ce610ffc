"""Detectors of latent targets: OD1(I), …, ODk(I) of Eq. 1, and how what they find becomes one list of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.masks import Box
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.segmenters.hub import HubNetwork

ANNOTATIONS = "annotations"
NO_CATEGORIES = ("n/a", "no object", "background")  # what some detectors call the classes that they do not use


@dataclass(frozen=True)
class Found:
    """What one detector found.

    Attributes:
        detector: Its name.
        box: (left, top, right, bottom), pixels.
        category: What it is.
        score: In [0, 1]; None for an annotation, which is sure.
        annotation: Its number among the annotations of the image, or None.
    """

    detector: str
    box: tuple[float, float, float, float]
    category: str
    score: float | None = None
    annotation: int | None = None


class Detector(Protocol):
    """Finds objects; `name` and `identity` say who it is and what fixes what it finds."""

    name: str

    @property
    def identity(self) -> str:
        """Return a text that changes with what is found."""

    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """Return what it finds in an image."""


class Annotations:
    """The objects that the data has marked already, as a detector."""

    name = ANNOTATIONS

    @property
    def identity(self) -> str:
        """Return its name: what changes is seen image by image."""
        return self.name

    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """Return the annotations of an image."""
        return [
            Found(self.name, marked.box, marked.category, annotation=number)
            for number, marked in enumerate(source.annotations(item))
        ]


class HubDetector(HubNetwork):
    """Any object detector of transformers: DETR, YOLOS, RT-DETR and their kin, each with its own categories.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        threshold: Least score.
        device: See `FrozenNetwork`.

    Raises:
        UserError: See `HubNetwork`.
    """

    architecture = "AutoModelForObjectDetection"
    model_types = tuple(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)

    def __init__(self, checkpoint: str, threshold: float = 0.5, device: str | None = None) -> None:
        super().__init__(checkpoint, device)
        self.name, self.threshold = checkpoint, threshold

    @property
    def identity(self) -> str:
        """Return the fingerprint of the weights."""
        return f"{self.fingerprint} {self.threshold}"

    @torch.inference_mode()
    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """Return what scores at least the threshold, in the image's pixels."""
        batch = self.image_processor([image], return_tensors="pt", input_data_format="channels_last").to(self.device)
        output = self.network(**batch)
        sizes = [image.shape[:2]]
        (found,) = self.image_processor.post_process_object_detection(output, self.threshold, target_sizes=sizes)
        names = self.network.config.id2label
        return [
            Found(self.name, tuple(box), names[label], round(score, 4))
            for box, label, score in zip(
                found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
            )
            if names[label].casefold() not in NO_CATEGORIES
        ]


def make_detectors(names: Sequence[str], threshold: float, device: str | None) -> list[Detector]:
    """Return the detectors of these names.

    Raises:
        UserError: If one is neither ``annotations`` nor an object detector, or is named twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"--detector {' '.join(names)}: expected each one once")
    return [Annotations() if name == ANNOTATIONS else HubDetector(name, threshold, device) for name in names]


def merge(
    found: Sequence[Found], size: tuple[int, int], overlap: float, min_side: float
) -> list[tuple[Found, dict[str, float | None]]]:
    """Return each object once: non-maximum suppression within a category, across detectors.

    Boxes are cut to the image first. Annotations come first and suppress detections, but not each other; among
    detections the higher score stays, and of equal scores the first.

    Args:
        found: Of all detectors.
        size: (height, width) of the image.
        overlap: Intersection over union from which two boxes of one category are one object.
        min_side: Boxes with a shorter side, pixels, are left out: there is little to say of them.

    Returns:
        What stays, the best first, each with the scores of all detectors that saw it.
    """
    kept: list[tuple[Found, dict[str, float | None]]] = []
    for one in sorted((_cut(one, size) for one in found), key=lambda one: -(2 if one.score is None else one.score)):
        sides = one.box[2] - one.box[0], one.box[3] - one.box[1]
        if min(sides) <= 0 or min(sides) < min_side:
            continue
        same = (
            seen
            for other, seen in kept
            if one.score is not None
            and other.category.casefold() == one.category.casefold()
            and box_iou(one.box, other.box) >= overlap
        )
        seen = next(same, None)
        if seen is None:
            kept.append((one, {one.detector: one.score}))
        else:
            seen.setdefault(one.detector, one.score)
    return kept


def box_iou(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes that are not empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def record(one: Found, seen: Mapping[str, float | None], by: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as the record of an image has it, without its id.

    Args:
        one: What stays.
        seen: The scores of all detectors that saw it.
        by: Provenance of its box and category.
    """
    return {
        "category": one.category,
        "box": [round(side, 2) for side in one.box],
        "score": one.score,
        "seen_by": dict(seen),
        "annotation": one.annotation,
        "provenance": {"box": dict(by), "category": dict(by)},
    }


def _cut(one: Found, size: tuple[int, int]) -> Found:
    height, width = size
    left, top, right, bottom = one.box
    box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    category = one.category.strip().encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    return Found(one.detector, box, category, one.score, one.annotation)
