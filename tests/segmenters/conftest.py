"""Fixtures for the tests of several segmenters."""

from __future__ import annotations

import string

import numpy as np
import pytest


@pytest.fixture(scope="session")
def letters_tokenizer():
    """Build a CLIP tokenizer whose pieces are letters; end of text is its last id."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + "[]"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])


@pytest.fixture(scope="session")
def two_images() -> list[np.ndarray]:
    """Build two images of different sizes."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, size, dtype=np.uint8) for size in ((30, 50, 3), (41, 20, 3))]
