"""Recipes of published experiments: what they stand for, and what beside them wins."""

from __future__ import annotations

import re

import pytest

from maskgym.errors import UserError
from maskgym.experiments.wiring import composition, recipes


def test_every_recipe_composes_with_each_of_its_options():
    for name in recipes.names():
        choices, _ = recipes._load(name)
        for choice, (_, options) in choices.items():
            for option in options:
                config = composition.compose([f"experiment={name}", f"{choice}={option}"])
                if choice in composition.groups():
                    assert config[choice]["name"] == option


@pytest.mark.parametrize("name", ["saliency_r1", "visionreasoner"])
def test_every_value_of_a_recipe_names_its_source(name):
    text = (recipes.RECIPES / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if re.search(r"[\w.]=", line)]
    assert len(lines) > 25
    for line in lines:
        assert "#" in line or line.strip().startswith(("sis:", "cosod:")), line  # these two are as the line above


def test_the_settings_of_saliency_r1_are_the_papers():
    config = composition.compose(["experiment=saliency_r1"])
    assert (config["env"]["name"], config["policy"]["name"]) == ("saliency", "qwen2_5_vl_7b")
    algo = config["algo"]
    assert (algo["name"], algo["updates"], algo["learning_rate"]) == ("cgpo", 3000, 1e-4)
    assert (algo["isr_period"], algo["isr_sft_steps"], algo["isr_learning_rate"]) == (5, 2, 1e-6)
    assert config["data"]["sis"] == ["ilso", "sis10k", "soc"] and config["env"]["group_size"] == 8
    assert config["reward"]["name"] == "saliency_r1" and algo["max_new_tokens"] >= 768
    supervised = 2 * algo["updates"] // 5
    assert (supervised, algo["updates"] - supervised) == (1200, 1800)


def test_what_stands_beside_a_recipe_wins():
    config = composition.compose(["algo.updates=7", "experiment=saliency_r1_sod", "size=3b", "data.sod=[ecssd,duts]"])
    assert (config["env"]["name"], config["policy"]["name"]) == ("sod", "qwen2_5_vl_3b")
    assert (config["algo"]["updates"], config["data"]["sod"]) == (7, ["ecssd", "duts"])
    tiny = composition.compose(["experiment=saliency_r1", "policy=qwen2_5_vl_tiny", "algo=dapo"])
    assert (tiny["policy"]["name"], tiny["algo"]["group_size"]) == ("qwen2_5_vl_tiny", 8)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=mars"], "experiment=mars: expected one of alignsam, saliency_r1, "),
        (["experiment=saliency_r1", "size=9b"], "size=9b: experiment=saliency_r1 has 7b, 3b"),
        (["experiment=saliency_r1", "experiment=saliency_r1_sod"], "expected one recipe"),
        (["size=3b"], "unknown key 'size'"),
    ],
)
def test_mistakes_are_one_line(arguments, expected):
    with pytest.raises(UserError, match=expected) as told:
        composition.compose(arguments)
    assert "\n" not in str(told.value)


def test_a_run_keeps_its_recipe():
    config = composition.compose(["env=sis"])
    with pytest.raises(UserError, match="experiment: is for a new run"):
        composition.change(config, ["experiment=saliency_r1"])


def test_the_settings_of_visionreasoner_are_the_published_ones():
    config = composition.compose(["experiment=visionreasoner"])
    env, algo, policy = config["env"], config["algo"], config["policy"]
    names = {group: config[group]["name"] for group in ("env", "algo", "data", "policy", "segmenter", "reward")}
    assert names == {
        **{"env": "refer", "algo": "grpo", "data": "grefcoco", "policy": "qwen2_5_vl_7b", "segmenter": "sam2"},
        **{"reward": "visionreasoner"},
    }
    assert (env["form"], env["coordinates"], env["image_size"], env["reasoning"]) == (
        *("boxes_points", "pixels", 840, True),
    )
    assert env["image_size"] % 28 == 0  # the model's own resizing leaves it, so pixels are those of the observation
    queries = algo["batch_size"] // algo["group_size"]
    assert (queries, algo["group_size"], algo["beta"], algo["max_new_tokens"]) == (16, 8, 1e-2, 2000)
    assert (policy["lora_rank"], policy["freeze_vision"], algo["learning_rate"]) == (None, False, 1e-6)
    assert algo["updates"] == config["train_samples"] // queries
    of_seg_zero = composition.compose(["experiment=visionreasoner", "data=refcocog", "weights=lora"])
    assert of_seg_zero["algo"]["updates"] == of_seg_zero["train_samples"] // queries == 562
    assert (of_seg_zero["policy"]["lora_rank"], of_seg_zero["policy"]["freeze_vision"]) == (16, True)
    own = composition.compose(["experiment=visionreasoner", "data=hf", "data.path=mine", "algo.updates=5"])
    assert (own["data"]["name"], own["train_samples"], own["algo"]["updates"]) == ("hf", None, 5)
