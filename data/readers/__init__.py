"""Readers of data sets on disk and on the Hugging Face hub."""
