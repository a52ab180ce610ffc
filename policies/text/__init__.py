"""Policies that write text."""
