"""Saliency-R1's own prompts for rationales (supplement 9, Figures 7 to 9), and answers to them in a form to imitate.

The pictures follow its words: an image with its mask map for regions, with a mask image in colours for instances, and
the category's name, without masks, for groups.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from maskgym.chat.asker import Part, to_png
from maskgym.data import Sample
from maskgym.envs.rendering import PALETTE
from maskgym.errors import UserError
from maskgym.rewards import format_answer
from maskgym.rewards.answers import TAGS

FILE = Path(__file__).with_name("paper_prompts.json")  # quoted, with the source
# Where the answer begins, and the sentence of Figure 6 that takes its place in the reasoning.
OPENINGS = {
    "sod": ("Final answer:", "My final answer regarding salient object detection is: {}."),
    "sis": ("Final answer:", "My final answer regarding salient instance detection is: {}."),
    "cosod": (
        "My final answer regarding co-salient object detection is:",
        "My final answer regarding co-salient object detection is {}.",
    ),
}


@cache
def published() -> dict[str, str]:
    """Read the prompts by task; a paragraph per line."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {task: "\n".join(content[task]) for task in OPENINGS}


def question(sample: Sample, task: str, largest: int | None = None) -> list[Part]:
    """Build the question about a sample: the pictures that the paper's prompt speaks of, and the prompt.

    Args:
        sample: The sample.
        task: ``sod``, ``sis`` or ``cosod``.
        largest: Maximal side of the pictures in pixels; None keeps their size.

    Raises:
        UserError: If a group has no category, which the prompt names.
    """
    if task == "cosod":
        if not sample.category:
            raise UserError(f"--prompt paper: group {sample.key} has no category: expected one, which the prompt names")
        parts: list[Part] = []
        for number, image in enumerate(sample.images, start=1):
            parts += [f"image{number}:", to_png(image, largest)]
        return [*parts, published()[task].replace("{}", sample.category.encode("utf-8", "replace").decode(), 1)]
    image, masks = sample.images[0], sample.masks[0]
    shown = mask_map(masks) if task == "sod" else mask_colours(masks)
    return [to_png(image, largest), to_png(shown, largest), published()[task]]


def mask_map(masks: np.ndarray) -> np.ndarray:
    """Draw the union of masks, bool (n, H, W), in white on black, uint8 (H, W, 3)."""
    return np.stack([np.logical_or.reduce(masks, axis=0) * np.uint8(255)] * 3, axis=2)


def mask_colours(masks: np.ndarray) -> np.ndarray:
    """Draw masks, bool (n, H, W), each in a colour on black, uint8 (H, W, 3); after seven the colours darken."""
    drawn = np.zeros((*masks.shape[1:], 3), np.uint8)
    for number, mask in enumerate(masks):
        drawn[mask] = PALETTE[number % len(PALETTE)] / (1 + number // len(PALETTE))
    return drawn


def restore(text: str, task: str) -> str:
    """Write an answer to the paper's prompt in the form of Eq. 1 and 2, as Figure 6 shows it.

    Args:
        text: ``reasoning … Final answer: <rg> … <rg> …``, or for groups ``… is: <rg>[semantic]…</rg>``.
        task: ``sod``, ``sis`` or ``cosod``.

    Returns:
        ``<think>reasoning … My final answer … is: ….</think><answer>…</answer>``, or the text unchanged if it has
        another form, such as that of Eq. 1 and 2.
    """
    opening, sentence = OPENINGS[task]
    reasoning, found, conclusion = text.rpartition(opening)
    tag = TAGS[task]
    _, *pieces = re.split(rf"(?:\\n)?<{tag}>", conclusion)
    phrases = [_plain(piece.replace(f"</{tag}>", "")) for piece in pieces]
    if not found or not phrases:
        return text
    named = ", and ".join(phrase.removeprefix("[semantic]").strip() for phrase in phrases)
    try:
        return format_answer(f"{_plain(reasoning)} {sentence.format(named)}", phrases, task)
    except UserError:
        return text


def _plain(text: str) -> str:
    """Remove the white space and the asterisks of bold type around a text."""
    return text.strip(" \t\r\n*")
