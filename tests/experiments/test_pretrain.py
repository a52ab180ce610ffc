"""The script that makes the embedded models: a step of what is quick enough, and what its batches hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym.data.scenes import Scenes
from maskgym.experiments import pretrain
from maskgym.segmenters.clip_surgery import ClipSurgery


def test_a_caption_fits_the_scene_it_was_drawn_for():
    rng, texts = np.random.default_rng(0), set()
    for index in range(50):
        objects = Scenes("shadow", "train").scene(index).objects
        for effect in ("", "shadow"):
            caption = pretrain.draw_caption(objects, effect, rng)
            assert caption.fits(objects, effect)
            texts.add(caption.text)
    assert {"", "shadow"} < texts


@pytest.mark.parametrize(
    ("effect", "fits"), [("", [True, False, True]), ("glass", [True, True, True]), ("blur", [True, False, True])]
)
def test_what_fits_is_what_is_there(effect, fits):
    objects = Scenes("sis", "train").scene(0).objects
    captions = [
        pretrain.Caption(""),
        pretrain.Caption("glass", effect="glass"),
        pretrain.Caption("", objects[0], ("shape", "colour")),
    ]
    assert [caption.fits(objects, effect) for caption in captions] == fits
    assert not captions[2].fits([item for item in objects if item.shape != objects[0].shape], effect)


def test_the_loss_is_that_of_clip_where_each_fits_one():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4)
    expected = torch.nn.functional.cross_entropy(logits, index) + torch.nn.functional.cross_entropy(logits.T, index)
    torch.testing.assert_close(pretrain.caption_loss(logits, torch.eye(4, dtype=torch.bool)), expected / 2)


def test_what_fits_equally_is_told_apart_by_nothing():
    fits = torch.tensor([[True, True, False], [False, False, True]])
    even = torch.where(fits, 50.0, -50.0)
    torch.testing.assert_close(pretrain.caption_loss(even, fits), torch.tensor(np.log(2) / 4, dtype=torch.float32))


def test_a_step_of_clip_leaves_a_model_that_clip_surgery_loads(tmp_path):
    command = ["clip", str(tmp_path), "--steps", "1", "--scenes", "7", "--images", "4", "--captions", "2"]
    pretrain.main(command)
    segmenter = ClipSurgery(tmp_path / "clip_tiny", templates=["{}"], device="cpu")
    sample = Scenes("shadow", "train")[0]
    maps = segmenter.attend([sample.images[0]] * 2, ["shadow", "a red star"], size=(16, 16))
    assert maps.shape == (2, 16, 16)
    assert np.abs(maps[0] - maps[1]).max() > 0.01
    assert 1.5e6 < sum(value.numel() for value in segmenter.network.parameters()) < 2.5e6
    # Every word is known, and CLIP finds the end of a text where the tokenizer put it.
    ids = segmenter.tokenizer(["a red star", "shadow"]).input_ids
    assert not any(segmenter.tokenizer.unk_token_id in row for row in ids)
    assert {row[-1] for row in ids} == {segmenter.config.text_config.eos_token_id}
    trained = segmenter.fingerprint
    pretrain.main(command)  # nothing is left to train, and the same weights are written
    assert ClipSurgery(tmp_path / "clip_tiny", templates=["{}"], device="cpu").fingerprint == trained
