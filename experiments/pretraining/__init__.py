"""Recipes of the bundled models: one file per model, run by ``maskgym pretrain``."""
