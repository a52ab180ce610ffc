"""Reproduce a paper: miniatures of its data and models, for a smoke run."""
