"""A model on this machine: what it cannot be shown is refused for this question alone."""

from __future__ import annotations

import json
import shutil

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


def test_decoding_settings_of_the_model_do_not_count(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "own")
    file = folder / "generation_config.json"
    own = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    asked = ["what is it?", to_png(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))]
    plain, other = (LocalChat(str(model), device="cpu", max_tokens=24).ask(asked) for model in (TINY, folder))
    assert plain.text == other.text
