"""The language policy: one code path for any folder, frozen vision, adapters, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.errors import UserError
from maskgym.policies.text.mllm import TINY, LanguagePolicy
from maskgym.rewards import parse


@pytest.fixture(scope="module")
def tiny() -> LanguagePolicy:
    return policies.make("qwen2_5_vl_tiny", device="cpu")


def observations(task: str, count: int) -> list[dict]:
    data = Scenes(task, "test")
    name = "images" if task == "cosod" else "image"
    pictures = [np.stack(data[i].images) if task == "cosod" else data[i].images[0] for i in range(count)]
    return [{name: picture, "instruction": INSTRUCTIONS[task]} for picture in pictures]


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_the_shipped_policy_answers_every_task_in_form(tiny: LanguagePolicy, task: str) -> None:
    answers = [parse(text, task) for text in tiny.generate(observations(task, 24))]
    assert np.mean([answer.structured and answer.tagged for answer in answers]) > 0.9


def test_batches_and_repeats_agree(tiny: LanguagePolicy) -> None:
    shown = observations("sis", 6)
    assert tiny.generate(shown) == tiny.generate(shown) == tiny.generate(shown, batch_size=4)


def test_temperature_and_length_matter(tiny: LanguagePolicy) -> None:
    shown = observations("sis", 8)
    torch.manual_seed(0)
    assert tiny.generate(shown, temperature=1.5) != tiny.generate(shown)
    assert all(len(text.split()) <= 5 for text in tiny.generate(shown, max_new_tokens=5))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_come_with_the_probabilities_of_their_tokens(tiny: LanguagePolicy, temperature: float) -> None:
    shown = observations("sis", 5)
    torch.manual_seed(0)
    plain = tiny.generate(shown, max_new_tokens=60, temperature=temperature)
    torch.manual_seed(0)
    answers, log_probabilities, mask, drawn = tiny.sample(shown, max_new_tokens=60, temperature=temperature)
    assert answers == plain
    again, same_mask = tiny.log_probabilities(shown, drawn, temperature)
    torch.testing.assert_close(again.detach(), log_probabilities * mask, atol=1e-3, rtol=1e-3)
    assert torch.equal(mask, same_mask)
    assert log_probabilities.shape == mask.shape and mask.dtype == torch.bool
    processor, end = tiny.processor, tiny.processor.tokenizer.eos_token_id
    for row, (observation, text) in enumerate(zip(shown, answers, strict=True)):
        messages, images = tiny.prompt(observation)
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[prompt], images=[images], return_tensors="pt")
        tokens = [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], end][:60]
        assert mask[row].sum() == len(tokens) and mask[row, : len(tokens)].all()
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([tokens])], dim=1)
        inputs.pop("attention_mask")
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(tokens)))
        with torch.no_grad():
            logits = tiny.model(input_ids=ids, **inputs).logits[0, -len(tokens) - 1 : -1]
        wanted = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(log_probabilities[row, : len(tokens)], wanted, atol=1e-3, rtol=1e-3)


def test_answers_as_text_get_an_end_token_and_a_gradient(tiny: LanguagePolicy) -> None:
    shown, texts = observations("sis", 2), ["<think>One.</think>", "<think>"]
    values, mask = tiny.log_probabilities(shown, texts)
    tokens = [[*tiny.processor.tokenizer(text)["input_ids"], 2] for text in texts]
    assert mask.sum(1).tolist() == [len(row) for row in tokens] and (values[~mask] == 0).all()
    alone, _ = tiny.log_probabilities(shown[1:], tokens[1:])
    torch.testing.assert_close(values[1:, : len(tokens[1])], alone, atol=1e-5, rtol=1e-5)
    weight = tiny.model.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.autograd.grad(values[0].sum(), weight)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["a"], "1 answers to 2 observations"),
        (["a", []], "answer 1 has no tokens"),
        (["<|image_pad|>", "a"], "answer 0 contains a token that stands for an image"),
    ],
)
def test_answers_without_a_log_probability_are_refused(tiny: LanguagePolicy, answers: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny.log_probabilities(observations("sis", 2), answers)


def test_the_vision_encoder_is_frozen_and_only_it(tiny: LanguagePolicy) -> None:
    frozen = {name for name, value in tiny.model.named_parameters() if not value.requires_grad}
    assert frozen and all(".visual." in name for name in frozen)
    assert not LanguagePolicy(
        TINY, freeze_vision=False, device="cpu"
    ).model.model.visual.patch_embed.proj.weight.grad_fn


def test_adapters_train_the_language_part_and_merge_on_saving(tmp_path: Path) -> None:
    policy = LanguagePolicy(TINY, lora_rank=2, device="cpu")
    trained = [name for name, value in policy.model.named_parameters() if value.requires_grad]
    assert trained and all("lora_" in name and "language_model" in name for name in trained)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    shown = observations("sis", 4)
    policy.save(tmp_path / "merged")
    assert LanguagePolicy(tmp_path / "merged", device="cpu").generate(shown) == policy.generate(shown)


def test_saved_weights_load_again(tiny: LanguagePolicy, tmp_path: Path) -> None:
    tiny.save(tmp_path / "copy")
    shown = observations("sod", 4)
    assert LanguagePolicy(tmp_path / "copy", device="cpu").generate(shown) == tiny.generate(shown)
    assert not (tmp_path / "copy.tmp").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [("missing", "1 missing "), ("unexpected", "1 unexpected "), ("shape", "mismatch|misshaped")],
)
def test_weights_that_do_not_fit_are_named(fault: str, words: str, tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "policy")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if ("layers.0" in name and "language" in name) or "model.layers.0" in name)
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state["model.strange.weight"] = torch.zeros(2)
    else:
        state[name] = torch.zeros(3, *state[name].shape)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=words) as caught:
        _ = LanguagePolicy(folder, device="cpu").model
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        _ = LanguagePolicy(tmp_path, device="cpu").model
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"})[:-1])
    with pytest.raises(UserError) as caught:
        _ = LanguagePolicy(tmp_path, device="cpu").model
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": None}, "path"),
        ({"path": TINY, "dtype": "int8"}, "dtype"),
        ({"path": TINY, "lora_rank": 0}, "lora_rank"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        LanguagePolicy(**arguments)
