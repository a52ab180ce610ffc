"""Detectors of latent targets, OD1(I), …, ODk(I) of Eq. 1, and the merging of their detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs.masks import Box
from maskgym.experiments.annotation.needs.sources import Item, Source
from maskgym.segmenters.hub import HubNetwork

ANNOTATIONS = "annotations"
NO_CATEGORIES = ("n/a", "no object", "background")  # names of unused classes in some detectors


@dataclass(frozen=True)
class Found:
    """One detection of one detector.

    Attributes:
        detector: Name of the detector.
        box: (left, top, right, bottom), pixels.
        category: Category of the object.
        score: In [0, 1]; None for an annotation, which is certain.
        annotation: Index among the annotations of the image, or None.
    """

    detector: str
    box: tuple[float, float, float, float]
    category: str
    score: float | None = None
    annotation: int | None = None


class Detector(Protocol):
    """Object detector; `identity` determines its detections."""

    name: str

    @property
    def identity(self) -> str:
        """Text that changes whenever the detections can change."""

    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """Detect the objects in an image."""


class Annotations:
    """Detector that reads the annotations of the data set."""

    name = ANNOTATIONS

    @property
    def identity(self) -> str:
        """Name of the detector; changes of annotations are tracked per image."""
        return self.name

    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """List the annotations of an image."""
        return [
            Found(self.name, marked.box, marked.category, annotation=number)
            for number, marked in enumerate(source.annotations(item))
        ]


class HubDetector(HubNetwork):
    """Any object detector of transformers, such as DETR, YOLOS or RT-DETR, with its own categories.

    Args:
        checkpoint: Folder as ``save_pretrained`` writes it, or name on the Hugging Face hub.
        threshold: Minimum score.
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
        """Fingerprint of the weights, and the threshold."""
        return f"{self.fingerprint} {self.threshold}"

    @torch.inference_mode()
    def detect(self, source: Source, item: Item, image: np.ndarray) -> list[Found]:
        """Detect objects that score at least the threshold; boxes are in pixels of the image."""
        batch = self._preprocess([image]).to(self.device)
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
    """Build detectors by name.

    Raises:
        UserError: If a name is neither ``annotations`` nor an object detector, or occurs twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"--detector {' '.join(names)}: expected each name once")
    return [Annotations() if name == ANNOTATIONS else HubDetector(name, threshold, device) for name in names]


def merge(
    found: Sequence[Found], size: tuple[int, int], overlap: float, min_side: float
) -> list[tuple[Found, dict[str, float | None]]]:
    """Merge detections by non-maximum suppression within a category, across detectors.

    Boxes are clipped to the image first. Annotations suppress detections, but not each other; among detections the
    higher score stays, and of equal scores the first.

    Args:
        found: Detections of all detectors.
        size: (height, width) of the image.
        overlap: Intersection over union from which two boxes of one category are one object.
        min_side: Minimum side of a box in pixels; smaller boxes are dropped.

    Returns:
        The remaining detections, best first, each with the scores of all detectors that found it.
    """
    kept: list[tuple[Found, dict[str, float | None]]] = []
    for one in sorted((_clip(one, size) for one in found), key=lambda one: -(2 if one.score is None else one.score)):
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
    """Compute the intersection over union of two boxes that are not empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def _clip(one: Found, size: tuple[int, int]) -> Found:
    height, width = size
    left, top, right, bottom = one.box
    box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    category = one.category.strip().encode("utf-8", "replace").decode()  # JSON may hold unpaired surrogates
    return Found(one.detector, box, category, one.score, one.annotation)
