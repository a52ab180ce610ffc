"""Output-to-reasoning (Saliency-R1, supplement 9): the prompt with ground truth, and the checks of an answer.

The three steps and their titles are the paper's, the words are ours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from maskgym.chat.asker import Part, to_png
from maskgym.data import Sample
from maskgym.envs.instructions import RULES, form
from maskgym.envs.rendering import overlay
from maskgym.rewards import Answer

STEPS = {
    "sod": ("Scene Description", "Salient Area Identification and Explanation", "Final Conclusion"),
    "sis": ("Scene Description", "Identify Salient Instances", "Final Conclusion"),
    "cosod": ("Object Identification", "Co-salience Deduction", "Final Conclusion"),
}
LONGEST = 8000  # characters of reasoning
MOST = 50  # descriptions
# Words that refer to the marked picture. The word "mask" alone is allowed, because people wear masks.
LEAKS = (
    *("ground truth", "ground-truth", "overlay", "tinted", "annotated", "segmentation mask", "mask image", "masked"),
    *("highlighted region", "highlighted area", "marked region", "marked area", "second picture", "second image"),
)

_OPENING = """You know well what draws people's eyes. {shown} Write how somebody who sees {unmarked} alone would \
reason, step by step, to find exactly what is marked, and then give the answer.

"""
_SINGLE = "You see a photo, and then the same photo again with {marked} and outlined, and all the rest darkened."
_GROUP = (
    "You see a group of photos, each followed by the same photo with the objects that the group shares tinted and "
    "outlined and all the rest darkened; one that is dark all over does not hold the shared object."
)
_TASKS = {
    "sod": """Step 1: {0}. Say in a few words what the photo shows.
Step 2: {1}. For each marked part say what it is and what it looks like, and why it stands out: its contrast with what \
surrounds it, how it relates to the other things. Say too why the most likely other things do not stand out.
Step 3: {2}. Name what is salient, as in the answer.

Name as few regions as cover what is marked, each once. Where a bare category name will do, write it after [semantic]. \
Four or more things of one kind are a group, not a number.""",
    "sis": """Step 1: {0}. Say in a few words what the photo shows.
Step 2: {1}. Take the marked instances one by one, each of a colour of its own: what it is, what it looks like, where \
it is, and why it stands out from its surroundings and from the other instances, salient or not.
Step 3: {2}. Name every salient instance, as in the answer.

Give each marked instance one description, by which it cannot be taken for another: its place, colour, size or what it \
does.""",
    "cosod": """Step 1: {0}. For every photo, those without the shared object included, list the categories of several \
objects in it: categories only, and always the same word for the same one.
Step 2: {1}. Deduce from the lists which category the photos share, and why no other will do.
Step 3: {2}. Name that category, as in the answer.""",
}
_CLOSING = """

Begin each step with its number and title, as in "Step 1: {0}". Write as one who sees nothing but {unmarked}: never \
mention marks, tints, outlines, masks, a second picture or a given answer. Use plain sentences without angle brackets \
in the reasoning."""
_AGAIN = """Your last answer was:
{answer}

It cannot be used: {fault}. Write the whole answer again, with what is wrong mended. Do not speak of the mistake."""


def question(sample: Sample, task: str, largest: int | None = None) -> list[Part]:
    """Build the question about a sample: each image bare and with ground-truth masks, and the steps.

    Args:
        sample: The sample.
        task: ``sod``, ``sis`` or ``cosod``.
        largest: Maximal side of the pictures in pixels; None keeps their size.
    """
    parts: list[Part] = []
    for number, (image, masks) in enumerate(zip(sample.images, sample.masks, strict=True), start=1):
        named = f"Photo {number}" if task == "cosod" else "The photo"
        parts += [f"{named}:", to_png(image, largest), f"{named}, marked:", to_png(overlay(image, masks), largest)]
    marked = "its salient regions tinted" if task == "sod" else "each salient instance tinted in a colour of its own"
    unmarked = "the bare photos" if task == "cosod" else "the bare photo"
    shown = _GROUP if task == "cosod" else _SINGLE.format(marked=marked)
    text = _OPENING.format(shown=shown, unmarked=unmarked) + _TASKS[task].format(*STEPS[task])
    if task == "cosod" and sample.category:
        text += f" The data calls it '{sample.category.encode('utf-8', 'replace').decode()}'."
    return [*parts, text + _CLOSING.format(STEPS[task][0], unmarked=unmarked) + form(task)]


def again(answer: str, fault: str) -> str:
    """Build the text that follows an unusable answer."""
    shown = answer if len(answer) <= LONGEST else f"{answer[:LONGEST]} …"
    return _AGAIN.format(answer=shown.encode("utf-8", "replace").decode(), fault=fault)


def fault_of(answer: Answer, task: str) -> str | None:
    """Check the form of an answer; return the reason for a rejection, or None. Masks are not checked.

    Our rules beside those of `maskgym.rewards.answers.parse`: the reasoning has the three steps in order, no angle
    brackets (a special token would break training), and no word that refers to the marked pictures.
    """
    if not answer.structured or answer.think is None:
        return "expected exactly one <think>…</think>, then exactly one <answer>…</answer>, each tag once in all"
    if not answer.tagged:
        return f"inside <answer>: expected nothing but {RULES[task]}"
    return _fault_of_reasoning(answer.think, STEPS[task]) or _fault_of_expressions(answer.expressions)


def _fault_of_reasoning(think: str, steps: Sequence[str]) -> str | None:
    if len(think) > LONGEST:
        return f"{len(think)} characters of reasoning: expected at most {LONGEST}"
    if "<" in think or ">" in think:
        return "the reasoning holds angle brackets"
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Co", "Cn") and sign not in "\n\r\t" for sign in think):
        return "the reasoning holds signs that are no text"
    lowered, place = think.casefold(), 0
    for number, step in enumerate(steps, start=1):
        title = f"Step {number}: {step}"
        place = lowered.find(title.casefold(), place)
        if place < 0:
            return f"the reasoning lacks '{title}', or has it out of order"
    return _leak(think)


def _fault_of_expressions(expressions: Sequence[str]) -> str | None:
    if len(expressions) > MOST:
        return f"{len(expressions)} descriptions: expected at most {MOST}"
    if len({expression.casefold() for expression in expressions}) < len(expressions):
        return "two descriptions are the same"
    return _leak(" ".join(expressions))


def _leak(text: str) -> str | None:
    lowered = text.casefold()
    found = next((word for word in LEAKS if word in lowered), None)
    return None if found is None else f"'{found}' speaks of what cannot be seen in the bare photo"
