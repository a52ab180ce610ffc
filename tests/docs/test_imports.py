"""The drawing of the imports between folders."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("grimp")
FILE = Path(__file__).parents[2] / "docs" / "imports.py"
SPEC = importlib.util.spec_from_file_location("maskgym_docs_imports", FILE)
imports = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(imports)


def test_the_page_has_the_drawing_of_the_code_as_it_is():
    text = imports.PAGE.read_text(encoding="utf-8")
    assert imports.page(text) == text, "python docs/imports.py draws it anew"


def test_an_arrow_that_follows_from_others_is_left_out_and_a_circle_is_refused():
    assert imports.reduced({("a", "b"), ("b", "c"), ("a", "c")}) == [("a", "b"), ("b", "c")]
    with pytest.raises(ValueError, match="a circle of imports: a -> b -> a|a circle of imports: b -> a -> b"):
        imports.reduced({("a", "b"), ("b", "a")})
