"""Provide PerSAM, SAMed and MSA, the few-shot baselines of AlignSAM's Tables 2 and 3 on a Segment Anything Model.

Each baseline learns from the same few samples (Section 4.1: 50) with ``fit(samples)`` and then predicts one mask per
test image without a prompt, ``predict(images)``.
"""

from maskgym.policies.few_shot.adapted_sam import AdaptedSam
from maskgym.policies.few_shot.msa import MSA
from maskgym.policies.few_shot.persam import PerSAM
from maskgym.policies.few_shot.samed import SAMed

BASELINES: dict[str, type[AdaptedSam]] = {"persam": PerSAM, "samed": SAMed, "msa": MSA}

__all__ = ["BASELINES", "MSA", "AdaptedSam", "PerSAM", "SAMed"]
