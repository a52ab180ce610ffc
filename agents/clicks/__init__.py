"""Agents whose actions are clicks."""
