"""Answers: the text that a language model writes, and the referring expressions inside it.

The interface is Saliency-R1's (Eq. 1 and 2): ``<think>reasoning</think><answer>expressions</answer>``. The format
rules are those of the supplement's section 7.2. Where the paper leaves a choice open, the choice is written down in
``parse``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maskgym.errors import UserError

TAGS = {"sod": "rg", "sis": "ins", "cosod": "rg"}  # Eq. 2: region or instance
SEMANTIC = "[semantic]"
MARKED = {"sod": (False, True), "sis": (False,), "cosod": (True,)}  # may a description start with the marker?

# What no description holds: brackets of any tag, control characters, and lone surrogates, which no tokenizer can
# encode. One character class, so that the search is linear.
_FORBIDDEN = re.compile(r"[<>\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Answer:
    """A parsed answer.

    Attributes:
        text: The whole text, as it came.
        think: What the one ``<think>`` block holds, verbatim; None if there is no single well-formed block.
        expressions: The referring expressions in order; empty unless ``tagged``. Whitespace is collapsed, and
            ``[semantic]`` is followed by one space.
        structured: One well-formed ``<think>`` block, then one well-formed ``<answer>`` block; where no reasoning is
            asked for, the latter alone.
        tagged: One well-formed ``<answer>`` block whose content is the task's form of Eq. 2.
    """

    text: str
    think: str | None
    expressions: tuple[str, ...]
    structured: bool
    tagged: bool


def parse(text: str, task: str, reasoning: bool = True) -> Answer:
    """Parse the answer of a model; any string is legal, and takes time linear in its length.

    Rules, with what the paper leaves open marked (ours):

    - A tag is its exact characters: ``<think >`` and ``<THINK>`` are plain text (ours).
    - A block is well-formed when its opening and its closing tag occur once each in the whole text, in this
      order. Nesting, truncation and duplication, a stray tag included, break it.
    - ``structured`` also wants ``<think>`` closed before ``<answer>`` opens. Text outside the two blocks, and what
      the reasoning says (even nothing), costs nothing. Without ``reasoning``, a ``<think>`` block is such text too.
    - ``tagged`` looks at the answer block alone: a broken ``<think>`` block leaves it as it is (ours). Inside,
      there is nothing but ``<rg>…</rg>``, once or more (``sod``); ``<ins>…</ins>``, once or more (``sis``);
      ``<rg>[semantic] …</rg>``, exactly once (``cosod``), with free whitespace between the tags (``[semantic]``
      counts as one) and around the description.
    - A description is not empty and holds no angle or square bracket, control character or lone surrogate (ours).
      It may start with ``[semantic]`` in ``sod``, and must in ``cosod``. In ``sis`` it must not: Eq. 2 has the
      marker for regions and shared categories, and it asks the segmenter for a whole class, not for an
      instance (ours).
    - Expressions are read only from an answer that is ``tagged``. One that is not has none, and earns nothing for
      its masks.

    Args:
        text: What the model wrote.
        task: ``sod``, ``sis`` or ``cosod``.
        reasoning: Whether the answer is to be reasoned for; if not, ``structured`` asks for no ``<think>`` block.

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
    think, answer = _find_block(text, "think"), _find_block(text, "answer")
    expressions = _read_expressions(text[answer], task) if answer else ()
    return Answer(
        text=text,
        think=text[think] if think else None,
        expressions=expressions,
        structured=answer is not None and (not reasoning or (think is not None and think.stop < answer.start)),
        tagged=bool(expressions),
    )


def format_answer(think: str, expressions: Sequence[str], task: str) -> str:
    """Write the answer that ``parse`` reads back.

    Args:
        think: The reasoning; it must not hold one of the four block tags.
        expressions: Referring expressions as ``Answer.expressions`` has them: ``cosod`` takes one, with its marker.
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
    """Return the ``<answer>`` block of a text, tags included; a text without a well-formed one stays as it is.

    Example:
        >>> without_reasoning("<think>One cat.</think><answer><ins>a cat</ins></answer>")
        '<answer><ins>a cat</ins></answer>'
    """
    answer = _find_block(text, "answer")
    return f"<answer>{text[answer]}</answer>" if answer else text


def _find_block(text: str, tag: str) -> slice | None:
    """Return where the content of the one well-formed block of a tag lies, or None."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, stop = text.index(opening) + len(opening), text.index(closing)
    return slice(start, stop) if start <= stop else None


def _read_expressions(content: str, task: str) -> tuple[str, ...]:
    """Return the expressions of an answer block's content; empty if it is not the task's form of Eq. 2."""
    tag = TAGS[task]
    *pieces, tail = content.split(f"</{tag}>")
    if tail.strip() or (task == "cosod" and len(pieces) != 1):
        return ()
    expressions = []
    for piece in pieces:
        before, opening, description = piece.partition(f"<{tag}>")
        expression = _normalise(description, task)
        if before.strip() or not opening or expression is None:
            return ()
        expressions.append(expression)
    return tuple(expressions)


def _normalise(description: str, task: str) -> str | None:
    """Return a description with whitespace collapsed and its marker normalised; None if it is malformed."""
    words = " ".join(description.split())
    semantic = words.startswith(SEMANTIC)
    if semantic:
        words = words[len(SEMANTIC) :].lstrip()
    if not words or _FORBIDDEN.search(words) or semantic not in MARKED[task]:
        return None
    return f"{SEMANTIC} {words}" if semantic else words
