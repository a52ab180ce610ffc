"""Matching, IASM and average precision: by hand, against an obvious IASM and against pycocotools."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from maskgym.metrics import InstanceScores, average_precision, iasm, iou, match_instances, prepare, s_measure


def cells(*places, shape=(6, 8)):
    """Return bool (n, H, W): one instance a tuple (top, left, height, width)."""
    masks = np.zeros((len(places), *shape), bool)
    for mask, (top, left, height, width) in zip(masks, places, strict=True):
        mask[top : top + height, left : left + width] = True
    return masks


def random_instances(rng, count, shape=(24, 30)):
    return cells(*((*rng.integers(0, 16, 2), *rng.integers(2, 12, 2)) for _ in range(count)), shape=shape)


def test_matching_maximises_the_sum_and_not_the_best_pair():
    # Row 0 has IoU 0.6 and 0.5, row 1 has 0.5 and 0: the best sum leaves the best pair out.
    targets = cells((0, 0, 1, 4), (0, 4, 1, 1), shape=(1, 10))
    predictions = cells((0, 1, 1, 4), (0, 0, 1, 2), shape=(1, 10))
    assert iou(predictions[0], targets[0]) == 0.6 and iou(predictions[1], targets[0]) == 0.5
    matches = match_instances(predictions, targets, 0.1)
    assert matches.predictions.tolist() == [0, 1] and matches.targets.tolist() == [1, 0]
    assert matches.ious.tolist() == [0.25, 0.5]
    assert match_instances(predictions, targets, 0.3).predictions.tolist() == [1]


def test_matching_agrees_with_every_assignment_tried():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predictions, targets = random_instances(rng, 4), random_instances(rng, 3)
        table = np.array([[iou(p, t) for t in targets] for p in predictions])
        best = max(sum(table[i, j] for j, i in enumerate(order)) for order in itertools.permutations(range(4), 3))
        assert match_instances(predictions, targets, 0.0).ious.sum() == pytest.approx(best)


def obvious_iasm(predictions, targets, threshold, unmatched):
    matches = match_instances(predictions, targets, threshold)
    scores = [s_measure(predictions[i], targets[j]) for i, j in zip(matches.predictions, matches.targets, strict=True)]
    alone = [(p, np.zeros_like(p)) for i, p in enumerate(predictions) if i not in matches.predictions]
    alone += [(np.zeros_like(t), t) for j, t in enumerate(targets) if j not in matches.targets]
    scores += [s_measure(p, t) if unmatched == "published" else 0.0 for p, t in alone]
    assert len(scores) == len(predictions) + len(targets) - len(matches.ious)
    return np.mean(scores)


@pytest.mark.parametrize("unmatched", ["zero", "published"])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_iasm_is_the_mean_over_aligned_pairs(unmatched, threshold):
    rng = np.random.default_rng(1)
    for count, truths in ((1, 1), (3, 3), (5, 2), (0, 2), (2, 0), (4, 6)):
        predictions, targets = random_instances(rng, count), random_instances(rng, truths)
        expected = obvious_iasm(predictions, targets, threshold, unmatched)
        assert iasm(predictions, targets, threshold, unmatched) == pytest.approx(expected, abs=1e-12)
        assert iasm(prepare(predictions), prepare(targets), threshold, unmatched) == pytest.approx(expected, abs=1e-12)


def test_iasm_edges():
    some, none = cells((1, 1, 2, 2)), cells()
    assert iasm(none, none) == 1 and iasm(none, none, unmatched="published") == 1
    assert iasm(some, none) == 0 and iasm(none, some) == 0
    assert iasm(some, none, unmatched="published") == pytest.approx(1 - 4 / 48)
    assert iasm(some, some) == pytest.approx(1)
    assert iasm(np.concatenate((some, some)), some) == pytest.approx(0.5)
    blank = np.zeros_like(some)
    assert iasm(blank, blank) == 0 and iasm(blank, blank, unmatched="published") == 1


def test_specks_raise_the_published_form_only():
    targets, guess = cells((0, 0, 3, 3), (3, 4, 3, 4)), cells((0, 1, 3, 3))
    specks = np.concatenate((guess, cells(*[(5, column, 1, 1) for column in range(3)])))
    assert iasm(specks, targets, unmatched="published") > iasm(guess, targets, unmatched="published")
    assert iasm(specks, targets) < iasm(guess, targets)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="unmatched: expected 'zero' or 'published', got 'one'"):
        iasm(cells(), cells(), unmatched="one")
    for function in (iasm, match_instances):
        with pytest.raises(ValueError, match=r"threshold: expected an IoU in \[0, 1\], got 1.5"):
            function(cells(), cells(), 1.5)


def test_average_precision_by_hand():
    # Hit, miss, hit of two targets: precision 1 up to recall 1/2 (51 of the 101 recalls), 2/3 beyond (50).
    targets = cells((0, 0, 2, 2), (3, 3, 2, 2))
    predictions = cells((0, 0, 2, 2), (0, 5, 2, 2), (3, 3, 2, 2))
    assert average_precision([predictions], [targets], 0.5, [[3, 2, 1]]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([predictions], [targets], 0.5, [[0.9, 0.1, 0.8]]) == pytest.approx(1)
    assert average_precision([predictions], [targets], 0.5, [[0.1, 0.9, 0.2]]) < 0.67
    # Without scores there is one point, precision 2/3 at recall 1; with two shared, precision 1/2 at recall 1/2 too.
    assert average_precision([predictions], [targets], 0.5) == pytest.approx(2 / 3)
    assert average_precision([predictions], [targets], 0.5, [[2, 2, 1]]) == pytest.approx(2 / 3)
    assert average_precision([predictions], [targets], 0.5, [[2, 1, 1]]) == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("levels", [1, 3])
def test_equal_scores_do_not_depend_on_the_order(levels):
    rng = np.random.default_rng(4)
    targets = [random_instances(rng, count) for count in (3, 0, 5, 1, 4)]
    predictions = []
    for truths in targets:
        shifted = [np.roll(mask, rng.integers(-3, 4, 2), (0, 1)) for mask in (*truths, *truths)]
        predictions.append(np.concatenate([random_instances(rng, 2), np.array(shifted, bool).reshape(-1, 24, 30)]))
    predictions[3] = np.concatenate([random_instances(rng, 60), predictions[3], random_instances(rng, 60)])
    scores = [rng.integers(0, levels, len(masks)) for masks in predictions]

    def measured(images, orders):
        found = InstanceScores((0.3, 0.5))
        for k in images:
            found.add(predictions[k][orders[k]], targets[k], scores[k][orders[k]])
        return {name: value for name, value in found.result().items() if name != "iasm"}

    first = measured(range(5), [np.arange(len(masks)) for masks in predictions])
    assert 0 < first["ap30"] < 1
    for _ in range(5):
        assert measured(rng.permutation(5), [rng.permutation(len(masks)) for masks in predictions]) == first


def test_a_target_goes_to_the_prediction_that_has_no_other():
    # The first prediction overlaps both targets, the second only the first: together they find both, in any order.
    targets = cells((0, 0, 4, 4), (0, 4, 4, 2))
    both = cells((0, 1, 4, 5), (0, 0, 4, 3))  # IoU with the targets: 12/24 and 8/20, 12/16 and 0
    for order in ([0, 1], [1, 0]):
        assert average_precision([both[order]], [targets], 0.4) == 1


def test_average_precision_thresholds_and_edges():
    target, guess = cells((0, 0, 2, 5)), cells((0, 0, 2, 3))  # IoU 0.6
    assert average_precision([guess], [target], 0.6) == 1
    assert average_precision([guess], [target], 0.7) == 0
    assert average_precision([target], [target], 1.0) == 1
    assert average_precision([cells()], [target]) == 0
    assert math.isnan(average_precision([guess], [cells()])) and math.isnan(average_precision([], []))
    twice = np.concatenate((target, target))
    assert average_precision([twice, target], [target, target]) < 1  # the second of two equal answers is a miss
    with pytest.raises(ValueError, match="1 predictions, 2 targets"):
        average_precision([guess], [target, target])
    with pytest.raises(ValueError, match="image 0: scores: expected 1 finite numbers"):
        average_precision([guess], [target], scores=[[0.1, 0.2]])
    with pytest.raises(ValueError, match="image 0: scores: expected 1 finite numbers"):
        average_precision([guess], [target], scores=[[float("inf")]])


def coco_precision(predictions, targets, scores, thresholds):
    """Return AP at each threshold by pycocotools with one category."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    from pycocotools import mask as rle

    def entries(per_image, per_score=None):
        for image, masks in enumerate(per_image):
            for index, mask in enumerate(masks):
                code = rle.encode(np.asfortranarray(mask, np.uint8))
                box = {"area": float(mask.sum()), "bbox": rle.toBbox(code).tolist(), "iscrowd": 0}
                entry = {"image_id": image + 1, "category_id": 1, "segmentation": code} | box
                yield entry if per_score is None else entry | {"score": float(per_score[image][index])}

    def index(annotations):
        api = coco.COCO()
        api.dataset = {
            "images": [{"id": image + 1, "height": 24, "width": 30} for image in range(len(targets))],
            "categories": [{"id": 1}],
            "annotations": [{"id": number + 1, **entry} for number, entry in enumerate(annotations)],
        }
        api.createIndex()
        return api

    run = evaluation.COCOeval(index(entries(targets)), index(entries(predictions, scores)), "segm")
    run.params.iouThrs = np.array(thresholds)
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [100]
    run.evaluate()
    run.accumulate()
    return run.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


def test_average_precision_agrees_with_coco():
    rng = np.random.default_rng(2)
    targets = [random_instances(rng, count) for count in (3, 0, 5, 1, 4, 2)]
    predictions = []
    for truths in targets:
        shifted = [np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) for mask in truths]
        predictions.append(np.concatenate([random_instances(rng, 2), np.array(shifted).reshape(-1, 24, 30)]))
    predictions[2] = random_instances(rng, 120)  # more than COCO keeps
    scores = [rng.random(len(masks)) for masks in predictions]  # COCO's value for equal ones depends on their order
    thresholds = [0.3, 0.5, 0.7]
    for threshold, value in zip(thresholds, coco_precision(predictions, targets, scores, thresholds), strict=True):
        assert average_precision(predictions, targets, threshold, scores) == pytest.approx(value, abs=1e-9)


def test_scores_over_a_set_keep_no_mask():
    rng = np.random.default_rng(0)
    targets = [rng.random((int(rng.integers(0, 4)), 6, 6)) > 0.6 for _ in range(20)]
    guesses = [np.concatenate((target[:2], rng.random((1, 6, 6)) > 0.7)) for target in targets]
    confidences = [rng.random(len(guess)) for guess in guesses]
    scores = InstanceScores((0.5, 0.7))
    for guess, target, confidence in zip(guesses, targets, confidences, strict=True):
        scores.add(guess, target, confidence)
    found = scores.result()
    assert found["ap50"] == average_precision(guesses, targets, 0.5, confidences)
    assert found["ap70"] == average_precision(guesses, targets, 0.7, confidences) != found["ap50"]
    assert found["iasm"] == pytest.approx(np.mean([iasm(*pair) for pair in zip(guesses, targets, strict=True)]))


def test_precision_and_recall_by_hand():
    scores = InstanceScores()
    scores.add(cells((0, 0, 2, 5), (4, 0, 6, 2)), cells((0, 0, 2, 5)))  # one found, one wrong
    scores.add(cells(), cells((0, 0, 2, 2), (3, 3, 5, 5)))  # two missed
    found = scores.result()
    assert (found["precision"], found["recall"]) == (0.5, pytest.approx(1 / 3))
    assert found["f1"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no photo was added"):
        InstanceScores().result()
    with pytest.raises(ValueError, match="threshold: expected an IoU"):
        InstanceScores((1.5,))


def test_one_mask_that_is_repeated_without_copies_counts_as_copies_do():
    rng = np.random.default_rng(0)
    mask, targets = rng.random((1, 9, 7)) < 0.5, rng.random((3, 9, 7)) < 0.5
    targets[0] = mask[0]
    repeated = np.broadcast_to(mask, (5, 9, 7))
    found = []
    for predictions in (repeated, repeated.copy()):
        scores = InstanceScores()
        scores.add(predictions, targets)
        found.append((iasm(predictions, targets), scores.result()))
    assert found[0] == found[1] and found[0][1]["ap50"] > 0
