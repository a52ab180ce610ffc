"""Instructions of the tasks, in our own words; those of the paper are in Saliency-R1, supplement §6."""

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


def instruction(task: str, reasoning: bool = True) -> str:
    """Select the instruction of a task; without ``reasoning``, it asks for the answer only (Table 1, w/o CoT)."""
    return INSTRUCTIONS[task] if reasoning else INSTRUCTIONS[task].replace(_STEPS, _DIRECT)
