"""Wiring: configs, the parts that they name, run folders, this process."""
