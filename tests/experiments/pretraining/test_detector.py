"""Training a detector on photographs: what it writes, resuming, the decoder alone, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SwinConfig, SwinModel

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.experiments.pretraining import detector, loop, pretrain
from maskgym.segmenters.weights import read_state

SMALL = [f"backbone.{size}" for size in ("depth=1", "embed_dim=16", "heads=2", "token_dim=8", "converter_depth=1",
                                         "decoder_depth=1", "token_depth=1")]  # fmt: skip
SIZES = {key: int(value) for key, _, value in (size.removeprefix("backbone.").partition("=") for size in SMALL)}
FEW = ["--size", "32", "--images", "2", "--samples", "3"]


@pytest.fixture(scope="module")
def duts(tmp_path_factory):
    """A miniature of DUTS as its archives unpack."""
    root = tmp_path_factory.mktemp("duts")
    for part, split in (("TR", "train"), ("TE", "test")):
        for kind in ("Image", "Mask"):
            (root / f"DUTS-{part}" / f"DUTS-{part}-{kind}").mkdir(parents=True)
        for index in range(4):
            sample = Scenes("sod", split, image_size=64)[index]
            Image.fromarray(sample.images[0]).save(root / f"DUTS-{part}/DUTS-{part}-Image/{index}.jpg")
            Image.fromarray(sample.union()).save(root / f"DUTS-{part}/DUTS-{part}-Mask/{index}.png")
    return [f"data.root={root}", "data=duts"]


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("swin")
    sizes = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4}
    SwinModel(SwinConfig(image_size=32, patch_size=4, **sizes)).save_pretrained(folder)
    return str(folder)


def test_a_vst_is_trained_scored_and_taken_from_its_folder(duts, tmp_path, capsys):
    command = ["saliency", str(tmp_path), *duts, *SMALL, *FEW, "--steps", "2"]
    assert pretrain.main(command) == 0
    told = capsys.readouterr().out
    assert "vst: the whole network begins with random weights" in told and "n = 3 of 4, test" in told
    found = json.loads((tmp_path / "scores.json").read_text())
    assert (
        found["n"] == 3 and 0 < found["scores"]["mae"] < 1 and {"s_measure", "e_mean", "f_max"} < set(found["scores"])
    )
    backbone = policies.make_backbone("vst", checkpoint=tmp_path, **SIZES)
    assert backbone.random_part == ""
    torch.manual_seed(0)
    start = policies.make_backbone("vst", pretrained=False, **SIZES).state_dict()
    assert all(not torch.equal(value, start[name]) for name, value in backbone.named_parameters())
    assert pretrain.main([*command[:-1], "3"]) == 2
    assert "detector.json: its training has steps=2, not 3: choose another folder" in capsys.readouterr().err


def test_an_interrupted_training_gives_the_same_weights(duts, tmp_path, monkeypatch):
    command = [*duts, *SMALL, *FEW, "--steps", "4"]
    pretrain.main(["saliency", str(tmp_path / "whole"), *command])
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    detect, calls = detector.detect, []

    def stop(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return detect(*given)

    monkeypatch.setattr(detector, "detect", stop)
    assert pretrain.main(["saliency", str(tmp_path / "parts"), *command]) == 130
    assert pretrain.main(["saliency", str(tmp_path / "parts"), *command]) == 0
    assert len(calls) == 3 + 2
    whole, parts = (read_state(tmp_path / name / "backbone.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_the_decoder_of_swin_is_trained_alone(duts, swin, tmp_path):
    given = ["--backbone", "swin", "--checkpoint", swin, "backbone.width=8", "backbone.heads=2", "--decoder-only"]
    pretrain.main(["saliency", str(tmp_path), *duts, *FEW, "--steps", "2", *given])
    start = SwinModel.from_pretrained(swin).state_dict()
    trained = policies.make_backbone("swin", checkpoint=tmp_path, width=8, heads=2)
    assert all(torch.equal(value, start[name]) for name, value in trained.encoder.state_dict().items())
    torch.manual_seed(0)
    drawn = policies.make_backbone("swin", checkpoint=swin, width=8, heads=2, random_decoder=True).decoder.state_dict()
    moved = {name for name, value in trained.decoder.state_dict().items() if not torch.equal(value, drawn[name])}
    assert moved == set(drawn)


def test_half_of_the_photos_are_mirrored_with_their_masks():
    pixels = torch.arange(32 * 3 * 4, dtype=torch.float32).reshape(32, 3, 2, 2)
    found, masks = detector.mirrored(pixels, pixels[:, :1], seed=0, step=3)
    turned = torch.tensor([not torch.equal(one, other) for one, other in zip(found, pixels, strict=True)])
    assert 8 < turned.sum() < 24
    assert torch.equal(found[turned], pixels[turned].flip(3)) and torch.equal(masks, found[:, :1])
    assert not torch.equal(detector.mirrored(pixels, pixels, 0, 4)[0], found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=sbu", "data.root=."], "data=sbu: its masks are of task shadow: expected one of sod"),
        (["data=scenes", "backbone.dept=3"], "unknown key 'backbone.dept': backbone=vst does not take it"),
        (["data=scenes", "--size", "33", *SMALL], "--size=33: expected a multiple of 16, for vst"),
        (["data=scenes", "--steps", "0", *SMALL], "--steps=0: expected at least 1"),
        (["data=nope"], "unknown data 'nope'"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(arguments, message, tmp_path, capsys):
    assert pretrain.main(["saliency", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_models_take_no_data(tmp_path, capsys):
    assert pretrain.main(["sam", str(tmp_path), "data=duts"]) == 2
    assert "argument 'data=duts': only maskgym pretrain saliency takes data" in capsys.readouterr().err


def test_an_answer_is_the_map_of_the_network():
    backbone = policies.make_backbone("vst_tiny")
    image = Scenes("sod", "test")[0].images[0]
    maps = detector.Detector(backbone, torch.device("cpu")).act([{"image": image}])
    assert maps.shape == (1, 128, 128) and maps.dtype == np.float32
    assert ((maps[0] > 0.5) & Scenes("sod", "test")[0].union()).sum() > 0
