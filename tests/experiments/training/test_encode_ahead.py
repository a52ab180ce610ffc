"""Images of training that are encoded before it: which, how often, and what is told."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym import data
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.experiments.training.encode_ahead import encode_ahead
from maskgym.segmenters.points.sam import EMBEDDED, SamSegmenter


@pytest.fixture
def make(monkeypatch):
    """Build a function from settings of the segmenter to an environment of ten scenes and its encoded numbers."""

    def build(**settings):
        segmenter, encoded = SamSegmenter(EMBEDDED, device="cpu", encode_batch_size=4, **settings), []
        encode = segmenter.encode
        monkeypatch.setattr(segmenter, "encode", lambda images: encoded.append(len(images)) or encode(images))
        scenes = data.make("scenes", task="sod", size=10)
        return PointPromptVectorEnv(5, scenes, segmenter=segmenter, label_source="positive"), encoded

    return build


def test_training_finds_every_image_encoded_and_so_does_the_next_run(make, tmp_path, capsys):
    env, encoded = make(cache_folder=tmp_path)
    encode_ahead({"point_prompt": env}, updates=2)
    assert encoded == [4, 4, 2] and capsys.readouterr().out == ""
    shown, _ = env.reset(seed=0)
    other, again = make(cache_folder=tmp_path, cache_bytes=0)
    assert list(other.encode_ahead()) == []  # only the first and the last image are read
    found, _ = other.reset(seed=0)
    assert encoded == [4, 4, 2] and again == []
    np.testing.assert_array_equal(found["state"], shown["state"])
    next(tmp_path.rglob("*.complete")).unlink()
    next(tmp_path.rglob("*.encoding")).unlink()
    assert list(other.encode_ahead()) == [4, 4, 2] and again == [1]


def test_a_short_training_and_one_without_a_folder_encode_what_they_show(make, tmp_path, capsys):
    for settings, updates in (({"cache_folder": tmp_path}, 1), ({}, 100)):
        env, encoded = make(**settings)
        encode_ahead({"point_prompt": env}, updates)
        assert encoded == [] and capsys.readouterr().out == ""


def test_the_number_that_fits_is_told_and_a_full_folder_ends_it(make, tmp_path, capsys):
    size = SamSegmenter(EMBEDDED, device="cpu").embedding_bytes
    env, encoded = make(cache_folder=tmp_path, cache_folder_bytes=6 * size)
    with pytest.warns(UserWarning, match="encodings of further images are not stored"):
        encode_ahead({"point_prompt": env}, updates=2)
    assert encoded == [4, 4] and len(list(tmp_path.rglob("*.encoding"))) == 5  # a file has a header of its own
    assert not list(tmp_path.rglob("*.complete"))
    told = f"point_prompt: segmenter.cache_folder_bytes={6 * size} has room for 6 of 10 embeddings: the others are"
    assert capsys.readouterr().out.startswith(told)
    env, _ = make(cache_bytes=3 * size)
    encode_ahead({"point_prompt": env}, updates=2)
    line = capsys.readouterr().out
    assert "cache_bytes=" in line and "room for 3 of 10" in line and "unless segmenter.cache_folder=DIR keeps" in line
