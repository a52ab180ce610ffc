"""Counts of models, against the models themselves and against published numbers."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from maskgym import policies
from maskgym.errors import UserError
from maskgym.experiments.planning import memory, models, segmenters
from maskgym.experiments.planning.models import count, published, read_config
from maskgym.experiments.planning.published import POLICIES, policy_config
from maskgym.experiments.planning.seconds import vision
from maskgym.experiments.planning.work import Work
from maskgym.policies.text.mllm import linear_layers


@pytest.fixture(scope="module")
def built():
    with torch.device("meta"):
        return {
            size: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**policy_config(sizes)))
            for size, sizes in POLICIES.items()
        }


@pytest.mark.parametrize(("size", "total"), [("7b", 8_292_166_656), ("3b", 3_754_622_976)])
def test_published_sizes_have_the_published_numbers_of_weights(built, size, total):
    model, found = built[size], published(size)

    def weights(part):
        return sum(layer.weight.numel() for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv3d))

    assert found.total == sum(value.numel() for value in model.parameters()) == total
    assert found.products == weights(model.model.language_model) and found.head == model.lm_head.weight.numel()
    patches, visual = (448 // 14) ** 2, model.model.visual
    expected = 2 * patches * (weights(visual) - weights(visual.merger)) + 2 * patches // 4 * weights(visual.merger)
    assert vision(found, Work()) == expected and found.tokens((448, 448)) == 256


@pytest.mark.parametrize("size", POLICIES)
def test_adapters_are_those_of_peft(built, size):
    settings = LoraConfig(r=8, target_modules=linear_layers(built[size]), task_type="CAUSAL_LM")
    with torch.device("meta"):
        adapted = get_peft_model(built[size], settings)
    expected = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
    adapted.unload()
    assert published(size, 8).trained == expected == published(size, 16).trained / 2


def test_without_adapters_the_language_part_is_trained_or_all():
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    config = read_config(policy)
    trained = sum(value.numel() for value in policy.model.parameters() if value.requires_grad)
    assert count(config, None).trained == trained
    assert count(config, None, frozen_vision=False).trained == count(config, None).total > trained


def test_keys_and_values_take_the_bytes_of_a_real_cache():
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    cache, found, work = DynamicCache(), count(read_config(policy), None), Work(answers=3, size=4, values=4, answer=7)
    length = work.tokens(found)
    policy.model.get_decoder()(inputs_embeds=torch.zeros(3, length, found.hidden), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.cache(found, work) == held


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "gemma3", "llava"])
def test_other_families_are_counted(family):
    config = CONFIG_MAPPING[family]()
    found, text = count(config, 4), config.get_text_config()
    assert found.family == family and found.layers == text.num_hidden_layers
    assert 0 < found.trained < found.products < found.total and found.tokens((448, 448)) > 0
    assert found.patches((448, 448)) > 0


def test_of_experts_those_that_serve_a_token_are_multiplied():
    config = CONFIG_MAPPING["qwen3_vl_moe"]()
    text = config.get_text_config()
    few = count(config, None)
    text.num_experts_per_tok *= 2
    more = count(config, None)
    expert = 3 * text.hidden_size * text.moe_intermediate_size
    assert more.total == few.total
    assert more.products - few.products == text.num_hidden_layers * expert * text.num_experts_per_tok // 2


def test_a_folder_needs_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(policy_config(POLICIES["3b"])))
    policy = policies.make("qwen2_5_vl", path=str(tmp_path), device="cpu")
    assert count(read_config(policy), 16) == published("3b")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no config.json in"),
        ("{", "cannot be read as JSON"),
        ('{"model_type": "bert"}', "model_type=bert: expected qwen2_5_vl, with vision_config"),
    ],
)
def test_a_folder_without_a_policy_is_named(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        read_config(policies.make("qwen2_5_vl", path=str(tmp_path), device="cpu"))


def test_code_beside_a_configuration_is_not_run(tmp_path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}, "vision_config": {}, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(own | {"num_hidden_layers": 1, "num_attention_heads": 1}))
    with pytest.raises(UserError, match="config.json: model_type=mine: expected one of"):
        read_config(policies.make("mllm", path=str(tmp_path), device="cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_family_whose_images_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="model_type=smolvlm: config.json does not tell the tokens of an image"):
        count(CONFIG_MAPPING["smolvlm"](), 4)


def test_the_segmenters_operations_are_those_published():
    found = segmenters.count()
    assert found.encode == pytest.approx(2 * 2.973e12, rel=0.01)  # SAM ViT-H: 2,973 billion multiply-adds
    assert found.prompt < found.encode / 40 and found.decode < found.prompt / 10
    assert found.parameters == pytest.approx(1.32e9, rel=0.01)
    assert models.RANK == 16
