"""Segmenters of points and boxes."""
