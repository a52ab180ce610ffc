"""Recipes of the embedded models: one file each, run by ``experiments/pretraining/pretrain.py``."""
