"""The language policy: one code path for any folder, frozen vision, adapters, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgym import manifest, policies
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.errors import UserError
from maskgym.policies.text.mllm import TINY, LanguagePolicy, prefilled
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


def test_a_photo_that_the_processor_cannot_take_is_named_by_its_size(tiny: LanguagePolicy) -> None:
    thin = {"image": np.zeros((2, 900, 3), np.uint8), "instruction": INSTRUCTIONS["sis"]}
    with pytest.raises(UserError, match="refuses photos of 128x128, 900x2 pixels: absolute aspect ratio"):
        tiny.generate([*observations("sis", 1), thin])


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


class Seen(torch.nn.Module):
    """Keeps what a module puts out."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []
        module.register_forward_hook(lambda module, inputs, output: self.outputs.append(output.last_hidden_state))


@pytest.mark.parametrize("arguments", [{}, {"lora_rank": 2}, {"lora_rank": 2, "freeze_vision": False}])
def test_the_frozen_vision_encoder_runs_outside_autograd(arguments: dict) -> None:
    policy = LanguagePolicy(TINY, device="cpu", **arguments)
    whole = policy.model.get_base_model() if "lora_rank" in arguments else policy.model
    policy.model.gradient_checkpointing_enable()
    policy.model.enable_input_require_grads()  # as TRL does with adapters and gradient checkpointing
    seen = Seen(whole.model.visual)
    values, _ = policy.log_probabilities(observations("sis", 1), ["a"])
    assert len(seen.outputs) == 1 and not seen.outputs[0].requires_grad
    values.sum().backward()
    assert any(value.grad is not None for value in policy.model.parameters())


def test_a_vision_encoder_that_learns_stays_in_autograd() -> None:
    policy = LanguagePolicy(TINY, freeze_vision=False, device="cpu")
    policy.log_probabilities(observations("sis", 1), ["a"])[0].sum().backward()
    assert policy.model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("limits", "side"),
    [({}, 9), ({"max_pixels": 4 * 42**2, "min_pixels": 42**2}, 6), ({"max_pixels": 10**6, "min_pixels": 10**5}, 24)],
)
def test_images_are_resized_between_the_limits(limits: dict, side: int, tmp_path: Path) -> None:
    policy = LanguagePolicy(TINY, device="cpu", **limits)
    assert policy._inputs(observations("sis", 1))["image_grid_thw"].tolist() == [[1, side, side]]
    policy.save(tmp_path / "saved")
    kept = LanguagePolicy(tmp_path / "saved", device="cpu")
    assert kept._inputs(observations("sis", 1))["image_grid_thw"].tolist() == [[1, side, side]]


def test_attention_is_computed_as_asked(tiny: LanguagePolicy) -> None:
    eager = LanguagePolicy(TINY, device="cpu", attn_implementation="eager")
    assert (eager.model.config._attn_implementation, tiny.model.config._attn_implementation) == ("eager", "sdpa")


def test_saved_weights_load_again(tiny: LanguagePolicy, tmp_path: Path) -> None:
    tiny.save(tmp_path / "copy")
    shown = observations("sod", 4)
    assert LanguagePolicy(tmp_path / "copy", device="cpu").generate(shown) == tiny.generate(shown)
    assert not (tmp_path / "copy.tmp").exists()


# Each changes what is decoded by itself, if it is heeded.
DECODING = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "min_p": 0.9,
    "top_k": 1,
    "top_p": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "temperature": 0.01,
    "do_sample": True,
    "num_beams": 3,
    "min_new_tokens": 40,
    "bad_words_ids": [[20], [21], [22], [23]],
    "sequence_bias": [[[24], -50.0]],
    "forced_eos_token_id": 30,
    "suppress_tokens": [25, 26, 27],
    "begin_suppress_tokens": [7, 8, 9, 10, 11, 12, 13],
    "exponential_decay_length_penalty": [2, 3.0],
    "guidance_scale": 2.0,
}


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with many decoding settings of its own."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("decoding") / "policy")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | DECODING))
    return folder


def test_decoding_settings_of_a_checkpoint_do_not_leak(tiny: LanguagePolicy, opinionated: Path, tmp_path: Path) -> None:
    other, shown = LanguagePolicy(opinionated, device="cpu"), observations("sis", 8)
    assert other.generate(shown) == tiny.generate(shown)
    drawn = []
    for policy in (tiny, other):
        torch.manual_seed(0)
        drawn.append(policy.sample(shown, max_new_tokens=40))
    assert drawn[0].answers == drawn[1].answers and torch.equal(drawn[0].log_probabilities, drawn[1].log_probabilities)
    other.save(tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not set(kept) & set(DECODING) and kept["eos_token_id"] == [2] and kept["pad_token_id"] == 0


def test_the_checkpoints_own_end_tokens_end_an_answer_too(tiny: LanguagePolicy, tmp_path: Path) -> None:
    folder, shown = shutil.copytree(TINY, tmp_path / "policy"), observations("sis", 4)
    end = tiny.processor.tokenizer("</think>", add_special_tokens=False)["input_ids"][0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "pad_token_id": 0}))
    policy = LanguagePolicy(folder, device="cpu")
    assert all("<answer>" not in text for text in policy.generate(shown))
    (folder / "generation_config.json").write_text("{}")
    assert LanguagePolicy(folder, device="cpu").generate(shown) == tiny.generate(shown)


def test_a_prefilled_opening_is_part_of_the_answer(tiny: LanguagePolicy, tmp_path: Path) -> None:
    assert tiny.prefilled == ""
    folder, shown = shutil.copytree(TINY, tmp_path / "policy"), observations("sis", 6)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().rstrip() + "{% if add_generation_prompt %}<think>{% endif %}")
    policy = LanguagePolicy(folder, device="cpu")
    assert policy.prefilled == "<think>"
    answers = policy.generate(shown)
    assert [text.replace("<think>", "<think> ") for text in answers] == tiny.generate(shown)  # with it of its own
    values, mask = policy.log_probabilities(shown[:1], answers[:1])
    drawn = [*policy.processor.tokenizer(answers[0].removeprefix("<think>"))["input_ids"], 2]
    assert mask.sum() == len(drawn)
    torch.testing.assert_close(values, policy.log_probabilities(shown[:1], [drawn])[0])
    closed = policy.processor
    closed.chat_template += "</think>{# what the template closes itself is no opening #}"
    assert prefilled(closed) == ""


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


FILES = {
    "no tokenizer settings": ("tokenizer_config.json", None, "tokenizer_config.json: cannot be read as JSON"),
    "empty tokenizer settings": ("tokenizer_config.json", "{}", "tokenizer_config.json: no eos_token"),
    "tokenizer settings in part": ("tokenizer_config.json", '{"backend": "tokenizers"}', "no eos_token"),
    "empty config": ("config.json", "{}", "model_type=None: expected one of transformers"),
    "config without sizes": ("config.json", '{"model_type": "qwen2_5_vl"}', "with vision_config and hidden_size"),
    "a list": ("config.json", "[]", "config.json: holds a list"),
    "no template": ("chat_template.jinja", None, "lacks a chat template"),
    "a template that is no program": ("chat_template.jinja", "{% if", "its chat template fails: unexpected"),
    "a hostile template": ("chat_template.jinja", "{{ ''.__class__.mro() }}", "its chat template fails: access to"),
    "foreign code": (
        "config.json",
        json.dumps(json.loads((TINY / "config.json").read_text()) | {"auto_map": {"AutoProcessor": "own.Own"}}),
        None,
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_partly_copied_folder_is_refused_without_a_manifest_too(
    kind: str, tiny: LanguagePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question about running code"))
    name, content, words = FILES[kind]
    folder = shutil.copytree(TINY, tmp_path / "policy")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    (folder / "own.py").write_text("raise SystemExit('this code ran')")
    policy, shown = LanguagePolicy(folder, device="cpu"), observations("sis", 2)
    if words is None:
        assert policy.generate(shown) == tiny.generate(shown)
        return
    with pytest.raises(UserError, match=words) as caught:
        policy.generate(shown)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors", "tokenizer.json", "config.json"])
def test_one_flipped_byte_of_a_saved_policy_is_named(tiny: LanguagePolicy, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny.save(folder)
    assert (folder / manifest.NAME).exists()
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    other = LanguagePolicy(TINY, device="cpu")
    other.load(folder)
    with pytest.raises(UserError, match=f"{name}: differs from {manifest.NAME}"):
        other.generate(observations("sis", 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": None}, "path"),
        ({"path": TINY, "dtype": "int8"}, "dtype"),
        ({"path": TINY, "lora_rank": 0}, "lora_rank"),
        ({"path": TINY, "max_pixels": 0}, "policy.max_pixels=0: expected at least 1"),
        ({"path": TINY, "min_pixels": -1}, "policy.min_pixels=-1: expected at least 1"),
        ({"path": TINY, "attn_implementation": "fast"}, "attn_implementation=fast: expected one of eager, sdpa"),
        ({"path": TINY, "attn_implementation": "flash_attention_2"}, "its package flash_attn is not installed"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        LanguagePolicy(**arguments)


@pytest.mark.parametrize("limits", [{"max_pixels": 15875}, {"min_pixels": 15877}, {"max_pixels": 9, "min_pixels": 9}])
def test_limits_that_exclude_each_other_are_refused(limits: dict) -> None:
    with pytest.raises(UserError, match=r"policy\.min_pixels=.* expected min_pixels <= max_pixels"):
        _ = LanguagePolicy(TINY, device="cpu", **limits).processor
