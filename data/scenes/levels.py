"""Levels: what makes the scenes of most tasks easy or hard, and how annotators of `sod` and `sis` write."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

from maskgym.aliases import Settings
from maskgym.errors import UserError

CELLS = 9  # places of objects in a scene
# Tasks whose scenes are drawn otherwise have no levels.
WITHOUT = ("cosod", "need_fine", "refer")


@dataclass(frozen=True)
class Level:
    """Settings of scenes and their annotators. Shares are probabilities, which sum to 1.

    Attributes:
        bright: Share of scenes with 1, 2, … bright objects, which are salient.
        pale: Share of scenes with 0, 1, … pale ones, which are not; at most nine objects in all.
        alike: Probability that an object takes the shape of an earlier one.
        twins: Probability that such an object takes its colour too.
        absent: Probability that a need asks for an object that is not there, so that the closest one is meant.
        styles: Share of each style of annotator, in the order of `STYLES`.
        unseen: Name of the level that the held-out splits show in place of this; empty for the same.

    Raises:
        UserError: If shares do not sum to 1, a probability is none, or there is no room for the objects.
    """

    bright: tuple[float, ...] = (0.2, 0.35, 0.3, 0.15)
    pale: tuple[float, ...] = (0.25, 0.45, 0.3)
    alike: float = 0.45
    twins: float = 0.4
    absent: float = 0.2
    styles: tuple[float, ...] = (0.15, 0.20, 0.30, 0.15, 0.20)
    unseen: str = ""

    def __post_init__(self) -> None:
        for name, count in (("bright", None), ("pale", None), ("styles", len(Level.styles))):
            shares = getattr(self, name)
            right = isinstance(shares, tuple) and (count is None or len(shares) == count)
            if not right or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-9:
                told = f"{count} shares" if count else "shares"
                raise UserError(f"data.knobs.{name}={shares}: expected a list of {told}, which sum to 1")
        for name in ("alike", "twins", "absent"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.knobs.{name}={getattr(self, name)}: expected a probability, in [0, 1]")
        if len(self.bright) + len(self.pale) - 1 > CELLS:
            raise UserError(f"data.knobs: bright={self.bright}, pale={self.pale}: expected at most {CELLS} objects")


_TERSE = (0.25, 0.45, 0.26, 0.02, 0.02)
LEVELS = {
    "easy": Level(),
    "medium": Level(bright=(0.0, 0.2, 0.4, 0.4), pale=(0.0, 0.5, 0.5), alike=0.7, twins=0.6),
    "hard": Level(bright=(0, 0, 0.25, 0.35, 0.25, 0.15), pale=(0, 0.4, 0.4, 0.2), alike=0.85, twins=0.8, styles=_TERSE),
    "discovery": Level(alike=0.9, twins=0.9, styles=_TERSE),
    "credit": Level(bright=(0, 0, 0, 0, 0.3, 0.4, 0.3), pale=(1,), alike=0.6, twins=0.5),
    "mixed": Level(bright=(0.25, 0.25, 0, 0, 0, 0.25, 0.25), pale=(1,), alike=0.6, twins=0.5),
    "closest": Level(absent=1.0),
    "few": Level(bright=(0.5, 0.5), pale=(0.5, 0.5), alike=0.2, twins=0.1),
    "shift": Level(bright=(0.5, 0.5), pale=(0.5, 0.5), alike=0.2, twins=0.1, unseen="hard"),
}


def level_of(name: str, knobs: Settings, task: str, split: str) -> Level:
    """Look up what a split of a level shows, with knobs, fields of `Level`, changed.

    Raises:
        UserError: If there is no such level or knob, or the task has none.
    """
    if name not in LEVELS:
        close = difflib.get_close_matches(str(name), LEVELS, n=1, cutoff=0.0)
        raise UserError(f"data.level={name}: expected one of {', '.join(dict.fromkeys([*close, *LEVELS]))}")
    if task in WITHOUT and (name != "easy" or knobs):
        raise UserError(f"data.level={name}: the scenes of task {task} have no levels: expected easy, without knobs")
    level = LEVELS[name]
    if split != "train" and level.unseen:
        level = LEVELS[level.unseen]
    known = [field.name for field in fields(Level)]
    for knob in knobs:
        if knob not in known:
            raise UserError(f"data.knobs.{knob}: expected one of {', '.join(known)}")
    changed: dict[str, Any] = {knob: tuple(v) if isinstance(v, list) else v for knob, v in knobs.items()}
    return replace(level, **changed)
