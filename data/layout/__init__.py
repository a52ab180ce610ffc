"""Layouts of public data sets: folders, images, masks."""
