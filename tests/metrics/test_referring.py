"""mIoU, oIoU and P@X of expressions, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym.metrics import ReferringScores, prepare


def strip(length: int) -> np.ndarray:
    """Return bool (2, 10) whose first pixels are foreground."""
    return (np.arange(20) < length).reshape(2, 10)


def scores(*pairs) -> dict[str, float]:
    found = ReferringScores()
    for prediction, target in pairs:
        found.add(prediction, target)
    return found.result()


def test_values_by_hand():
    # IoU 9/10, 10/20, 3/5 and 0: the two measures of IoU differ since areas do.
    found = scores((strip(9), strip(10)), (strip(20), strip(10)), (strip(3), strip(5)), (strip(0), strip(15)))
    assert found["miou"] == pytest.approx((0.9 + 0.5 + 0.6 + 0) / 4)
    assert found["oiou"] == pytest.approx((9 + 10 + 3 + 0) / (10 + 20 + 5 + 15))
    # X itself counts.
    assert [found[f"p@{x}"] for x in (0.5, 0.6, 0.7, 0.8, 0.9)] == [0.75, 0.5, 0.25, 0.25, 0.25]


def test_nothing_where_nothing_is_referred_to_is_right():
    found = scores((strip(0), strip(0)), (strip(4), strip(0)))
    assert (found["miou"], found["oiou"], found["p@0.9"]) == (0.5, 0, 0.5)
    assert scores((strip(0), strip(0)))["oiou"] == 1


def test_soft_maps_batches_tensors_and_prepared_targets_are_taken():
    expected = scores((strip(9), strip(10)), (strip(4), strip(5)))
    soft = np.where(strip(9), 0.51, 0.5)
    assert scores((soft, strip(10)), (torch.from_numpy(strip(4)), strip(5))) == expected
    assert scores((np.stack([strip(9), strip(4)]), np.stack([strip(10), strip(5)]))) == expected
    assert scores((strip(9), prepare(strip(10))), (strip(4), prepare(strip(5)))) == expected


def test_what_cannot_be_scored_is_told_and_not_counted():
    found = ReferringScores()
    with pytest.raises(ValueError, match="no expression was added"):
        found.result()
    with pytest.raises(ValueError, match="differ in shape"):
        found.add(strip(1), strip(1)[:1])
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        found.add(np.full((2, 10), np.nan), strip(1))
    with pytest.raises(ValueError, match="no expression was added"):
        found.result()


def test_two_empty_masks_score_what_is_asked_for():
    pairs = ((strip(0), strip(0)), (strip(5), strip(10)))
    for empty, miou in ((1.0, 0.75), (0.0, 0.25)):  # (empty + 5/10) / 2
        found = ReferringScores(empty)
        for pair in pairs:
            found.add(*pair)
        assert (found.result()["miou"], found.result()["oiou"], found.result()["p@0.9"]) == (miou, 0.5, empty / 2)
        alone = ReferringScores(empty)
        alone.add(strip(0), strip(0))
        assert alone.result()["oiou"] == empty
    with pytest.raises(ValueError, match=r"empty=0\.5: expected 0 or 1"):
        ReferringScores(0.5)


def test_accuracy_without_and_with_a_target():
    # No target: one right (TP), two wrong (FN). Target: two answered (TN), one of them beside it, one left empty (FP).
    nothing = [(strip(0), strip(0)), (strip(1), strip(0)), (strip(20), strip(0))]
    something = [(strip(3), strip(5)), (~strip(15), strip(5)), (strip(0), strip(5))]
    found = scores(*nothing, *something)
    assert (found["n_acc"], found["t_acc"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["miou"] == pytest.approx((1 + 0 + 0 + 3 / 5 + 0 + 0) / 6)
    assert found["oiou"] == pytest.approx(3 / (0 + 1 + 20 + 5 + 10 + 5))
    assert "n_acc" not in scores(*something) and "t_acc" not in scores(*something)
    assert scores(*nothing)["n_acc"] == pytest.approx(1 / 3) and "t_acc" not in scores(*nothing)
    assert scores((np.stack([pair[0] for pair in nothing]), np.stack([pair[1] for pair in nothing])))["n_acc"] == (
        pytest.approx(1 / 3)
    )


def test_a_malformed_answer_says_neither_that_nothing_is_meant_nor_what():
    found = ReferringScores()
    found.add(strip(0), strip(0))
    found.add_malformed(0)
    found.add(strip(3), strip(5))
    found.add_malformed(5)
    values = found.result()
    assert (values["n_acc"], values["t_acc"]) == (0.5, 0.5)
    assert values["miou"] == pytest.approx((1 + 0 + 3 / 5 + 0) / 4) and values["p@0.5"] == 0.5
    assert values["oiou"] == pytest.approx(3 / (5 + 5))
    for empty in (0.0, 1.0):
        nothing = ReferringScores(empty)
        nothing.add_malformed(0)
        assert (nothing.result()["miou"], nothing.result()["oiou"], nothing.result()["n_acc"]) == (0, 0, 0)
