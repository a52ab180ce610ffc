"""Helpers of agents with a training loop of their own."""
