"""CLIP Surgery: attention of an image to a text."""
