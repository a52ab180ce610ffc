"""Annotation: rationales, needs, and sheets of samples."""
