"""Run the examples of the docstrings; those of pages are run by test_tutorials.py."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import maskgym


def has_examples(name: str) -> bool:
    origin = importlib.util.find_spec(name).origin
    return ">>> " in Path(origin).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(maskgym.__path__, "maskgym.") if has_examples(m.name)]
)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
