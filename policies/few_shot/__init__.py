"""Provide few-shot adaptations of SAM, the baselines of AlignSAM."""
