"""Agents that answer with masks."""
