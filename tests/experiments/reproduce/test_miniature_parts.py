"""Miniature SAM, CLIP, BLIP, BERT and VST: published names and ids, loaded by the code of the published ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym import policies, segmenters
from maskgym.experiments.reproduce import miniature_parts
from maskgym.policies.needs.vst import VST
from maskgym.segmenters.points.sam import PUBLISHED, PUBLISHED_FILES


def test_sam_has_the_official_file_and_names(tmp_path):
    folder = miniature_parts.write_sam(tmp_path)
    assert {path.name for path in folder.iterdir()} == {PUBLISHED_FILES["vit_b"], "config.json"}
    names = torch.load(folder / PUBLISHED_FILES["vit_b"], weights_only=True).keys()
    with torch.device("meta"):
        official = PUBLISHED["vit_b"].build().state_dict().keys()
    assert names < official and {name.split(".")[2] for name in official - names} == {str(n) for n in range(3, 12)}
    sam = segmenters.make("sam", checkpoint=folder, device="cpu")
    embeddings = sam.encode([np.full((64, 64, 3), 90, np.uint8)])
    assert embeddings.shape[1:] == sam.embedding_shape == (32, 16, 16)


def test_vst_has_the_published_names(tmp_path):
    miniature_parts.write_vst(tmp_path / "RGB_VST.pth")
    names = torch.load(tmp_path / "RGB_VST.pth", weights_only=True).keys()
    assert all(name.startswith("module.") for name in names) and "module.rgb_backbone.head.weight" in names
    with torch.device("meta"):
        published = VST(pretrained=False).state_dict().keys()
    assert {name.removeprefix("module.") for name in names if ".head." not in name} < published
    backbone = VST(tmp_path / "RGB_VST.pth", **miniature_parts.VST_SIZES)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(("name", "ids"), [("clip", 49408), ("bert", 30522), ("blip", 30524)])
def test_encoders_of_needs_have_the_published_ids(tmp_path, name, ids):
    miniature_parts.ENCODERS[name](tmp_path)
    encoder = policies.make_need_encoder(name, checkpoint=tmp_path, device="cpu")
    assert len(encoder.text.tokenizer) == ids
    one, other = encoder.encode(["find the red car", "find a Zebra!"])
    assert one.shape == (3, 32) and not torch.equal(one, other)
    first, *_, last = encoder.text.tokenizer("find the red car").input_ids
    assert (first, last) == ((49406, 49407) if name == "clip" else (101, 102))


def test_clip_attends_to_a_text(tmp_path):
    miniature_parts.write_clip(tmp_path)
    attention = segmenters.make_attention("clip_surgery", checkpoint=tmp_path, input_size=64, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    maps = attention.attend([image, image], ["shadow", "a red car"])
    assert maps.shape == (2, 64, 64) and not np.array_equal(maps[0], maps[1])


def test_a_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        miniature_parts.write_vst(tmp_path / name, seed)
    first, again, other = (torch.load(tmp_path / name, weights_only=True) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
