"""The embedded EVF-SAM is not the bottleneck: what true descriptions give on held-out scenes."""

from __future__ import annotations

import numpy as np

from maskgym import segmenters
from maskgym.data.scenes import Scenes
from maskgym.metrics import iasm, iou

SAMPLES = 64


def test_true_descriptions_give_true_masks() -> None:
    data = Scenes("sis", "test")
    samples = [data[index] for index in range(SAMPLES)]
    found = segmenters.make("evf_sam_tiny", device="cpu").segment(
        [sample.images[0] for sample in samples], [sample.phrases[0] for sample in samples]
    )
    masks = [probabilities > 0.5 for probabilities in found]
    assert np.mean([iasm(mask, sample.masks[0]) for mask, sample in zip(masks, samples, strict=True)]) >= 0.85
    each = [iou(mask, sample.masks[0]) for mask, sample in zip(masks, samples, strict=True)]
    assert np.concatenate(each).mean() >= 0.80


def test_a_phrase_means_everything_that_fits_and_nothing_where_nothing_does() -> None:
    data, rng = Scenes("sis", "test"), np.random.default_rng(0)
    segmenter, several, empty = segmenters.make("evf_sam_tiny", device="cpu"), [], []
    for index in range(SAMPLES):
        image, phrases, masks = data.refer(index, 4, rng)
        (found,) = segmenter.segment([image], [phrases])
        objects = data.scene(index).masks
        for probabilities, mask in zip(found, masks, strict=True):
            if sum((row & mask).any() for row in objects) > 1:
                several.append(iou(probabilities > 0.5, mask))
            elif not mask.any():
                empty.append((probabilities > 0.5).mean())
    assert len(several) > 20 and np.mean(several) > 0.75
    assert len(empty) > 3 and np.mean(empty) < 0.05
