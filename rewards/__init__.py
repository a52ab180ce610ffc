"""Rewards: named terms of one transition, their weighted sums, and the registry.

A registered name makes a term (one measure) or a whole reward. `make` wraps a term in a sum of one, so that an
environment takes any name. A term of your own is a class:

    @maskgym.rewards.register("coverage")
    class Coverage(maskgym.rewards.Term):
        name = "coverage"

        def __call__(self, transition):
            return float(transition.masks[0].any(axis=0).mean())

    reward = maskgym.rewards.make("weighted", terms={"coverage": 0.1, "iou": 0.9})

An environment also takes a term itself, or a function of one transition: `resolve` makes a reward of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from maskgym.errors import UserError
from maskgym.registry import Registry
from maskgym.rewards.answers import Answer, Located, format_answer, parse, without_reasoning
from maskgym.rewards.boxes import BoxIoU, BoxL1, PointInMask
from maskgym.rewards.instances import Count, InstanceIoU, NoTarget, Solved
from maskgym.rewards.objects import FORMS, format_objects, parse_objects
from maskgym.rewards.repetition import NonRepetition
from maskgym.rewards.seg_r1 import seg_r1, seg_r1_strict
from maskgym.rewards.terms import (
    IASM,
    SASOR,
    Correctness,
    DeltaIoU,
    ForegroundHit,
    Format,
    Function,
    IoU,
    MaskTerm,
    OneMinusMAE,
    SMeasure,
    Term,
)
from maskgym.rewards.transition import Click, Ranked, Transition, Unscored
from maskgym.rewards.visionreasoner import visionreasoner, visionreasoner_strict
from maskgym.rewards.weighted import (
    Reward,
    WeightedSum,
    check_range,
    ranking,
    refer_strict,
    saliency_r1,
    saliency_strict,
    score,
)

AnyReward: TypeAlias = str | Reward | Term | Callable[[Transition], float]  # what `resolve` takes

_registry: Registry[Reward | Term] = Registry("reward")
register, names, get = _registry.register, _registry.names, _registry.get


def make(name: str, **kwargs: Any) -> Reward:
    """Make the reward of a name; a term becomes a weighted sum of one.

    Raises:
        UserError: If the name or an argument is unknown.
    """
    return resolve(_registry.make(name, **kwargs))


def resolve(reward: AnyReward) -> Reward:
    """Make a reward of a registered name, a reward, a term, or a function of one transition that returns a number.

    A term and a function become a weighted sum of one; the range of a function is (0, 1), or its attribute ``range``.

    Raises:
        UserError: If it is none of these, or has no range.
    """
    if isinstance(reward, str):
        return make(reward)
    if isinstance(reward, Reward):
        check_range(f"reward {type(reward).__name__}", reward.range if hasattr(reward, "range") else ())
        return reward
    if isinstance(reward, type) or not callable(reward):
        raise UserError(f"reward={reward!r}: expected a name, or an object that is a reward, a term or a function")
    return WeightedSum([reward if isinstance(reward, Term) else Function(reward)], [1.0])


def weighted(terms: Mapping[str, float]) -> WeightedSum:
    """Make a weighted sum of registered names; the weights of a name that is itself a sum are multiplied.

    Args:
        terms: Weight by name.

    Raises:
        UserError: If a name is unknown or not a sum of terms, or two names share a term.
    """
    parts: dict[str, WeightedSum] = {}
    for name in terms:
        part = make(name)
        if not isinstance(part, WeightedSum):
            raise UserError(f"terms of a weighted sum: '{name}' is not a term or a sum of terms")
        parts[name] = part
    return WeightedSum(
        [term for part in parts.values() for term in part.terms],
        [terms[name] * weight for name, part in parts.items() for weight in part.weights],
    )


register("s_measure", SMeasure)
register("iou", IoU)
register("iasm", IASM)  # strict: unmatched instances score 0
register("iasm_published", IASM, published=True)  # unmatched instances are scored against an empty mask
register("correctness", Correctness)  # by task: S-measure, or the strict IASM
register("format", Format)
register("foreground_hit", ForegroundHit)  # clicks: the reward of AlignSAM
register("delta_iou", DeltaIoU)  # clicks: gain of each click
register("one_minus_mae", OneMinusMAE)  # unions of masks; results have mae itself
register("sa_sor", SASOR)  # ranking: at the last step
register("ranking", ranking)  # S-measure of each step, plus SA-SOR at the last: the default of ranking
register("weighted", weighted)
register("saliency_r1", saliency_r1)  # the paper's reward as published
register("saliency_strict", saliency_strict)  # the same with the strict IASM: the training default
register("box_iou", BoxIoU)  # refer: matched boxes
register("box_iou_hard", BoxIoU, kind="hard")  # refer: the share of pairs above a threshold
register("box_iou_squared", BoxIoU, kind="squared")  # refer: as in LENS
register("box_l1", BoxL1)  # refer: how close the sides of matched boxes are
register("point_in_mask", PointInMask)  # refer: points of matched objects
register("instance_iou", InstanceIoU)  # masks matched one to one
register("count", Count)  # refer: the right number of objects
register("solved", Solved)  # all or nothing: every instance matched, and no mask left over
register("no_target", NoTarget)  # refer: an empty answer exactly where nothing is meant
register("non_repetition", NonRepetition)  # refer: reasoning that does not repeat itself
register("non_repetition_published", NonRepetition, published=True)  # the whole text, as VisionReasoner has it
register("refer_strict", refer_strict)  # refer: half instance_iou, half format: the training default
register("visionreasoner", visionreasoner)  # refer: VisionReasoner's reward as published
register("visionreasoner_strict", visionreasoner_strict)  # refer: its parts, mended
register("seg_r1", seg_r1)  # refer: Seg-R1's reward as published
register("seg_r1_strict", seg_r1_strict)  # refer: its parts, mended

__all__ = [
    "FORMS",
    "IASM",
    "SASOR",
    "Answer",
    "AnyReward",
    "BoxIoU",
    "BoxL1",
    "Click",
    "Correctness",
    "Count",
    "DeltaIoU",
    "ForegroundHit",
    "Format",
    "Function",
    "InstanceIoU",
    "IoU",
    "Located",
    "MaskTerm",
    "NoTarget",
    "NonRepetition",
    "OneMinusMAE",
    "PointInMask",
    "Ranked",
    "Reward",
    "SMeasure",
    "Solved",
    "Term",
    "Transition",
    "Unscored",
    "WeightedSum",
    "format_answer",
    "format_objects",
    "get",
    "make",
    "names",
    "parse",
    "parse_objects",
    "ranking",
    "refer_strict",
    "register",
    "resolve",
    "saliency_r1",
    "saliency_strict",
    "score",
    "seg_r1",
    "seg_r1_strict",
    "visionreasoner",
    "visionreasoner_strict",
    "weighted",
    "without_reasoning",
]
