"""Answers: the text that a language model writes, and the referring expressions inside it.

The format is that of Saliency-R1 (Eq. 1 and 2): ``<think>reasoning</think><answer>expressions</answer>``, with the
rules of Section 7.2 of its supplement. `parse` states our choices where the paper leaves one open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maskgym.errors import UserError

TAGS = {"sod": "rg", "sis": "ins", "cosod": "rg"}  # Eq. 2: region or instance
SEMANTIC = "[semantic]"
MAX_EXPRESSIONS = 100  # of an answer, as many as COCO's average precision counts per image
MARKED = {"sod": (False, True), "sis": (False,), "cosod": (True,)}  # whether a description may start with the marker

# A description contains no brackets of tags, no control characters, and no lone surrogates, which no tokenizer can
# encode. One character class keeps the search linear.
_FORBIDDEN = re.compile(r"[<>\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Located:
    """One object of an answer in JSON (see `maskgym.rewards.objects`).

    Attributes:
        box: (left, top, right, bottom), or None.
        points: (x, y) of each point.
        labels: Label of each point, 1 foreground, 0 background.
        phrase: Referring expression, or None.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    phrase: str | None = None


@dataclass(frozen=True)
class Answer:
    """A parsed answer.

    Attributes:
        text: The whole text, unchanged.
        think: Content of the only ``<think>`` block, verbatim; None if there is no single well-formed block.
        expressions: Referring expressions in order; empty unless ``tagged``. Whitespace is collapsed, and one space
            follows ``[semantic]``.
        structured: Whether a well-formed ``<think>`` block precedes a well-formed ``<answer>`` block; without
            reasoning, whether there is the latter.
        tagged: Whether the content of a well-formed ``<answer>`` block has the form of the task (Eq. 2, or JSON).
        objects: Objects of an answer in JSON, in order, in the coordinates of the answer; else empty.
    """

    text: str
    think: str | None
    expressions: tuple[str, ...]
    structured: bool
    tagged: bool
    objects: tuple[Located, ...] = ()


def parse(text: str, task: str, reasoning: bool = True) -> Answer:
    """Parse the answer of a model, in time linear in its length; any string is legal.

    The rules follow the paper; "(ours)" marks choices that it leaves open:

    - A tag consists of its exact characters: ``<think >`` and ``<THINK>`` are plain text (ours).
    - A block is well-formed if its opening and its closing tag occur once each in the whole text, in this order.
      Nesting, truncation, duplication and stray tags break it.
    - ``structured`` also requires that ``<think>`` closes before ``<answer>`` opens. Text outside the two blocks and
      the content of the reasoning (even none) do not matter. Without ``reasoning``, a ``<think>`` block does not
      matter either.
    - ``tagged`` depends on the answer block only, not on the ``<think>`` block (ours). The block contains only
      ``<rg>…</rg>``, once or more (``sod``); ``<ins>…</ins>``, once or more (``sis``); ``<rg>[semantic] …</rg>``,
      exactly once (``cosod``). Whitespace is free between the tags (``[semantic]`` counts as one) and around the
      description.
    - An answer has at most 100 descriptions (ours): each costs a mask of the photo's size in memory. One with more is
      malformed, as are all answers that are not ``tagged``.
    - A description is not empty and contains no angle or square bracket, control character or lone surrogate (ours).
      It may start with ``[semantic]`` in ``sod``, and must in ``cosod``. In ``sis`` it must not: the marker asks the
      segmenter for a whole class, not for an instance, and Eq. 2 uses it for regions and shared categories (ours).
    - Only a ``tagged`` answer has expressions; any other answer earns nothing for its masks.

    Args:
        text: Text of the model.
        task: ``sod``, ``sis`` or ``cosod``.
        reasoning: Whether the answer begins with reasoning; if not, ``structured`` requires no ``<think>`` block.

    Raises:
        UserError: If the task is unknown.

    Example:
        >>> parse("<think>One cat.</think> <answer><ins>a  black cat</ins></answer>", "sis").expressions
        ('a black cat',)
        >>> parse("<think>One cat.</think> <answer>a black cat</answer>", "sis").tagged
        False
    """
    if task not in TAGS:
        raise UserError(f"unknown task '{task}': expected one of {', '.join(TAGS)}")
    think, answer = find_block(text, "think"), find_block(text, "answer")
    expressions = _read_expressions(text[answer], task) if answer else ()
    return Answer(
        text=text,
        think=text[think] if think else None,
        expressions=expressions,
        structured=answer is not None and (not reasoning or (think is not None and think.stop < answer.start)),
        tagged=bool(expressions),
    )


def format_answer(think: str, expressions: Sequence[str], task: str) -> str:
    """Format an answer, the inverse of `parse`.

    Args:
        think: Reasoning, without any of the four block tags.
        expressions: Referring expressions in the form of ``Answer.expressions``; one with its marker for ``cosod``.
        task: ``sod``, ``sis`` or ``cosod``.

    Raises:
        UserError: If the task is unknown, or the text would not be well-formed.

    Example:
        >>> format_answer("Birds.", ["[semantic] bird"], "cosod")
        '<think>Birds.</think><answer><rg>[semantic] bird</rg></answer>'
    """
    tag = TAGS.get(task)
    body = "".join(f"<{tag}>{expression}</{tag}>" for expression in expressions)
    text = f"<think>{think}</think><answer>{body}</answer>"
    answer = parse(text, task)
    if not (answer.structured and answer.tagged and len(answer.expressions) == len(expressions)):
        raise UserError(f"no well-formed {task} answer holds expressions {list(expressions)} after reasoning {think!r}")
    return text


def without_reasoning(text: str) -> str:
    """Extract the ``<answer>`` block of a text, with its tags; a text without a well-formed one is returned unchanged.

    Example:
        >>> without_reasoning("<think>One cat.</think><answer><ins>a cat</ins></answer>")
        '<answer><ins>a cat</ins></answer>'
    """
    answer = find_block(text, "answer")
    return f"<answer>{text[answer]}</answer>" if answer else text


def find_block(text: str, tag: str) -> slice | None:
    """Find the content of the only well-formed block of a tag, or None (see `parse`)."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, stop = text.index(opening) + len(opening), text.index(closing)
    return slice(start, stop) if start <= stop else None


def _read_expressions(content: str, task: str) -> tuple[str, ...]:
    """Read the expressions of an answer block; none if its content has not the form of Eq. 2 for the task."""
    tag = TAGS[task]
    *pieces, tail = content.split(f"</{tag}>")
    if tail.strip() or len(pieces) > MAX_EXPRESSIONS or (task == "cosod" and len(pieces) != 1):
        return ()
    expressions = []
    for piece in pieces:
        before, opening, description = piece.partition(f"<{tag}>")
        expression = normalise_phrase(description, task)
        if before.strip() or not opening or expression is None:
            return ()
        expressions.append(expression)
    return tuple(expressions)


def normalise_phrase(description: str, task: str = "sis") -> str | None:
    """Collapse the whitespace of a description and normalise its marker; None if it is malformed for the task."""
    words = " ".join(description.split())
    semantic = words.startswith(SEMANTIC)
    if semantic:
        words = words[len(SEMANTIC) :].lstrip()
    if not words or _FORBIDDEN.search(words) or semantic not in MARKED[task]:
        return None
    return f"{SEMANTIC} {words}" if semantic else words
