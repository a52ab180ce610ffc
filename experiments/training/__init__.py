"""Training: one run from a config to its results."""
