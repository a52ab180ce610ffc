"""Needs in COCO-style JSON: what users look for in a photo, and the annotations that each need means.

An annotation may hold ``"needs": ["find the red car", …]``. A need means every annotation of its photo that carries the
same text, spaces at the ends and case apart. Where it is asked for, an annotation without needs is looked for by its
category.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FIELD = "needs"
SOURCES = ("own", "category")


@dataclass(frozen=True)
class Need:
    """What is asked for, as it was first written, and the annotations that are meant, in the file's order."""

    text: str
    instances: tuple[dict[str, Any], ...]


def find_needs(
    annotations: Iterable[dict[str, Any]], categories: Mapping[Any, str], source: str
) -> tuple[list[Need], list[str]]:
    """Return the needs of one photo, in the order in which they are first met, and what is wrong with some.

    Args:
        annotations: Of the photo, without crowds.
        categories: Name of each category by its id.
        source: ``own``: what annotations say; ``category``: those that say nothing are asked for by category.

    Returns:
        The needs; any text is one, the empty text too. And one phrase of a fault an annotation that has one.

    Example:
        >>> needs, _ = find_needs([{"needs": ["Find it"]}, {"needs": ["find it ", "the other"]}], {}, "own")
        >>> [(need.text, len(need.instances)) for need in needs]
        [('Find it', 2), ('the other', 1)]
    """
    texts: dict[str, str] = {}
    meant: dict[str, list[dict[str, Any]]] = {}
    faults: list[str] = []
    for annotation in annotations:
        asked, fault = _texts(annotation, categories, source)
        faults += fault
        for text in map(str.strip, asked):
            key = text.casefold()
            texts.setdefault(key, text)
            rows = meant.setdefault(key, [])
            if not rows or rows[-1] is not annotation:  # it may say a need twice
                rows.append(annotation)
    return [Need(text, tuple(meant[key])) for key, text in texts.items()], faults


def category_of(annotation: Mapping[str, Any], categories: Mapping[Any, str]) -> str | None:
    """Return the name of an annotation's category; None if it has none that is known."""
    number = annotation.get("category_id")
    return categories.get(number) if isinstance(number, (int, str)) else None


def _texts(annotation: dict[str, Any], categories: Mapping[Any, str], source: str) -> tuple[list[str], list[str]]:
    name = f"annotation {annotation.get('id')}"
    own = annotation.get(FIELD) or []
    if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
        return [], [f"{name}: {FIELD} is {str(own)[:80]!r}: expected a list of texts"]
    if own or source == "own":
        return own, []
    category = category_of(annotation, categories)
    if category is None:
        return [], [f"{name}: category {annotation.get('category_id')} is not in categories"]
    return [f"find {'an' if category[:1].lower() in 'aeiou' else 'a'} {category}"], []
