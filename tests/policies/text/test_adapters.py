"""Adapters on disk: unmerged, to the last digit, beside their base model; merged only by a command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgym import manifest
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.errors import UserError
from maskgym.experiments import cli
from maskgym.policies.text import adapters
from maskgym.policies.text.mllm import TINY, LanguagePolicy

SHOWN = [{"image": Scenes("sis", "test")[index].images[0], "instruction": INSTRUCTIONS["sis"]} for index in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LanguagePolicy]:
    """A folder of adapters, its base model's folder, and the policy that was saved."""
    folder = tmp_path_factory.mktemp("adapters")
    policy = LanguagePolicy(shutil.copytree(TINY, folder / "base"), lora_rank=2, lora_alpha=4.0, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2, generator=generator)
    policy.save(folder / "saved")
    return folder / "saved", folder / "base", policy


def loaded(folder: Path, rank: int | None = 2, alpha: float = 4.0, **arguments: str) -> LanguagePolicy:
    return LanguagePolicy(folder, rank, alpha, device="cpu", **arguments)


def refused(policy: LanguagePolicy) -> str:
    with pytest.raises(UserError) as caught:
        policy.generate(SHOWN)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_the_adapters_are_written(trained: tuple) -> None:
    folder, base, policy = trained
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    count = sum(value.numel() for value in policy.model.parameters() if value.requires_grad)
    assert 4 * count < size < 4 * count + 20_000 and not (folder / "model.safetensors").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 4.0, str(base))
    listed = json.loads((folder / manifest.NAME).read_text())["files"]
    assert {"adapter_model.safetensors", "adapter_config.json", "maskgym_base.json", "tokenizer.json"} <= set(listed)


def test_adapters_load_bit_by_bit_and_go_on_training(trained: tuple) -> None:
    folder, _, policy = trained
    again = loaded(folder)
    assert again.generate(SHOWN) == policy.generate(SHOWN) != LanguagePolicy(TINY, device="cpu").generate(SHOWN)
    states = policy.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    names = [[name for name, value in one.model.named_parameters() if value.requires_grad] for one in (policy, again)]
    assert names[0] == names[1] and all("lora_" in name and "language_model" in name for name in names[0])


def test_what_is_saved_again_names_the_first_base(trained: tuple, tmp_path: Path) -> None:
    folder, _, _ = trained
    loaded(folder).save(tmp_path / "again")
    for name in ("maskgym_base.json", "adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_peft_loads_the_folder(trained: tuple) -> None:
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder, base, policy = trained
    model = PeftModel.from_pretrained(Qwen2_5_VLForConditionalGeneration.from_pretrained(base), folder)
    state = policy.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if "lora_" in name)


@pytest.mark.parametrize(
    ("rank", "alpha", "words"),
    [
        (None, 4.0, "policy.lora_rank=null: the adapters in .* have 2: expected policy.lora_rank=2"),
        (16, 4.0, "policy.lora_rank=16: the adapters in .* have 2"),
        (2, 32.0, "policy.lora_alpha=32.0: the adapters in .* have 4.0: expected policy.lora_alpha=4.0"),
    ],
)
def test_other_keys_than_those_of_the_adapters_are_refused(trained: tuple, rank: int, alpha: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        loaded(trained[0], rank, alpha).generate(SHOWN)


def test_a_base_model_that_is_missing_changed_or_elsewhere(trained: tuple, tmp_path: Path) -> None:
    folder, _, policy = trained
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / manifest.NAME).unlink()
    file, base = moved / adapters.BASE, tmp_path / "base"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"path": str(base)}))
    assert f"{base}: the base model of the adapters in {moved} is missing" in refused(loaded(moved))
    other = loaded(TINY)  # the same model, in another place
    other.load(moved)
    assert other.generate(SHOWN) == policy.generate(SHOWN)
    shutil.copytree(TINY, base)
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (base / "model.safetensors").write_bytes(content)
    assert f"{base / 'model.safetensors'}: differs from the base model of the adapters in {moved}" in refused(
        loaded(moved)
    )


def test_adapters_of_another_program_need_no_description(trained: tuple, tmp_path: Path) -> None:
    folder, _, policy = trained
    plain = shutil.copytree(folder, tmp_path / "plain")
    for name in (adapters.BASE, manifest.NAME):
        (plain / name).unlink()
    assert loaded(plain).generate(SHOWN) == policy.generate(SHOWN)
    config = json.loads((plain / adapters.CONFIG).read_text())
    (plain / adapters.CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "none")}))
    assert "none: the base model of the adapters in" in refused(loaded(plain))


def drop_a_tensor(folder: Path) -> None:
    state = load_file(folder / adapters.WEIGHTS)
    del state[next(iter(state))]
    save_file(state, folder / adapters.WEIGHTS, metadata={"format": "pt"})


DAMAGE = {
    "tensor dropped": (drop_a_tensor, "does not fit the model: 1 missing"),
    "no weights": (lambda folder: (folder / adapters.WEIGHTS).unlink(), "the adapters cannot be loaded"),
    "pickled": (lambda folder: torch.save({}, folder / adapters.WEIGHTS), "the adapters cannot be loaded"),
    "no settings": (lambda folder: (folder / adapters.CONFIG).write_text("{"), "cannot be read as the settings"),
    "other kind": (
        lambda folder: (folder / adapters.CONFIG).write_text('{"peft_type": "IA3"}'),
        "expected adapters of peft_type LORA",
    ),
    "no description": (lambda folder: (folder / adapters.BASE).write_text("[]"), "cannot be read as the description"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("listed", [True, False])
def test_damaged_adapters_are_refused_in_one_line(trained: tuple, tmp_path: Path, kind: str, listed: bool) -> None:
    damaged = shutil.copytree(trained[0], tmp_path / "damaged")
    damage, words = DAMAGE[kind]
    damage(damaged)
    if not listed:
        (damaged / manifest.NAME).unlink()
    line = refused(loaded(damaged))
    assert str(damaged) in line
    assert ("manifest" in line) if listed else (words in line)


def test_the_command_merges_in_float32(trained: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, base, policy = trained
    assert cli.main(["policy", "merge", str(folder), str(tmp_path / "merged")]) == 0
    assert "merged: adapters of rank 2 merged, float32" in capsys.readouterr().out
    name = "model.language_model.layers.1.mlp.down_proj"
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    key = next(key for key in before if key.endswith("layers.1.mlp.down_proj.weight") and "visual" not in key)
    state = policy.model.state_dict()
    low, high = (state[f"base_model.model.{name}.lora_{letter}.default.weight"] for letter in "AB")
    wanted = before[key].float() + 4.0 / 2 * high @ low
    assert after[key].dtype is torch.float32
    torch.testing.assert_close(after[key], wanted, atol=1e-7, rtol=1e-6)
    assert LanguagePolicy(tmp_path / "merged", device="cpu").generate(SHOWN) == policy.generate(SHOWN)
    assert cli.main(["policy", "merge", str(folder), str(tmp_path / "merged")]) == 2
    assert "exists: expected a new folder" in capsys.readouterr().err
    assert cli.main(["policy", "merge", str(tmp_path / "merged"), str(tmp_path / "other")]) == 2
    assert "no adapter_config.json there" in capsys.readouterr().err
    assert cli.main(["policy", "merge", str(folder), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = load_file(tmp_path / "half" / "model.safetensors")[key]
    assert half.dtype is torch.bfloat16 and torch.equal(half, wanted.bfloat16())
