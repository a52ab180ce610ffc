"""Experiments: wire one of each part from a config, train, evaluate and write a run folder."""
