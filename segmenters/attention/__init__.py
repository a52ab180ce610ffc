"""Provide CLIP Surgery, attention maps of an image for a text."""
