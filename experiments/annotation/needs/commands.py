"""User commands: the prompt for the model, the parser of its answer, and the checks of a command."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence

SHORTEST, LONGEST = 3, 200  # characters
MOST_WORDS = 40
LETTERS = 0.6  # minimum share of letters among non-space characters, which separates language from code
# Our own wording of the extra prompt, Pmt of Eq. 1.
PROMPT = """The picture shows one object, cut out of a photo; all else is black. A detector calls it: {category}.
Imagine {count} different people who look for this very object, each for a reason of their own.
Write what each of them would say to a camera assistant: one short command in plain words, which names the object or
describes it by what can be seen in the picture (colour, material, pattern, parts, state) or by what it is good for.
Mention neither the cut-out nor the black. Answer with a JSON list of {count} strings and nothing else."""
AGAIN = "\n\nYour last answer could not be used: {fault}. Answer with a JSON list of {count} strings and nothing else."


def fault_of(text: object) -> str | None:
    """Check whether a text is a valid command; return the reason if not, else None.

    Example:
        >>> fault_of("find the red car"), fault_of("寻找红色汽车")
        (None, None)
        >>> fault_of("{}=[];")
        'hardly any letters'
    """
    if not isinstance(text, str):
        return f"a {type(text).__name__} in place of a text"
    if not SHORTEST <= len(text.strip()) <= LONGEST:
        return f"{len(text.strip())} characters: expected {SHORTEST} to {LONGEST}"
    if any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co") and sign not in "\u200c\u200d" for sign in text):
        return "signs that cannot be seen"
    if len(text.split()) > MOST_WORDS:
        return f"{len(text.split())} words: expected at most {MOST_WORDS}"
    seen = [sign for sign in text if not sign.isspace()]
    # Marks count as letters, because the vowels of many scripts are marks.
    if sum(unicodedata.category(sign)[0] in "LM" for sign in seen) < LETTERS * len(seen):
        return "hardly any letters"
    return None


def uniform(text: str) -> str:
    """Normalise a command for storage: composed characters, one space between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def same(text: str) -> str:
    """Build the key under which equivalent commands compare equal."""
    return uniform(text).casefold()


def check(texts: Iterable[object]) -> tuple[list[str], list[str]]:
    """Split texts into the distinct valid commands and the faults of the others."""
    good: dict[str, str] = {}
    faults = []
    for number, text in enumerate(texts, start=1):
        fault = fault_of(uniform(text) if isinstance(text, str) else text)
        if fault is None and same(str(text)) in good:
            fault = "a duplicate"
        if fault is None:
            good[same(str(text))] = uniform(str(text))
        else:
            faults.append(f"command {number}: {fault}")
    return list(good.values()), faults


def read_answer(answer: str, count: int) -> tuple[list[str], str | None]:
    """Read at most ``count`` commands from a model's answer; return them and its fault, if any.

    Other text may surround the list. The first readable list counts.
    """
    texts = _first_list(answer)
    if texts is None:
        return [], "no JSON list"
    good, faults = check(texts[: 4 * count])
    if len(good) < count:
        return good, "; ".join([*faults[:3], f"{len(good)} of {count} commands"])
    return good[:count], None


def _first_list(answer: str) -> Sequence[object] | None:
    decoder, place = json.JSONDecoder(), answer.find("[")
    for _ in range(20):  # an answer with more brackets holds no list
        if place < 0:
            return None
        try:
            return decoder.raw_decode(answer, place)[0]
        except (ValueError, RecursionError):
            place = answer.find("[", place + 1)
    return None
