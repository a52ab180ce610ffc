"""Provide segmenters for points and boxes."""
