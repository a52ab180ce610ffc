"""Agents that answer with text."""
