"""Provide segmenters for referring expressions."""
