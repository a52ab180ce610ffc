"""Provide policies that write text."""
