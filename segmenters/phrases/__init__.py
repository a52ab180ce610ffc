"""Segmenters of referring expressions."""
