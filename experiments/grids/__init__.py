"""Grids: many runs, and the tables made from them."""
