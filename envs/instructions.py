"""What each task asks of the agent, in our own words (Saliency-R1, supplement §6, has the paper's)."""

_STEPS = "Reason step by step inside <think> </think>, then answer inside <answer> </answer>."
# Every word of it is in the other: a tokenizer made of the instructions knows both.
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


def instruction(task: str, reasoning: bool = True) -> str:
    """Return the instruction of a task; without ``reasoning``, it asks for the answer alone (Table 1, w/o CoT)."""
    return INSTRUCTIONS[task] if reasoning else INSTRUCTIONS[task].replace(_STEPS, _DIRECT)
