"""Agents whose actions are masks."""
