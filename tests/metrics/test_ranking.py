"""SOR, SA-SOR and rank maps: values worked out by hand, and derived again with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from maskgym.metrics import RankingScores, rank_map, sa_sor, sor
from maskgym.metrics.ranking import GREYS, match_best

# Four objects, a row of five pixels each.
ROWS = np.eye(4, dtype=bool)[:, :, None].repeat(5, axis=2)
FAR = np.zeros((1, 4, 5), bool)


def grey(*rows: float) -> np.ndarray:
    """Return a map whose row i has a grey level."""
    return np.array(rows, float)[:, None].repeat(5, axis=1) / 255


def test_a_rank_map_has_assr_greys():
    painted = rank_map(ROWS, [2, 9, 5, 1])
    assert np.rint(painted[:, 0] * 255).tolist() == [204, 255, 229, 178]
    assert np.rint(rank_map(ROWS, [2, 9, 5, 1], top=2)[:, 0] * 255).tolist() == [0, 255, 229, 0]
    whole = np.ones((1, 4, 5), bool)
    over = rank_map(np.concatenate([ROWS[:1], whole]), [2, 1])  # the more salient one is in front
    assert np.rint(over[:, 0] * 255).tolist() == [255, 229, 229, 229]
    assert not rank_map(FAR[:0], []).any()
    six = np.eye(6, dtype=bool)[:, :, None]
    assert np.rint(rank_map(six, [6, 5, 4, 3, 2, 1])[:, 0] * 255).tolist() == [*GREYS, 0]


@pytest.mark.parametrize(
    ("rows", "ranks", "mode", "mean"),
    [
        ((255, 229, 204, 178), (4, 3, 2, 1), 1, 1),
        ((178, 204, 229, 255), (4, 3, 2, 1), -1, -1),
        # Ranks 4 3 2 1 against 3 4 2 1: 1 - 6 · 2 / (4 · 15).
        ((229, 255, 204, 178), (4, 3, 2, 1), 0.8, 0.8),
        # The last two are not seen, and left out.
        ((229, 255, 0, 0), (4, 3, 2, 1), -1, -1),
        # What is not salient is left out likewise.
        ((229, 255, 204, 178), (4, 0, 2, 1), 1, 1),
        # One left: 1, or not used. None left, or all of one grey or rank: not used.
        ((0, 255, 0, 0), (4, 3, 2, 1), 1, np.nan),
        ((0, 0, 0, 0), (4, 3, 2, 1), np.nan, np.nan),
        ((200, 200, 200, 200), (4, 3, 2, 1), np.nan, np.nan),
        ((255, 229, 204, 178), (1, 1, 1, 1), np.nan, np.nan),
    ],
)
def test_sor_by_hand(rows, ranks, mode, mean):
    assert sor(grey(*rows), ROWS, ranks) == pytest.approx(mode, nan_ok=True)
    assert sor(grey(*rows), ROWS, ranks, level="mean") == pytest.approx(mean, nan_ok=True)


def test_the_mode_wants_more_than_half_of_an_object_and_the_mean_any_of_it():
    shown = grey(255, 0, 100, 50)
    shown[1, :2] = 229 / 255  # two pixels of five
    assert sor(shown, ROWS[:3], (2, 3, 1)) == 1  # rows 0 and 2 alone
    assert sor(shown, ROWS[:3], (2, 3, 1), level="mean") == -0.5  # means 255, 91.6, 100: ranks 3 1 2 against 2 3 1
    shown[1, 2] = 50 / 255  # three of five, and 229 is more frequent: ranks 3 2 1
    assert sor(shown, ROWS[:3], (2, 3, 1)) == 0.5


def test_the_darkest_of_equally_frequent_greys_is_the_mode():
    shown = grey(120, 0, 0, 0)
    shown[1] = np.array([100, 100, 200, 200, 0]) / 255
    assert sor(shown, ROWS[:2], (2, 1)) == 1  # 120 against 100, not against 200


@pytest.mark.parametrize("seed", range(20))
def test_sor_is_scipys_spearman_of_scipys_modes(seed):
    random = np.random.default_rng(seed)
    shown = random.choice([0, 0, 60, 120, 180, 240], size=(12, 15))
    targets = (np.arange(12) // 2 == np.arange(6)[:, None])[:, :, None].repeat(15, axis=2)
    ranks = random.integers(0, 6, size=6)
    modes, means = [], []
    for target in targets:
        seen = shown[target][shown[target] > 0]
        modes.append(stats.mode(seen).mode if len(seen) > target.sum() * 0.5 else 0)
        means.append(shown[target].mean())
    for level, values in (("mode", np.array(modes)), ("mean", np.array(means))):
        used = (values > 0) & (ranks > 0)
        if used.sum() < 2 or np.ptp(values[used]) == 0 or np.ptp(ranks[used]) == 0:
            continue
        expected = stats.spearmanr(ranks[used], values[used]).statistic
        assert sor(shown / 255, targets, ranks, level) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("chosen", "scores", "expected"),
    [
        ((0, 1, 2, 3), (4, 3, 2, 1), 1),
        ((0, 1, 2, 3), (1, 2, 3, 4), -1),
        ((3, 2, 1, 0), (1, 2, 3, 4), 1),  # the order in which they are given does not matter
        # Ranks 4 3 2 1 against 2 1 0 0: deviations (1.5 .5 -.5 -1.5) and (1.25 .25 -.75 -.75), 3.5 / sqrt(5 · 2.75).
        ((0, 1), (9, 3), 3.5 / np.sqrt(5 * 2.75)),
        ((3,), (1,), -1.5 / np.sqrt(5 * 0.75)),
        ((), (), 0),
        # A spurious one, more salient than all, changes nothing.
        ((-1, 0, 1, 2, 3), (9, 4, 3, 2, 1), 1),
        # Equal scores share the smallest rank: 4 3 2 1 against 1 1 1 1 does not vary.
        ((0, 1, 2, 3), (5, 5, 5, 5), 0),
    ],
)
def test_sa_sor_by_hand(chosen, scores, expected):
    rows = np.concatenate([ROWS, FAR])[list(chosen)]
    assert sa_sor(rows, scores, ROWS, (4, 3, 2, 1)) == pytest.approx(expected)


def test_sa_sor_is_scipys_pearson_of_what_was_matched():
    random = np.random.default_rng(0)
    for _ in range(20):
        found = random.permutation(4)[: random.integers(1, 5)]
        scores, ranks = random.random(len(found)), random.permutation(4) + 1
        listed = np.zeros(4)
        listed[found] = stats.rankdata(scores)
        expected = stats.pearsonr(ranks, listed).statistic
        assert sa_sor(ROWS[found], scores, ROWS, ranks) == pytest.approx(expected)


def test_one_true_object_is_not_used():
    assert np.isnan(sa_sor(ROWS[:1], [1], ROWS[:1], [1]))
    assert np.isnan(sa_sor(ROWS[:0], [], ROWS[:0], []))


def test_a_match_wants_half_and_the_larger_iou_keeps_a_prediction():
    half = ROWS[0] | ROWS[1]  # IoU 0.5 with either
    more = half.copy()
    more[1, :2] = False  # 5 / 8 with the first, 3 / 10 with the second
    assert match_best(half[None], ROWS).tolist() == [0, -1, -1, -1]  # the tie goes to the first
    assert match_best(more[None], ROWS[[1, 0]]).tolist() == [-1, 0]
    assert match_best(more[None], ROWS, threshold=0.63).tolist() == [-1] * 4
    assert match_best(FAR[:0], ROWS).tolist() == [-1] * 4
    # Both targets like the first best (5/8 and 4/5); the one that loses it does not take its second choice (3/5).
    both = np.stack([more, ROWS[0] & (np.arange(5) < 3)])
    assert match_best(both, np.stack([ROWS[0], half])).tolist() == [-1, 0]


def test_scores_of_a_set_skip_photos_and_say_so():
    scores = RankingScores()
    perfect = scores.add(ROWS, (4, 3, 2, 1), ROWS, (40, 30, 20, 10))
    assert perfect == {"sor": 1, "sor_mean": 1, "sa_sor": 1, "mae": 0}
    reverse = scores.add(ROWS, (1, 2, 3, 4), ROWS, (40, 30, 20, 10))
    # Greys 255 229 204 178 against 178 204 229 255, a quarter of the pixels each.
    assert reverse["mae"] == pytest.approx((77 + 25 + 25 + 77) / 4 / 255)
    one = scores.add(ROWS[:1], [1], ROWS[:1], [1])
    assert one["sor"] == 1 and np.isnan(one["sor_mean"]) and np.isnan(one["sa_sor"])
    none = scores.add(FAR[:0], [], ROWS, (4, 3, 2, 1))
    assert np.isnan(none["sor"]) and none["sa_sor"] == 0
    found = scores.result()
    assert (found["sor"], found["sor_photos"]) == (pytest.approx((1 / 3 + 1) / 2), 3)
    assert (found["sor_mean"], found["sor_mean_photos"]) == (0.5, 2)
    assert (found["sa_sor"], found["sa_sor_photos"]) == (0, 3)
    empty = RankingScores()
    empty.add(FAR[:0], [], ROWS, (4, 3, 2, 1))
    assert np.isnan(empty.result()["sor"]) and empty.result()["sor_photos"] == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sor(grey(1, 2, 3, 4), ROWS, (1, 2, 3, 4), level="max"), "level: expected one of mode, mean"),
        (lambda: sor(grey(1, 2, 3), ROWS, (1, 2, 3, 4)), "prediction and targets differ in size"),
        (lambda: sor(grey(1, 2, 3, 4), ROWS, (1, 2, 3)), "targets: expected 4 finite numbers"),
        (lambda: sa_sor(ROWS, (1, 2, 3, np.nan), ROWS, (1, 2, 3, 4)), "predictions: expected 4 finite numbers"),
        (lambda: sa_sor(ROWS[:, :3], (1, 2, 3, 4), ROWS, (1, 2, 3, 4)), "predictions and targets differ in size"),
        (lambda: rank_map(ROWS[0], [1]), r"masks: expected shape \(n, H, W\)"),
        (lambda: RankingScores().result(), "no photo was added"),
    ],
)
def test_what_cannot_be_scored_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_input_is_left_alone():
    shown, ranks = grey(255, 229, 204, 178), np.array([4.0, 3, 2, 1])
    before = [shown.copy(), ROWS.copy(), ranks.copy()]
    sor(shown, ROWS, ranks)
    RankingScores().add(ROWS, ranks, ROWS, ranks)
    for one, other in zip(before, (shown, ROWS, ranks), strict=True):
        np.testing.assert_array_equal(one, other)
