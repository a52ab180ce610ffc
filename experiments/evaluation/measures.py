"""The table of measures: name, direction, range and what each needs. Every comparison reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError


@dataclass(frozen=True)
class Measure:
    """A number that evaluations report.

    Attributes:
        name: Name in ``results.json``, without the task's prefix.
        title: Name in tables.
        direction: 1 if higher values are better, -1 if lower values are better, 0 if neither is.
        range: Lowest and highest value.
        needs: What it is computed from: ``reward``, ``text`` (answers in words), ``clicks``, ``masks`` (one mask or map
            per sample), ``instances``, ``ranks`` or ``classes``.
    """

    name: str
    title: str
    direction: Literal[-1, 0, 1] = 1
    range: tuple[float, float] = (0.0, 1.0)
    needs: Literal["reward", "text", "clicks", "masks", "instances", "ranks", "classes"] = "masks"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.direction > 0

    @property
    def arrow(self) -> str:
        """Arrow of the better direction, empty if there is none."""
        return {1: "↑", -1: "↓", 0: ""}[self.direction]


_TABLE = (
    Measure("reward", "reward", range=(-math.inf, math.inf), needs="reward"),
    Measure("s_measure", "S"),
    Measure("e_mean", "mean E"),
    Measure("e_max", "max E"),
    Measure("e_adaptive", "adaptive E"),
    Measure("f_mean", "mean F"),
    Measure("f_max", "max F"),
    Measure("f_adaptive", "adaptive F"),
    Measure("weighted_f", "weighted F"),
    Measure("mae", "MAE", -1),
    Measure("iou", "IoU"),
    Measure("ber_mean", "BER", -1),
    Measure("ber_pooled", "pooled BER", -1),
    Measure("miou", "mIoU"),
    Measure("oiou", "oIoU"),
    Measure("n_acc", "N-acc"),
    Measure("t_acc", "T-acc"),
    Measure("instance_iou", "IoU of instances", needs="instances"),
    Measure("iasm", "IASM", needs="instances"),
    Measure("iasm_published", "IASM as published", needs="instances"),
    Measure("ap50", "AP50", needs="instances"),
    Measure("ap70", "AP70", needs="instances"),
    Measure("sor", "SOR", needs="ranks"),
    Measure("sor_mean", "mean SOR", needs="ranks"),
    Measure("sa_sor", "SA-SOR", range=(-1.0, 1.0), needs="ranks"),
    Measure("found", "objects found", range=(0.0, math.inf), needs="ranks"),
    Measure("steps", "steps", 0, (1.0, math.inf), "ranks"),
    Measure("class_iou", "mIoU of classes", needs="classes"),
    Measure("noc85", "NoC@85", -1, (1.0, math.inf), "clicks"),
    Measure("noc90", "NoC@90", -1, (1.0, math.inf), "clicks"),
    Measure("repeated", "repeated clicks", -1, needs="clicks"),
    Measure("format", "form", needs="text"),
    Measure("expressions", "expressions", 0, (0.0, math.inf), "text"),
    Measure("characters", "characters", 0, (0.0, math.inf), "text"),
)
MEASURES = {measure.name: measure for measure in _TABLE}
# Main measure of each task, besides the reward.
MAIN = {
    **{"sis": "iasm", "refer": "instance_iou", "sod": "s_measure", "cosod": "s_measure", "point_prompt": "iou"},
    **{"user_need": "s_measure", "user_need_point": "iou", "ranking": "sa_sor"},
}

AVERAGE_PRECISION = ("ap50", "ap70")
AP_RULE = ("average_precision", "equal scores jointly")  # field and value in results; older ones lack it


def measure(name: str) -> Measure:
    """Look up a measure; a name may carry a task's prefix, as ``sis/iasm``.

    A name outside the table is a term of a reward, of which more is better, or one of a family: ``iou@5``, ``p@0.5``,
    ``class_iou/dog``; ``sor_photos`` and ``sa_sor_photos`` are counts.
    """
    if name in MEASURES:
        return MEASURES[name]
    task, _, last = name.rpartition("/")
    if task == "class_iou":
        return Measure(name, f"IoU of {last}", needs="classes")
    if last in MEASURES:
        return MEASURES[last]
    if last.endswith("_photos"):
        return Measure(last, last.replace("_", " "), 0, (0.0, math.inf), "ranks")
    if found := re.fullmatch(r"iou@(\d+)", last):
        return Measure(last, f"IoU after {found[1]} clicks", needs="clicks")
    if found := re.fullmatch(r"p@(0\.\d)", last):
        return Measure(last, f"P@{found[1]}")
    return Measure(last, last, range=(-math.inf, math.inf), needs="reward")


def class_of(name: str) -> str:
    """Select the class in the name of a measure of one class, as ``/dog`` of ``class_iou/dog``; else empty."""
    return name.removeprefix(OF_CLASSES) if name.startswith(f"{OF_CLASSES}/") else ""


def is_average_precision(name: str) -> bool:
    """Check whether a measure, perhaps with a task's prefix, is average precision."""
    return name.rpartition("/")[2] in AVERAGE_PRECISION


def older_notes(results: Sequence[JsonObject]) -> list[str]:
    """Say whether average precision in results is of the older rule, which handled equal scores in their order."""
    of_it = [found for found in results if any(map(is_average_precision, found["after"]))]
    older = sum(found.get(AP_RULE[0]) != AP_RULE[1] for found in of_it)
    if not older:
        return []
    which = "the runs" if older == len(of_it) else f"{older} of {len(of_it)} runs"
    return [
        f"warning: AP50 and AP70 of {which} are of the older rule for equal scores: compare them with each other only"
    ]


def main_of(env: str, names: Iterable[str]) -> list[str]:
    """Select the reward and the main measure of each task from the names of scores.

    Args:
        env: Name of the environment, and of its task if there is one.
        names: Names as in ``results.json``.
    """
    split = [(name, *name.rpartition("/")[::2]) for name in names]
    return [name for name, task, last in split if last in ("reward", MAIN.get(task or env, "reward"))]


OF_CLASSES = "class_iou"  # a set has that of each of its classes too, as class_iou/dog
CLICKS_SHOWN = (1, 5, 10, 15, 20)  # numbers of clicks after which the IoU is reported
PIXELS = (  # of any mask or map, so of baselines too
    *("mae", "f_mean", "f_max", "f_adaptive", "e_mean", "e_max", "e_adaptive", "ber_mean", "ber_pooled", "weighted_f"),
    *("s_measure", "iou"),
)
_PIXELS = ("reward", *PIXELS)
_TEXT = (*_PIXELS, "format", "expressions", "characters")
_REFERRING = ("miou", "oiou", "p@0.5", "p@0.6", "p@0.7", "p@0.8", "p@0.9", "n_acc", "t_acc")
_CLICKS = (*_PIXELS, "repeated", "noc85", "noc90")
_RANKS = ("reward", "steps", "found", "iou", "mae", "sor", "sor_mean", "sa_sor")
_WITH_TERMS = ("sod", "sis", "cosod", "refer", "user_need")  # tasks whose evaluation reports the terms of the reward
# What evaluations of our own tasks report.
_OF_TASKS: dict[str, tuple[str, ...]] = {
    **{"sod": _TEXT, "cosod": _TEXT, "sis": (*_TEXT, "iasm", "iasm_published", "ap50", "ap70")},
    "refer": (*_TEXT, "instance_iou", *_REFERRING),
    **{"point_prompt": _CLICKS, "user_need_point": (*_CLICKS, *_REFERRING)},
    **{"user_need": (*_PIXELS, *_REFERRING), "ranking": (*_RANKS, *(f"{name}_photos" for name in _RANKS[-3:]))},
}


def offered(config: Config) -> tuple[str, ...] | None:
    """List the measures that the evaluation of a run reports; None if only the evaluation itself knows them.

    These are the runs of plugins' tasks and rewards. SOR and SA-SOR are left out of ``results.json`` where no sample
    has them, N-acc and T-acc where every sample has a target.
    """
    from maskgym import rewards

    tasks = config["env"]["gym_ids"]
    settings = {key: value for key, value in config["reward"].items() if key != "name"}
    reward = rewards.make(config["reward"]["name"], **settings)
    if not set(tasks) <= set(_OF_TASKS) or not isinstance(reward, rewards.WeightedSum):
        return None
    found: dict[str, None] = {}
    for task in tasks:
        own = [*_OF_TASKS[task], *(term.name for term in reward.terms if task in _WITH_TERMS)]
        if "horizon" in config["env"]:
            own += [f"iou@{count}" for count in CLICKS_SHOWN if count <= config["env"]["horizon"]]
        if config["env"].get("task") == "semantic":
            own.append(OF_CLASSES)
        found |= dict.fromkeys(f"{task}/{name}" if len(tasks) > 1 else name for name in own)
    return tuple(found)


def check_offered(config: Config, names: Collection[str], where: str) -> None:
    """Check that the evaluation of a config reports some measures, before anything is trained.

    Args:
        config: Config of a run, with the changes of its evaluation.
        names: Names as in ``results.json``: with the prefix of a task if there are several.
        where: File and key, for errors.

    Raises:
        UserError: If a measure is missing; the message lists those that there are.
    """
    known = offered(config)
    missing = [name for name in names if known is not None and name.removesuffix(class_of(name)) not in known]
    if missing:
        raise UserError(f"{where}: measure '{missing[0]}': expected one of {', '.join(known or ())}")
