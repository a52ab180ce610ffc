"""Instructions of the tasks: in our own words, and as a paper prints them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from maskgym.errors import UserError

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


@cache
def published() -> dict[str, str]:
    """Read the instructions of Saliency-R1, by task; a paragraph per line."""
    content = json.loads(PAPER.read_text(encoding="utf-8"))
    return {task: "\n".join(content[task]) for task in INSTRUCTIONS}


def instruction(task: str, reasoning: bool = True, name: str = "maskgym") -> str:
    """Select the instruction of a task.

    Args:
        task: ``sod``, ``sis`` or ``cosod``.
        reasoning: Whether answers begin with reasoning; if not, it asks for the answer only (Table 1, w/o CoT).
        name: ``maskgym`` for our own words, ``paper`` for those of Saliency-R1.

    Raises:
        UserError: If the name is unknown, or the paper prints no such instruction.
    """
    if name not in NAMES:
        raise UserError(f"instruction={name}: expected one of {', '.join(NAMES)}")
    if name == "paper":
        if not reasoning:
            raise UserError("instruction=paper: the paper prints none without reasoning: expected reasoning=true")
        return published()[task]
    return INSTRUCTIONS[task] if reasoning else INSTRUCTIONS[task].replace(_STEPS, _DIRECT)
