"""Recipes of the embedded models: one file each, run by ``maskgym pretrain``."""
