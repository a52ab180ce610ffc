"""Instructions of the tasks: in our own words, and as a paper prints them, with or without a hint at the form."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from maskgym.errors import UserError
from maskgym.rewards import format_answer, without_reasoning

_STEPS = "Reason step by step inside <think> </think>, then answer inside <answer> </answer>."
# It has only words of the sentence above, so that a tokenizer built from the instructions knows both.
_DIRECT = "Answer inside <answer> </answer>."

INSTRUCTIONS = {
    "sod": (
        f"Salient object detection: find the regions of the image that stand out. {_STEPS} Describe every salient "
        "region by a short phrase inside <rg> </rg>; a bare category name starts with [semantic]."
    ),
    "sis": (
        f"Salient instance segmentation: find every single instance of the image that stands out. {_STEPS} Describe "
        "each salient instance by a phrase of its own inside <ins> </ins>, told apart by location or other attributes."
    ),
    "cosod": (
        "Co-salient object detection: find the one category that the objects shared by all the images belong to. "
        f"{_STEPS} Name only that category inside <rg> </rg>, starting with [semantic]."
    ),
}
PAPER = Path(__file__).with_name("saliency_r1.json")  # quoted, with the source
NAMES = ("maskgym", "paper")
# Placeholders for the descriptions in the form of an answer, and the rules for descriptions.
DESCRIPTIONS = {
    "sod": ("first description", "second description"),
    "sis": ("first description", "second description"),
    "cosod": ("[semantic] category",),
}
RULES = {
    "sod": "one <rg> </rg> for each salient region; no brackets in it, but for [semantic] before a bare category name",
    "sis": "one <ins> </ins> for each salient instance; no brackets in it",
    "cosod": "exactly one <rg> </rg>, with the name of the category after [semantic]; no other brackets in it",
}
# Without this text, a model that has never seen the instructions does not know that tags are read literally.
FORM = """

Write your answer in exactly this form, in your own words, every tag as it stands here and no Markdown:
{form}
Inside <answer> </answer> there is nothing but {rule}. Each description is used by itself to find what it means."""


@cache
def published() -> dict[str, str]:
    """Read the instructions of Saliency-R1, by task; a paragraph per line."""
    content = json.loads(PAPER.read_text(encoding="utf-8"))
    return {task: "\n".join(content[task]) for task in INSTRUCTIONS}


def form(task: str, reasoning: bool = True) -> str:
    """Describe the form of an answer, to be appended to the instruction."""
    example = format_answer("your reasoning", DESCRIPTIONS[task], task)
    return FORM.format(form=example if reasoning else without_reasoning(example), rule=RULES[task])


def instruction(task: str, reasoning: bool = True, name: str = "maskgym", hint: bool = False) -> str:
    """Select the instruction of a task.

    Args:
        task: ``sod``, ``sis`` or ``cosod``.
        reasoning: Whether answers begin with reasoning; if not, it asks for the answer only (Table 1, w/o CoT).
        name: ``maskgym`` for our own words, ``paper`` for those of Saliency-R1.
        hint: Whether the exact form of an answer follows (`form`), for models that were not trained on the instruction.

    Raises:
        UserError: If the name is unknown, or the paper prints no such instruction.
    """
    if name not in NAMES:
        raise UserError(f"instruction={name}: expected one of {', '.join(NAMES)}")
    if name == "paper":
        if not reasoning:
            raise UserError("instruction=paper: the paper prints none without reasoning: expected reasoning=true")
        text = published()[task]
    else:
        text = INSTRUCTIONS[task] if reasoning else INSTRUCTIONS[task].replace(_STEPS, _DIRECT)
    return text + form(task, reasoning) if hint else text


_REFER = (
    "Referring segmentation: find every object of the image that the query asks for. {steps} The answer is a JSON list "
    "with one entry per object, {entry}{units}. If nothing fits the query, the list is empty. Query: {query}"
)
ENTRIES = {  # of an answer to a query, by form
    "boxes": '{"bbox_2d": [left, top, right, bottom]}',
    "points": '{"points_2d": [[x, y], …], "labels": [1 on the object or 0 beside it, …]}',
    "boxes_points": '{"bbox_2d": [left, top, right, bottom], "point_2d": [x, y on the object]}',
    "phrases": '{"phrase": "a description of that object alone"}',
}
_COORDINATES = {
    "pixels": ", in pixels of the image",
    "thousandths": ", in thousandths of the sides of the image",
    "shares": ", in shares of the sides of the image, from 0 to 1",
}

REFER_FORM = """

Write your answer in exactly this form, every tag as it stands here and no Markdown:
{form}
Inside <answer> </answer> there is nothing but the JSON list; if nothing fits the query, it is []."""


def refer_instruction(query: str, form: str, coordinates: str, reasoning: bool = True, hint: bool = False) -> str:
    """Word the instruction of a query.

    Args:
        query: What is asked for, in words.
        form: One of `maskgym.rewards.FORMS`.
        coordinates: One of `maskgym.envs.text.located.COORDINATES`; without meaning for ``phrases``.
        reasoning: Whether answers begin with reasoning.
        hint: Whether the exact form of an answer follows, for models that were not trained on the instruction.
    """
    units = "" if form == "phrases" else _COORDINATES[coordinates]
    steps = _STEPS if reasoning else _DIRECT
    text = _REFER.format(steps=steps, entry=ENTRIES[form], units=units, query=query)
    answer = f"<answer>[{ENTRIES[form]}, …]</answer>"
    shown = f"<think>your reasoning</think>{answer}" if reasoning else answer
    return text + REFER_FORM.format(form=shown) if hint else text
