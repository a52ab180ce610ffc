"""Evaluation: rollouts, measures, statistics, predictions and published tables."""
