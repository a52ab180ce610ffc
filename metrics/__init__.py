"""Metrics: pure functions of masks, and accumulators for data sets.

Every function takes NumPy arrays or torch tensors, (H, W) or (B, H, W), bool or float in [0, 1], prediction first, and
never changes them. A target may be given as `prepare` returns it, which is faster for many predictions on one target.
"""

from maskgym.metrics.classes import ClassScores
from maskgym.metrics.instances import InstanceScores, Matches, average_precision, iasm, match_instances
from maskgym.metrics.levels import measure_levels
from maskgym.metrics.masks import PreparedMask, prepare
from maskgym.metrics.pixels import (
    EMeasure,
    FMeasure,
    SaliencyScores,
    ber,
    e_curve,
    e_measure,
    f_curve,
    f_measure,
    iou,
    mae,
)
from maskgym.metrics.ranking import RankingScores, rank_map, sa_sor, sor
from maskgym.metrics.referring import ReferringScores
from maskgym.metrics.structure import s_measure
from maskgym.metrics.weighted import weighted_f

__all__ = [
    "ClassScores",
    "EMeasure",
    "FMeasure",
    "InstanceScores",
    "Matches",
    "PreparedMask",
    "RankingScores",
    "ReferringScores",
    "SaliencyScores",
    "average_precision",
    "ber",
    "e_curve",
    "e_measure",
    "f_curve",
    "f_measure",
    "iasm",
    "iou",
    "mae",
    "match_instances",
    "measure_levels",
    "prepare",
    "rank_map",
    "s_measure",
    "sa_sor",
    "sor",
    "weighted_f",
]
