"""The language policy on models of several families: one code path, what it finds out of each, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.evaluation import evaluate_command

FAMILIES = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths", "internvl": "thousandths"}
SHOWN = [{"image": Scenes("sis", "test")[index].images[0], "instruction": INSTRUCTIONS["sis"]} for index in range(3)]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_sampling_and_depend_on_the_image(family_folder, family, rank):
    policy = policies.make("mllm", path=family_folder(family), device="cpu", lora_rank=rank)
    torch.manual_seed(0)
    drawn = policy.sample(SHOWN, max_new_tokens=6)
    found, mask = policy.log_probabilities(SHOWN, drawn.tokens)
    torch.testing.assert_close(found, drawn.log_probabilities * mask, atol=1e-5, rtol=1e-5)
    alone, _ = policy.log_probabilities(SHOWN[1:2], drawn.tokens[1:2])
    torch.testing.assert_close(found[1:2, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)
    permuted = [SHOWN[index] for index in (1, 2, 0)]
    other, _ = policy.log_probabilities(permuted, drawn.tokens)
    assert ((found - other).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_part_learns_and_only_it(family_folder, family, rank):
    policy = policies.make("mllm", path=family_folder(family), device="cpu", lora_rank=rank)
    policy.log_probabilities(SHOWN, ["A ring."] * 3)[0].sum().backward()
    parts = dict(policy.model.named_parameters())
    trained = {name for name, value in parts.items() if value.requires_grad}
    assert all("language_model" in name or "lm_head" in name for name in trained)
    if rank is None:
        assert {name for name in parts if "language_model" in name} <= trained
    else:  # a second factor of zeros hides the first one's gradient
        assert len(trained) == 2 * 2 * 7  # two factors, two blocks, seven linear layers
        trained = {name for name in trained if "lora_B" in name}
    assert all(parts[name].grad.abs().sum() > 0 for name in trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_answers_alike_and_coordinates_are_the_familys(family_folder, family, tmp_path):
    policy = policies.make("mllm", path=family_folder(family), device="cpu")
    assert policy.family == family and policy.coordinates == FAMILIES[family]
    policy.save(tmp_path / "saved")
    again = policies.make("mllm", path=tmp_path / "saved", device="cpu")
    assert again.generate(SHOWN, 6) == policy.generate(SHOWN, 6)


def test_the_size_that_is_seen(family_folder):
    qwen3 = policies.make("qwen3_vl", path=family_folder("qwen3_vl"), device="cpu")
    assert qwen3.seen_size((128, 100)) == (128, 96)  # multiples of two patches of 16 pixels
    inputs = qwen3.processor.image_processor(images=[np.zeros((128, 100, 3), np.uint8)], return_tensors="pt")
    assert (inputs["image_grid_thw"][0, 1:] * 16).tolist() == [128, 96]
    with pytest.raises(UserError, match=r"GotOcr2ImageProcessor may cut a photo into parts.*thousandths or shares"):
        policies.make("mllm", path=family_folder("internvl"), device="cpu").seen_size((128, 100))


def swap(folder: Path, other: Path, *names: str) -> None:
    for name in names:
        shutil.copy(other / name, folder / name)


PROCESSOR = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
FAULTS = {
    "another family than the name says": ("qwen2_5_vl", {}, "model_type=qwen3_vl: expected qwen2_5_vl"),
    "no vision": ("mllm", {"config": {"model_type": "qwen3", "hidden_size": 32}}, "image-text-to-text models"),
    "no chat template": ("mllm", {"without": "chat_template.jinja"}, "lacks a chat template"),
    "a processor of another family": ("mllm", {"processor": "internvl"}, "differ in the token of an image"),
    "limits that a processor lacks": ("mllm", {"family": "internvl", "max_pixels": 9000}, "has no such limits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_refused_in_a_line(family_folder, fault, tmp_path):
    name, changes, words = FAULTS[fault]
    folder = shutil.copytree(family_folder(changes.get("family", "qwen3_vl")), tmp_path / "model")
    if "config" in changes:
        (folder / "config.json").write_text(json.dumps(changes["config"]))
    if "without" in changes:
        (folder / changes["without"]).unlink()
    if "processor" in changes:
        swap(folder, family_folder(changes["processor"]), *PROCESSOR)
    limits = {key: changes[key] for key in changes if key == "max_pixels"}
    with pytest.raises(UserError, match=words) as caught:
        policies.make(name, path=folder, device="cpu", **limits).generate(SHOWN[:1], 2)
    assert "\n" not in str(caught.value)


def test_a_processor_of_other_patches_is_refused(family_folder, tmp_path):
    folder = shutil.copytree(family_folder("qwen2_5_vl"), tmp_path / "model")
    swap(folder, family_folder("qwen3_vl"), *PROCESSOR)
    with pytest.raises(UserError, match="makes patches of 16 pixels, its model of 14: expected the model's own"):
        policies.make("mllm", path=folder, device="cpu").generate(SHOWN[:1], 2)


@pytest.mark.e2e(seconds=30)
@pytest.mark.parametrize("family, algo", [("qwen3_vl", "cgpo"), ("internvl", "cgpo"), ("internvl", "grpo")])
def test_two_updates_from_the_command_line(family_folder, family, algo, tmp_path):
    small = ("algo.updates=2", "algo.batch_size=8", "algo.max_new_tokens=12", "algo.patience=null")
    model = ("policy=mllm", f"policy.path={family_folder(family)}", "policy.dtype=float32", "policy.lora_rank=2")
    few = ("evaluation.samples=4", "evaluation.pictures=0", f"out={tmp_path}/run")
    assert run.main(["env=sis", f"algo={algo}", *model, *small, *few]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    again, _ = evaluate_command.evaluate_again(tmp_path / "run")
    assert again["sis"].scores == pytest.approx(results["after"])
    trained = load_file(next((tmp_path / "run").rglob("adapter_model.safetensors")))
    moved = any(value.abs().sum() > 0 for name, value in trained.items() if "lora_B" in name)
    assert moved == (algo == "cgpo")  # equal rewards, all 0 here, have an advantage of 0 in a group
