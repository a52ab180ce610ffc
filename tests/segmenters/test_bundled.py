"""Quality of the bundled segmenters on held-out scenes, for true descriptions and for oracle clicks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

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


def test_the_erring_segmenter_finds_nothing_for_its_share_of_pairs_and_the_truth_for_the_others() -> None:
    data = Scenes("sis", "test")
    samples = [data[index] for index in range(SAMPLES)]
    asked = [sample.images[0] for sample in samples], [sample.phrases[0] for sample in samples]
    right = segmenters.make("evf_sam_tiny", device="cpu").segment(*asked)
    erring = segmenters.make("evf_sam_tiny_erring", device="cpu", share=0.3)
    found = erring.segment(*asked)
    blank = np.array([not mask.any() for masks in found for mask in masks])
    assert 0.2 < blank.mean() < 0.4 and len(blank) > 100
    same = [
        np.array_equal(one, other)
        for ours, theirs in zip(found, right, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert all(np.array(same) | blank)
    one = erring.segment([asked[0][0]], [asked[1][0]])[0]
    assert (one.any(axis=(1, 2)) == found[0].any(axis=(1, 2))).all()  # alone or in a batch, the same pairs


def test_ten_oracle_clicks_give_the_true_mask() -> None:
    samples = [Scenes("sod", "test")[index] for index in range(SAMPLES)]
    truth = [sample.union() for sample in samples]
    segmenter = segmenters.make("sam_tiny", device="cpu")
    embeddings = segmenter.encode([sample.images[0] for sample in samples])
    masks, points, labels = [np.zeros_like(true) for true in truth], [], []
    for _ in range(10):
        # The middle of the widest part of what is wrong.
        wrong = [np.pad(mask ^ true, 1) for mask, true in zip(masks, truth, strict=True)]
        cells = [np.unravel_index(distance_transform_edt(error).argmax(), error.shape) for error in wrong]
        cells = [(min(max(row - 1, 0), 127), min(max(column - 1, 0), 127)) for row, column in cells]
        points.append([(column + 0.5, row + 0.5) for row, column in cells])
        labels.append([int(true[cell]) for true, cell in zip(truth, cells, strict=True)])
        prompts = np.swapaxes(np.array(points, np.float32), 0, 1), np.array(labels).T
        logits = segmenter.decode(embeddings, *prompts, side=128)
        masks = [soft > 0 for soft in segmenter.resize(logits, [(128, 128)] * SAMPLES)]
    assert np.mean([iou(mask, true) for mask, true in zip(masks, truth, strict=True)]) >= 0.85


@pytest.mark.parametrize(("task", "least"), [("sis", 0.85), ("glass", 0.85), ("shadow", 0.7)])
def test_a_true_box_gives_the_true_mask(task: str, least: float) -> None:
    """Boxes alone: each object of a scene by its own, and an effect by the box of its region."""
    samples = [Scenes(task, "test")[index] for index in range(SAMPLES)]
    pairs = [(number, mask) for number, sample in enumerate(samples) for mask in sample.masks[0]]
    boxes = np.array([box_of(mask) for _, mask in pairs], np.float32)
    segmenter = segmenters.make("sam_tiny", device="cpu")
    embeddings = segmenter.encode([sample.images[0] for sample in samples])[[number for number, _ in pairs]]
    logits = segmenter.decode(embeddings, side=128, boxes=boxes)
    masks = [soft > 0 for soft in segmenter.resize(logits, [(128, 128)] * len(pairs))]
    assert np.mean([iou(found, true) for found, (_, true) in zip(masks, pairs, strict=True)]) >= least


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Find (left, top, right, bottom) of a mask, the last two exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(("task", "least"), [("semantic", 0.2), ("shadow", 0.2), ("glass", 0.2), ("blur", 0.2)])
def test_attention_is_where_the_category_is(task: str, least: float) -> None:
    data = Scenes(task, "test")
    samples = [data[index] for index in range(SAMPLES)]
    attend = segmenters.make_attention("clip_tiny", device="cpu").attend
    maps = attend([sample.images[0] for sample in samples], [sample.category or "" for sample in samples], (128, 128))
    inside = [found[s.union()].mean() - found[~s.union()].mean() for found, s in zip(maps, samples, strict=True)]
    assert np.mean(inside) >= least
