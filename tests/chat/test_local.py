"""A model on this machine: what it cannot be shown is refused for this question alone."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.chat.asker import Refused, to_png
from maskgym.chat.local import LocalChat
from maskgym.policies.text.mllm import TINY


def test_a_picture_that_the_processor_cannot_take_is_refused_by_its_size():
    chat = LocalChat(str(TINY), device="cpu", max_tokens=2)
    with pytest.raises(Refused, match=r"refuses pictures of 900x2 pixels: absolute aspect ratio"):
        chat.ask(["what is it?", to_png(np.zeros((2, 900, 3), np.uint8))])
    assert chat.ask(["what is it?", to_png(np.zeros((60, 90, 3), np.uint8))]).output_tokens <= 2
