"""Provide policies that click, and the module that labels clicks."""
