"""Audit of the rewards of Refer: what each pays for known kinds of answers, with a target and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from maskgym.data import Sample
from maskgym.rewards import Reward, Transition, format_objects, parse_objects
from maskgym.rewards.truth import true_objects

FORM = "boxes_points"  # the only one that every published reward scores
REWARDS = ("refer_strict", "instance_iou", "visionreasoner_strict", "visionreasoner", "seg_r1_strict", "seg_r1")
COPIES = 3  # of each object

Maker = Callable[[np.ndarray, np.random.Generator], np.ndarray]

RIGHT = "no target: an empty answer"


def _none(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return truth[:0]


def _copies(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(truth, COPIES, axis=0)


def junk(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a box of a quarter of each side of the image at a random place, bool (1, H, W)."""
    mask = np.zeros((1, *truth.shape[1:]), bool)
    height, width = (max(1, side // 4) for side in truth.shape[1:])
    top, left = rng.integers(0, truth.shape[1] - height + 1), rng.integers(0, truth.shape[2] - width + 1)
    mask[0, top : top + height, left : left + width] = True
    return mask


def _with_junk(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([truth, junk(truth, rng)])


def _corner(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((1, *truth.shape[1:]), bool)
    mask[0, :2, :2] = True
    return mask


ADDED: dict[str, Maker] = {
    "the truth and a junk box": _with_junk,
    f"each object {COPIES} times": _copies,
    "an empty answer": _none,
    "a box in a corner": _corner,
}
ABSENT: dict[str, Maker] = {  # on samples whose targets are removed
    RIGHT: _none,
    "no target: a junk box": junk,
    "no target: a box in a corner": _corner,
}


def rows(
    samples: Iterable[Sample], makers: dict[str, Maker], scorers: Sequence[Reward], seed: int
) -> tuple[int, dict[str, np.ndarray]]:
    """Score each kind of answer on samples with a target, and those of `ABSENT` on the same ones without their targets.

    Args:
        samples: Samples with one image each; those without a target are scored by the answers of `ABSENT` alone.
        makers: Functions from the ground truth, bool (n, H, W), to the masks of an answer.
        scorers: Rewards.
        seed: Seed of what is drawn.

    Returns:
        The number of samples, and the mean of each reward for each kind of answer; NaN without a sample for it.
    """
    malformed = {"the truth, without a list": _unlisted, "the truth, without a text": lambda text: ""}
    values: dict[str, list[np.ndarray]] = {name: [] for name in (*makers, *malformed, *ABSENT)}
    count = 0
    for count, sample in enumerate(samples, start=1):
        rng = np.random.default_rng([seed, count])
        truth, absent = sample.masks[0], replace(sample, masks=(sample.masks[0][:0],))
        played = {name: answered(absent, make(truth, rng)) for name, make in ABSENT.items()}
        if len(truth):
            played |= {name: answered(sample, make(truth, rng)) for name, make in makers.items()}
            right = answered(sample, truth)
            played |= {name: _rewritten(right, change) for name, change in malformed.items()}
        for name, transition in played.items():
            values[name].append(np.array([scorer([transition])[0][0] for scorer in scorers]))
    blank = np.full((1, len(scorers)), np.nan)
    return count, {name: np.mean(found or blank, axis=0) for name, found in values.items()}


def answered(sample: Sample, masks: np.ndarray) -> Transition:
    """Build the transition of an answer whose objects have these masks, their boxes and their deepest points."""
    masks = masks[masks.any(axis=(1, 2))]
    # Whole numbers, as models write them: to VisionReasoner a decimal point ends a sentence.
    objects = tuple(
        replace(found, points=tuple((x // 1, y // 1) for x, y in found.points)) for found in true_objects(masks)
    )
    text = format_objects("", objects, FORM)
    size = sample.images[0].shape[:2]
    answer = parse_objects(text, FORM)
    return Transition("refer", sample, text, (masks,), answer=answer, objects=objects, shown=(size[0], size[1]))


def _rewritten(transition: Transition, change: Callable[[str], str]) -> Transition:
    """Change the text of a transition to a malformed one, which keeps the masks."""
    text = change(str(transition.action))
    return replace(transition, action=text, answer=parse_objects(text, FORM), objects=())


def _unlisted(text: str) -> str:
    """Write the objects of an answer without the list around them."""
    return text.replace("<answer>[{", "<answer>{").replace("}]</answer>", "}</answer>")
