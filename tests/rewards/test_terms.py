"""Terms against values worked out by hand, and the gaming of IASM as published."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.metrics import s_measure
from maskgym.rewards import (
    IASM,
    SASOR,
    Click,
    Correctness,
    DeltaIoU,
    ForegroundHit,
    Format,
    IoU,
    OneMinusMAE,
    Ranked,
    SMeasure,
    Term,
    Transition,
    Unscored,
    WeightedSum,
    make,
    parse,
)

TERMS = [SMeasure(), IoU(), IASM(), IASM(published=True), Correctness(), Correctness(published=True), OneMinusMAE()]
MALFORMED = "<think>a</think><answer>a thing</answer>"
WELL_FORMED = "<think>a</think><answer><ins>a thing</ins></answer>"


def mask(*rows: str) -> np.ndarray:
    """Draw a bool mask: '#' is foreground."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def transition(
    masks: list[list[np.ndarray]],
    truth: list[list[np.ndarray]],
    void: list[np.ndarray] | None = None,
    task: str = "sis",
    text: str | None = None,
) -> Transition:
    """Return a transition from lists of masks, one list an image; a truth without any mask is 4 × 4."""
    shape = next((rows[0].shape for rows in truth if rows), (4, 4))
    predicted, true = (tuple(np.array(rows, bool).reshape(-1, *shape) for rows in group) for group in (masks, truth))
    images = tuple(np.zeros((*rows.shape[1:], 3), np.uint8) for rows in true)
    sample = Sample("a-key", images, true, void=None if void is None else tuple(void))
    return Transition(task, sample, text, predicted, answer=None if text is None else parse(text, task))


DIAGONAL = np.eye(4, dtype=bool)
BLANK = np.zeros((4, 4), bool)
TOP = mask("####", "....", "....", "....")
BOTTOM = mask("....", "....", "....", "####")
HALF = mask("##..", "....", "....", "....")
SALTIRE = np.eye(8, dtype=bool) | np.eye(8, dtype=bool)[::-1]  # a quarter of its image, and some of each quadrant


@pytest.mark.parametrize(
    ("term", "masks", "truth", "expected"),
    [
        # Object part 0.75 · 1 (the background is right), region part 0 (every block misses some): half of 0.75.
        (SMeasure(), [[np.zeros_like(SALTIRE)]], [[SALTIRE]], 0.375),
        (SMeasure(), [[]], [[SALTIRE]], 0.375),
        (SMeasure(), [[TOP, BOTTOM]], [[TOP | BOTTOM]], 1.0),
        (SMeasure(), [[TOP | BOTTOM]], [[TOP, BOTTOM]], 1.0),
        # No common object in the first image: 1 - 4/16. The second is right. Mean over the group.
        (SMeasure(), [[TOP], [TOP]], [[], [TOP]], 0.875),
        (IoU(), [[HALF]], [[TOP]], 0.5),
        (IoU(), [[HALF, BOTTOM]], [[TOP]], 0.25),
        (IoU(), [[HALF], [TOP]], [[TOP], [TOP]], 0.75),
        (IoU(), [[BLANK], [HALF], []], [[], [], [TOP]], 1 / 3),
        (OneMinusMAE(), [[HALF, BOTTOM]], [[TOP]], 1 - 6 / 16),
        (OneMinusMAE(), [[]], [[TOP]], 0.75),
        (IASM(), [[BOTTOM, TOP]], [[TOP, BOTTOM]], 1.0),
        (IASM(), [[TOP]], [[TOP, BOTTOM]], 0.5),
        (IASM(), [[TOP, BOTTOM, BLANK, HALF]], [[TOP, BOTTOM]], 0.5),
        (IASM(), [[BLANK]], [[DIAGONAL]], 0.0),
        # Against an empty mask: a missed instance is the blank prediction above, a spurious one 1 minus its share.
        (IASM(published=True), [[]], [[SALTIRE]], 0.375),
        (IASM(published=True), [[np.zeros_like(SALTIRE)]], [[SALTIRE]], (0.375 + 1) / 2),
        (IASM(published=True), [[TOP, HALF]], [[TOP]], (1 + 14 / 16) / 2),
    ],
)
def test_values_by_hand(term: Term, masks: list, truth: list, expected: float) -> None:
    assert term(transition(masks, truth)) == pytest.approx(expected, abs=1e-12)


def test_correctness_follows_the_task() -> None:
    arguments = [[TOP, BLANK]], [[TOP]]
    assert Correctness()(transition(*arguments, task="sod")) == 1
    assert Correctness()(transition(*arguments, task="cosod")) == 1
    assert Correctness()(transition(*arguments, task="sis")) == 0.5
    assert Correctness(published=True)(transition(*arguments, task="sis")) == 1


@pytest.mark.parametrize("term", [IASM, Correctness])
def test_threshold_decides_what_is_matched(term: type) -> None:
    half_right = transition([[HALF]], [[TOP]])  # IoU 0.5
    assert term(threshold=0.5)(half_right) > 0.5
    assert term(threshold=0.51)(half_right) == 0
    assert term()(half_right) == term(threshold=0.1)(half_right)


@pytest.mark.parametrize("term", TERMS)
def test_a_malformed_answer_earns_nothing_for_right_masks(term: Term) -> None:
    assert term(transition([[TOP]], [[TOP]], text=MALFORMED)) == 0
    assert term(transition([[TOP]], [[TOP]], text=WELL_FORMED)) == 1
    assert term(transition([[TOP]], [[TOP]])) == 1  # the action is a mask


def test_a_broken_think_block_leaves_the_masks_score() -> None:
    assert IoU()(transition([[TOP]], [[TOP]], text=WELL_FORMED.removeprefix("<think>"))) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [(WELL_FORMED, 1), (MALFORMED, 0.5), (WELL_FORMED.removeprefix("<think>"), 0.5), ("", 0)],
)
def test_format_has_two_halves(text: str, expected: float) -> None:
    assert Format()(transition([[]], [[TOP]], text=text)) == expected


def test_format_wants_a_text() -> None:
    with pytest.raises(UserError, match="a-key"):
        Format()(transition([[TOP]], [[TOP]]))


@pytest.mark.parametrize("term", TERMS)
def test_void_pixels_change_nothing(term: Term) -> None:
    void = mask("....", "....", "####", "####")
    right = transition([[TOP]], [[TOP]], [void])
    assert term(right) == 1
    assert term(transition([[TOP | BOTTOM]], [[TOP]], [void])) == 1
    assert term(transition([[TOP]], [[TOP | BOTTOM]], [void])) == 1
    assert term(transition([[TOP, BOTTOM]], [[TOP]], [void])) == 1
    assert term(transition([[TOP]], [[TOP, BOTTOM]], [void])) == 1
    assert term(transition([[TOP | BOTTOM]], [[TOP]], [BLANK])) < 1


def test_void_leaves_an_empty_mask_that_was_predicted() -> None:
    void = mask("....", "....", "....", "####")
    assert IASM()(transition([[TOP, BLANK]], [[TOP]], [void])) == 0.5


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(
    ("truth", "void", "text"),
    [
        ([[TOP, BLANK]], None, None),
        ([[TOP]], [~BLANK], None),
        ([[TOP, BLANK]], None, MALFORMED),
        ([], None, None),
    ],
    ids=["empty mask", "all void", "empty mask, malformed answer", "no image"],
)
def test_a_sample_that_cannot_be_scored_is_named(term: Term, truth: list, void: list | None, text: str | None) -> None:
    with pytest.raises(UserError, match="a-key"):
        term(transition([[TOP] for _ in truth], truth, void, text=text))


def test_iasm_wants_an_instance() -> None:
    with pytest.raises(UserError, match="a-key.*no instance"):
        IASM()(transition([[TOP]], [[]]))
    with pytest.raises(UserError, match="a-key.*no instance"):
        IASM()(transition([[TOP]], [[TOP]], [TOP]))


@pytest.mark.parametrize("term", [*TERMS, Format()])
def test_terms_survive_pickling(term: Term) -> None:
    step = transition([[HALF]], [[TOP]], text=WELL_FORMED)
    again = pickle.loads(pickle.dumps(term))
    assert (again.name, again.range, again(step)) == (term.name, term.range, term(step))


def test_names() -> None:
    names = [term.name for term in (*TERMS, Format())]
    assert names == [
        "s_measure",
        "iou",
        "iasm",
        "iasm_published",
        "correctness",
        "correctness",
        "one_minus_mae",
        "format",
    ]


def test_input_is_left_alone() -> None:
    step = transition([[HALF]], [[TOP, BOTTOM]], [DIAGONAL])
    before = pickle.dumps(step)
    for term in TERMS:
        term(step)
    assert pickle.dumps(step) == before


class TestGaming:
    """IASM as published pays for saying more; the strict form does not."""

    truth = np.zeros((2, 64, 64), bool)
    truth[0, 10:30, 10:30] = truth[1, 36:56, 36:56] = True
    imprecise = np.roll(truth, (4, 4), axis=(1, 2))
    specks = np.zeros((20, 64, 64), bool)
    specks[np.arange(20), 62, np.arange(20) * 3] = specks[np.arange(20), 62, np.arange(20) * 3 + 1] = True
    none = np.zeros((10, 64, 64), bool)

    def earn(self, masks: np.ndarray, published: bool) -> float:
        return IASM(published=published)(transition([list(masks)], [list(self.truth)]))

    def test_published_pays_for_specks_and_for_empty_masks(self) -> None:
        honest = self.earn(self.imprecise, published=True)
        assert 0.6 < honest < 0.85
        assert self.earn(np.concatenate([self.imprecise, self.specks]), published=True) > 0.95
        assert self.earn(self.specks, published=True) > 0.9
        assert self.earn(self.none, published=True) > 0.9
        assert 0.4 < self.earn(self.none[:0], published=True) < 0.5

    def test_strict_pays_for_neither(self) -> None:
        honest = self.earn(self.imprecise, published=False)
        assert honest == self.earn(self.imprecise, published=True)  # all is matched
        padded = self.earn(np.concatenate([self.imprecise, self.specks]), published=False)
        assert padded == pytest.approx(honest * 2 / 22)
        for masks in (self.specks, self.none, self.none[:0]):
            assert self.earn(masks, published=False) == 0


def click(x: float, y: float, label: int = 1, **masks) -> Transition:
    """Return a click at a 4 × 4 image whose top row is the truth."""
    step = transition([[masks.get("after", BLANK)]], [[TOP]])
    before = masks.get("before")
    return replace(step, action=Click(x, y, label), previous_masks=None if before is None else (before[None],))


@pytest.mark.parametrize(
    ("x", "y", "label", "expected"), [(0.5, 0.9, 1, 1), (3.9, 0, 0, 1), (0.5, 1.0, 1, -1), (2, 3.5, 0, -1)]
)
def test_a_click_hits_the_truth_or_not_whatever_its_label(x, y, label, expected):
    assert ForegroundHit()(click(x, y, label)) == expected


@pytest.mark.parametrize(("x", "y", "expected"), [(0, 0, 0), (1, 0, 1), (0, 3, 0), (1, 3, -1)])
def test_a_click_on_void_is_no_hit_and_no_miss_be_it_on_a_mask_or_beside(x, y, expected):
    left = np.zeros((4, 4), bool)
    left[:, 0] = True
    step = transition([[BLANK]], [[TOP]], [left])
    assert ForegroundHit()(replace(step, action=Click(x + 0.5, y + 0.5, 1))) == expected


def test_a_text_is_no_click():
    with pytest.raises(UserError, match="is no click"):
        ForegroundHit()(transition([[TOP]], [[TOP]], text=WELL_FORMED))


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(None, HALF, 0.5), (HALF, TOP, 0.5), (TOP, HALF, -0.5), (TOP, BOTTOM, -1)]
)
def test_what_a_click_added(before, after, expected):
    assert DeltaIoU()(click(0, 0, before=before, after=after)) == pytest.approx(expected)


def test_sums_over_an_episode_have_ranges_of_their_own():
    """Steps of IoU cancel, and a ranking is scored once: the other terms are paid at every step."""
    assert ForegroundHit().return_range(15) == (-15, 15) and IoU().return_range(15) == (0, 15)
    assert DeltaIoU().return_range(15) == (-1, 1) == SASOR().return_range(15)
    both = WeightedSum([DeltaIoU(), ForegroundHit()], [2.0, -0.5])
    assert both.return_range(4) == (-2 - 2, 2 + 2) and both.range == (-2.5, 2.5)


def soft(values: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> Transition:
    """Build the transition of a map float (H, W)."""
    step = transition([[truth]], [[truth]], None if void is None else [void])
    return replace(step, masks=(values[None].astype(np.float32),))


def test_soft_maps_are_scored_as_they_are_where_the_measure_is_defined_on_them():
    values = np.where(TOP, 0.75, 0.25)
    assert OneMinusMAE()(soft(values, TOP)) == pytest.approx(0.75)
    assert SMeasure()(soft(values, TOP)) == pytest.approx(s_measure(values, TOP)) != SMeasure()(soft(1.0 * TOP, TOP))
    assert IoU()(soft(values, TOP)) == 1 and IASM()(soft(values, TOP)) == pytest.approx(1)
    assert IoU()(soft(values - 0.25, TOP)) == 0  # 0.5 is not above 0.5
    for term in TERMS:
        assert term(soft(1.0 * HALF, TOP)) == pytest.approx(term(transition([[HALF]], [[TOP]])))


def test_void_is_background_of_a_soft_map_too():
    values = np.where(TOP, 1.0, 0.4)
    assert OneMinusMAE()(soft(values, TOP, ~TOP & ~BOTTOM)) == pytest.approx(1 - 0.4 * 4 / 16)
    assert SMeasure()(soft(np.where(TOP, 1, 0.4), TOP, ~TOP)) == pytest.approx(1)
    assert IASM()(soft(np.where(BOTTOM, 1.0, 0), TOP | BOTTOM, BOTTOM)) == 0  # nothing is left of the prediction


@pytest.mark.parametrize("term", TERMS)
def test_what_is_unscored_earns_nothing(term):
    step = transition([[TOP]], [[TOP]])
    assert term(step) == 1 and term(replace(step, action=Unscored())) == 0


def ranked(order: tuple[int, ...]) -> Transition:
    """Return the end of an episode that detected these of three objects, in this order."""
    targets = np.stack([TOP, BOTTOM, mask("....", "####", "....", "....")])
    step = replace(transition([[TOP]], [[TOP]]), task="ranking")
    return replace(step, ranked=Ranked(targets[list(order)], targets, np.array([30.0, 20.0, 10.0])))


@pytest.mark.parametrize(
    ("order", "expected"), [((0, 1, 2), 1), ((2, 1, 0), -1), ((0,), 3**0.5 / 2), ((), 0), ((1, 0, 2), 0.5)]
)
def test_the_order_of_detection_is_scored_at_the_end(order, expected):
    assert SASOR()(ranked(order)) == pytest.approx(expected)
    totals, terms = make("ranking", sa_sor_weight=0.5)([ranked(order), replace(ranked(order), ranked=None)])
    assert totals == pytest.approx([1 + 0.5 * expected, 1]) and list(terms) == ["s_measure", "sa_sor"]


def test_a_ranking_of_one_object_and_what_is_no_ranking():
    step = ranked((0,))
    alone = Ranked(step.ranked.masks, step.ranked.targets[:1], step.ranked.ranks[:1])
    assert SASOR()(replace(step, ranked=alone)) == 0
    with pytest.raises(UserError, match="sa_sor scores a ranking: sample 'a-key' is one of sis"):
        SASOR()(transition([[TOP]], [[TOP]]))
    with pytest.raises(UserError, match="sa_sor_weight=-1: expected a number, at least 0"):
        make("ranking", sa_sor_weight=-1)
    assert make("ranking", sa_sor_weight=0.5).range == (-0.5, 1.5)
