"""Layouts of public data sets: folders, images and masks."""
