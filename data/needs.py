"""Needs in COCO-style JSON: descriptions of the objects that users look for, with the annotations that they mean.

An annotation may hold ``"needs": ["find the red car", …]``. A need means every annotation of its photo with the same
text, ignoring case and surrounding spaces. On request, the category serves as the need of an annotation without needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from maskgym.aliases import JsonObject
from maskgym.errors import UserError

FIELD = "needs"
SOURCES = ("own", "category")
ASKED = ("need", "refer")  # tasks whose samples have a need in words: one region, or objects of which there may be none
Id = int | str  # of an image, annotation or category


@dataclass(frozen=True)
class Need:
    """A need's text as first written, and its annotations in the file's order."""

    text: str
    instances: tuple[JsonObject, ...]


def find_needs(
    annotations: Iterable[JsonObject], categories: Mapping[Id, str], source: str
) -> tuple[list[Need], list[str]]:
    """List the needs of one photo in order of first occurrence, and their faults.

    Args:
        annotations: Annotations of the photo, without crowds.
        categories: Name of each category by its id.
        source: ``own``: needs of the annotations; ``category``: in addition the category for annotations without needs.

    Returns:
        The needs, where any text counts, even an empty one; and one fault phrase per faulty annotation.

    Example:
        >>> needs, _ = find_needs([{"needs": ["Find it"]}, {"needs": ["find it ", "the other"]}], {}, "own")
        >>> [(need.text, len(need.instances)) for need in needs]
        [('Find it', 2), ('the other', 1)]
    """
    texts: dict[str, str] = {}
    meant: dict[str, list[JsonObject]] = {}
    faults: list[str] = []
    for annotation in annotations:
        asked, fault = _texts(annotation, categories, source)
        faults += fault
        for text in map(str.strip, asked):
            key = text.casefold()
            texts.setdefault(key, text)
            rows = meant.setdefault(key, [])
            if not rows or rows[-1] is not annotation:  # an annotation may repeat a need
                rows.append(annotation)
    return [Need(text, tuple(meant[key])) for key, text in texts.items()], faults


def reads_no_target(task: str, given: bool | None) -> bool:
    """Decide whether a reader gives the samples whose need means nothing in the image, with (0, H, W) masks.

    Args:
        task: Task of the reader. The answer to ``refer`` may be empty; other tasks expect a region.
        given: Argument ``no_target``; None leaves the decision to the task.

    Raises:
        UserError: If ``given`` is neither.
    """
    if given is not None and not isinstance(given, bool):
        raise UserError(f"data.no_target={given}: expected true, false or null")
    return task == "refer" if given is None else given


def category_of(annotation: JsonObject, categories: Mapping[Id, str]) -> str | None:
    """Look up the name of an annotation's category; None if it is absent or unknown."""
    number = annotation.get("category_id")
    return categories.get(number) if isinstance(number, (int, str)) else None


def _texts(annotation: JsonObject, categories: Mapping[Id, str], source: str) -> tuple[list[str], list[str]]:
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
