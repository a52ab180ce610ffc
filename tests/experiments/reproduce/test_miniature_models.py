"""Miniature checkpoints: the published files, ids and conversation, deterministic, and loaded by the same code."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLProcessor, Qwen2Tokenizer

from maskgym import policies, segmenters
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.experiments.planning.published import POLICIES, policy_config
from maskgym.experiments.reproduce.miniature_models import (
    BASE_IDS,
    MINIATURES,
    write_policy,
    write_segmenter,
)

FILES = {
    *("README.md", "chat_template.json", "config.json", "generation_config.json", "merges.txt", "tokenizer.json"),
    *("model.safetensors.index.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"),
}


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_policy(folder, shard="8MB")
    return folder


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    write_segmenter(folder)
    return folder


def test_the_folder_has_the_files_and_names_of_the_published_one(policy_folder):
    shards = {path.name for path in policy_folder.glob("model-0000*-of-00003.safetensors")}
    assert {path.name for path in policy_folder.iterdir()} == FILES | shards and len(shards) == 3
    names = json.loads((policy_folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"} <= names.keys()
    assert {
        "visual.patch_embed.proj.weight",
        "visual.blocks.1.attn.qkv.weight",
        "visual.merger.mlp.2.bias",
    } <= names.keys()
    assert "random numbers of seed 0" in (policy_folder / "README.md").read_text()
    assert "merges were trained on the instructions and rationales" in (policy_folder / "README.md").read_text()


def test_ids_and_conversation_are_those_of_the_published_tokenizer(policy_folder):
    processor = AutoProcessor.from_pretrained(policy_folder)
    tokenizer = processor.tokenizer
    assert isinstance(processor, Qwen2_5_VLProcessor) and isinstance(tokenizer, Qwen2Tokenizer)
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (151665, 151645, 151643)
    numbers = {"<|im_start|>": 151644, "<|vision_start|>": 151652, "<|image_pad|>": 151655, "<|file_sep|>": 151664}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in numbers} == numbers
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]}]
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    told = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert told == f"{system}<|im_start|>user\n{picture * 2}What?<|im_end|>\n<|im_start|>assistant\n"
    named = processor.apply_chat_template(asked, tokenize=False, add_vision_id=True)
    assert f"Picture 1: {picture}Picture 2: {picture}What?" in named
    own = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
    ]
    told = processor.apply_chat_template(own, tokenize=False)
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes"))
    assert told == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def test_any_text_survives_the_tokenizer_and_known_words_are_short(policy_folder):
    tokenizer = Qwen2Tokenizer.from_pretrained(policy_folder)
    for text in (INSTRUCTIONS["sis"], "Ünïcödé 象 <answer>\n\t12,3</answer>", str(Scenes("sis")[900].rationale)):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text and max(ids) < BASE_IDS
    known = INSTRUCTIONS["sod"]
    assert len(tokenizer(known).input_ids) < len(known) / 3
    assert "unused" not in tokenizer.decode(tokenizer(known).input_ids)


def test_a_run_loads_and_trains_it_like_the_published_one(policy_folder):
    policy = policies.make("qwen2_5_vl", path=str(policy_folder), lora_rank=2, device="cpu", dtype="float32")
    shown = [{"image": Scenes("sis")[0].images[0], "instruction": INSTRUCTIONS["sis"]}]
    torch.manual_seed(0)
    assert policy.generate(shown, max_new_tokens=4)[0]
    values, mask = policy.log_probabilities(shown, ["<think>"])
    assert mask.any() and values.sum() < 0 and values.requires_grad
    assert policy.model.config.get_text_config().vocab_size == 152064
    assert not policy.model.config.tie_word_embeddings


@pytest.mark.parametrize("size", POLICIES)
def test_a_miniature_differs_from_the_published_sizes_in_depth_and_width_only(tmp_path, size):
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    smaller = {*sizes, "max_window_layers", "rope_scaling", "vision_config"}
    vision = {"depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "fullatt_block_indexes"}
    full, small = policy_config(POLICIES[size]), policy_config(MINIATURES[size])
    assert {"num_key_value_heads", *(key for key in full if full[key] != small[key])} == smaller
    assert {key for key, value in full["vision_config"].items() if value != small["vision_config"][key]} == vision
    (tmp_path / "config.json").write_text(json.dumps(full))
    config = AutoConfig.from_pretrained(tmp_path)
    assert sum(config.get_text_config().rope_parameters["mrope_section"]) * 2 == 128  # the width of a head


def test_the_segmenter_has_the_published_files_and_ids(segmenter_folder):
    assert {path.name for path in segmenter_folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "sentencepiece.bpe.model")
    }
    segmenter = segmenters.make("evf_sam", checkpoint=str(segmenter_folder), device="cpu")
    assert segmenter.config.beit3.vocabulary_size == 64010 and segmenter.config.beit3.image_size == 224
    assert segmenter.tokenizer("a red disc").input_ids[0] == 0 and segmenter.tokenizer.tokenize("a red disc") == [
        "▁a",
        "▁red",
        "▁disc",
    ]
    masks = segmenter.segment([np.zeros((40, 60, 3), np.uint8)], [["a red disc", "[semantic] star"]])
    assert masks[0].shape == (2, 40, 60)


def test_the_same_seed_gives_the_same_files_and_no_global_state_changes(policy_folder, segmenter_folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    write_policy(tmp_path / "a", shard="8MB")
    write_segmenter(tmp_path / "b")
    assert torch.equal(torch.rand(1), expected) and torch.get_default_dtype() == torch.float32
    for first, again in ((policy_folder, tmp_path / "a"), (segmenter_folder, tmp_path / "b")):
        for path in first.iterdir():
            same = (
                hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((again / path.name).read_bytes()).digest()
            )
            assert same, path.name
    write_segmenter(tmp_path / "c", seed=1)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "bc"]
    assert weights[0] != weights[1]


def test_sizes_reach_the_weights(tmp_path):
    write_policy(tmp_path, replace(MINIATURES["3b"], layers=1, vocab_size=151936), dtype=torch.float32)
    state = json.loads((tmp_path / "config.json").read_text())
    assert (state["num_hidden_layers"], state["vocab_size"], state["torch_dtype"]) == (1, 151936, "float32")
    policy = policies.make("qwen2_5_vl", path=str(tmp_path), device="cpu")
    assert len(policy.model.model.language_model.layers) == 1 and policy.model.config.tie_word_embeddings
