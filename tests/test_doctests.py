"""Run the examples: those of the docstrings, and the README's."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import maskgym

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def has_examples(name: str) -> bool:
    origin = importlib.util.find_spec(name).origin
    return ">>> " in Path(origin).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(maskgym.__path__, "maskgym.") if has_examples(m.name)]
)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_readme(code):
    exec(code, {})
