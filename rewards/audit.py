"""Audit of rewards: how each reward scores degenerate answers.

A policy learns whatever a reward pays for. Each strategy here is an answer of a known kind, turned into predicted masks
without a segmenter, so that the audit runs on any data set. A reward is trustworthy if every bad answer earns less than
an honest, imprecise one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.metrics import PreparedMask
from maskgym.rewards import Answer, Reward, Transition, audit_refer, format_answer, make, parse
from maskgym.rewards.terms import union

_REGIONS = ("s_measure", "iou", "format", "saliency_r1")  # saliency_strict differs on instances only
REWARDS = {
    "sod": _REGIONS,
    "sis": ("s_measure", "iou", "iasm", "iasm_published", "format", "saliency_strict", "saliency_r1"),
    "cosod": _REGIONS,
    "refer": audit_refer.REWARDS,
}
SPECKS = 20
REPEATS = 8
EMPTY_MASKS = 10
GRID = 4  # cells per side


@dataclass(frozen=True)
class Table:
    """Mean score of each strategy under each reward.

    Attributes:
        task: ``sod``, ``sis``, ``cosod`` or ``refer``.
        samples: Number of samples.
        strategies: Row names.
        rewards: Column names.
        values: float64 (rows, columns).
    """

    task: str
    samples: int
    strategies: tuple[str, ...]
    rewards: tuple[str, ...]
    values: np.ndarray

    def __str__(self) -> str:
        """Format the table as aligned Markdown; a star marks a bad answer that earns more than the honest one.

        Without a target, the empty answer takes the place of the honest one.
        """
        rows = [(f"{self.task}, {self.samples} samples", *self.rewards)]
        for name, values in zip(self.strategies, self.values, strict=True):
            honest = self.values[self.strategies.index(audit_refer.RIGHT if name in audit_refer.ABSENT else HONEST)]
            gains = (values > honest + 1e-9) & (name not in SOUND)
            rows.append(
                (name, *(f"{value:.3f}{'*' if gain else ' '}" for value, gain in zip(values, gains, strict=True)))
            )
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in rows]
        lines.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def audit(samples: Iterable[Sample], task: str, rewards: Sequence[str] | None = None, seed: int = 0) -> Table:
    """Score every strategy on the samples under each reward.

    Every answer is well-formed unless its name says otherwise. ``cosod`` has only the strategies with one expression;
    ``refer`` also scores answers to the same samples with their targets removed.

    Args:
        samples: Samples of one task, at least one; of ``refer``, at least one with a target.
        task: ``sod``, ``sis``, ``cosod`` or ``refer``.
        rewards: Registered names, made without arguments; None selects those of `REWARDS`.
        seed: Seed of specks and nonsense.

    Raises:
        UserError: If the task or a reward is unknown, there is no sample, or one cannot be scored.
    """
    if task not in REWARDS:
        raise UserError(f"unknown task '{task}': expected one of {', '.join(REWARDS)}")
    rewards = REWARDS[task] if rewards is None else tuple(rewards)
    scorers = [make(name) for name in rewards]
    if task == "refer":
        return _audit_refer(samples, rewards, scorers, seed)
    strategies = ONE if task == "cosod" else ONE | SEVERAL
    names = (*strategies, *MALFORMED)
    totals, count = np.zeros((len(names), len(scorers))), 0
    for count, sample in enumerate(samples, start=1):
        rng = np.random.default_rng([seed, count])
        transitions = [_well_formed(sample, task, strategy, rng) for strategy in strategies.values()]
        transitions += [_transition(sample, task, sample.masks, parse(text, task)) for text in MALFORMED.values()]
        totals += np.stack([scorer(transitions)[0] for scorer in scorers], axis=1)
    if not count:
        raise UserError(f"the audit of {task} got no sample: expected at least one")
    return Table(task, count, names, rewards, totals / count)


def _audit_refer(samples: Iterable[Sample], names: Sequence[str], scorers: Sequence[Reward], seed: int) -> Table:
    """Score the answers in JSON; the masks of those that other tasks have too are made in the same way."""
    shared = {name: ONE[name] for name in (*tuple(ONE)[:3], "everything", "one box around the truth")}
    shared |= {"well-formed nonsense": _nonsense, "imprecise and a junk box": _imprecise_and_junk}
    count, rows = audit_refer.rows(samples, shared | audit_refer.ADDED, scorers, seed)
    if not count or np.isnan(rows[HONEST]).any():
        raise UserError("the audit of refer got no sample with a target: expected at least one")
    return Table("refer", count, tuple(rows), tuple(names), np.stack(list(rows.values())))


Strategy = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _well_formed(sample: Sample, task: str, strategy: Strategy, rng: np.random.Generator) -> Transition:
    """Build the transition of a strategy: a well-formed answer with one expression per mask."""
    marker = "[semantic] " if task == "cosod" else ""
    # A group has one expression, hence one mask per image. Any answer has at least one, perhaps of nothing.
    merged = [union(masks)[None] if marker or not len(masks) else masks for masks in sample.masks]
    masks = tuple(strategy(truth, rng) for truth in merged)
    expressions = [f"{marker}thing"] * len(masks[0])
    return _transition(sample, task, masks, parse(format_answer("", expressions, task), task))


def _transition(sample: Sample, task: str, masks: tuple[np.ndarray, ...], answer: Answer) -> Transition:
    return Transition(task=task, sample=sample, action=answer.text, masks=masks, answer=answer)


# A strategy maps the ground truth of an image, bool (n, H, W), to predicted masks, bool (m, H, W).


def _truth(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return truth


def _dilated(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dilate each mask by 2 % of the shorter side of the image, at least a pixel, to the four neighbours per step."""
    grown = truth
    for _ in range(max(1, round(0.02 * min(truth.shape[1:])))):
        padded = np.pad(grown, ((0, 0), (1, 1), (1, 1)))
        vertical, horizontal = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1], padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
        grown = grown | vertical | horizontal
    return grown


def _imprecise(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift each mask down and right by a quarter of its box; pixels outside the image are lost."""
    shifted = np.zeros_like(truth)
    for mask, target in zip(shifted, truth, strict=True):
        if target.any():
            rows, columns = PreparedMask.of(target).box
            down, right = (rows.stop - rows.start) // 4, (columns.stop - columns.start) // 4
            mask[down:, right:] = target[: target.shape[0] - down, : target.shape[1] - right]
    return shifted


def _nothing(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((1, *truth.shape[1:]), bool)


def _everything(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ones((1, *truth.shape[1:]), bool)


def _tight_box(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mask = _nothing(truth, rng)
    covered = union(truth)
    if covered.any():
        mask[0][PreparedMask.of(covered).box] = True
    return mask


def _centre_box(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mask = _nothing(truth, rng)
    height, width = truth.shape[1:]
    mask[0, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def _nonsense(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many boxes as there are instances, each between two random corners."""
    masks = np.zeros((max(1, len(truth)), *truth.shape[1:]), bool)
    for mask in masks:
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in mask.shape)
        mask[top : bottom + 1, left : right + 1] = True
    return masks


def _repeated(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(union(truth)[None], REPEATS, axis=0)


def _grid(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = (np.arange(side) * GRID // side for side in truth.shape[1:])
    cells = rows[:, None] * GRID + columns
    return cells == np.arange(GRID * GRID)[:, None, None]


def _specks(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw specks of two adjacent pixels at random places."""
    masks = np.zeros((SPECKS, *truth.shape[1:]), bool)
    for mask in masks:
        row, column = rng.integers(0, mask.shape[0]), rng.integers(0, max(1, mask.shape[1] - 1))
        mask[row, column : column + 2] = True
    return masks


def _imprecise_and_specks(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([_imprecise(truth, rng), _specks(truth, rng)])


def _imprecise_and_junk(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([_imprecise(truth, rng), audit_refer.junk(truth, rng)])


def _empty_masks(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((EMPTY_MASKS, *truth.shape[1:]), bool)


HONEST = "imprecise (shifted by a quarter)"
ONE: dict[str, Strategy] = {
    "the truth": _truth,
    "the truth, dilated": _dilated,
    HONEST: _imprecise,
    "nothing (one empty mask)": _nothing,
    "everything": _everything,
    "one box around the truth": _tight_box,
    "one box in the centre": _centre_box,
    "well-formed nonsense": _nonsense,
}
SOUND = (*tuple(ONE)[:3], audit_refer.RIGHT)  # answers that are not bad
SEVERAL: dict[str, Strategy] = {
    f"the union, {REPEATS} times": _repeated,
    f"a grid of {GRID} × {GRID} cells": _grid,
    f"imprecise and {SPECKS} specks": _imprecise_and_specks,
    f"{SPECKS} specks alone": _specks,
    f"{EMPTY_MASKS} empty masks": _empty_masks,
}
MALFORMED = {  # with perfect masks
    "the truth, without tags": "<think></think><answer>a thing</answer>",
    "the truth, without a text": "",
}
