"""State dicts on disk; the messages of a whole checkpoint are tested in test_evf_sam."""

from __future__ import annotations

import json
import pickle
import random

import pytest
import torch
from torch import nn

from maskgym.errors import UserError
from maskgym.segmenters.weights import find_weights, load_strictly, read_state, weight_files, write_state, write_text


def test_what_is_written_is_read(tmp_path):
    state = {"half": torch.ones(2, dtype=torch.float16), "turned": torch.arange(6.0).reshape(2, 3).T}
    write_state(state, tmp_path / "model.safetensors")
    write_text("{}", tmp_path / "config.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = read_state(find_weights(tmp_path))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) and again[name].dtype == state[name].dtype for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_pytorch_are_read(tmp_path, zipped):
    torch.save({"a": torch.arange(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert read_state(find_weights(tmp_path))["a"].tolist() == [0, 1, 2]


def test_safetensors_come_before_pickles(tmp_path):
    write_state({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert find_weights(tmp_path).name == "model.safetensors"


class Trap:
    """Runs when unpickled."""

    def __reduce__(self):
        """Return a call."""
        return print, ("caught",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save({"a": Trap()}, tmp_path / "trap.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
    for name in ("trap.bin", "old.bin"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as weights"):
            read_state(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("name", "zipped"), [("a.safetensors", None), ("new.bin", True), ("old.bin", False)])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, name, zipped):
    state, file, chance = {"a.weight": torch.randn(40, 3), "b": torch.arange(5)}, tmp_path / name, random.Random(0)
    write_state(state, file) if zipped is None else torch.save(state, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        file.write_bytes(content)
        try:
            read_state(file)
        except UserError as error:
            told = str(error)
            assert (
                told.startswith(f"{file}: ") and "\n" not in told and "weights_only" not in told
            )  # which would run code


def test_a_flipped_bit_of_a_pytorch_file_is_noticed(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.bin")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[len(content) // 2] ^= 1  # of a number
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.bin: cannot be read as weights: damaged at x/data/0"):
        read_state(tmp_path / "x.bin")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    layer, state = nn.Linear(2, 1), {"weight": torch.tensor([[1.0, value]]), "bias": torch.zeros(1)}
    with pytest.raises(UserError, match=r"damaged: 1 with NaN or infinity \(weight\)"):
        load_strictly(layer, state, tmp_path)


@pytest.mark.parametrize("content", [{"a": 1}, [torch.zeros(1)], {"model": {"a": torch.zeros(1)}}])
def test_other_things_than_names_and_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match="expected names and tensors only"):
        read_state(tmp_path / "x.bin")


def test_an_index_names_its_shards(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}))
    write_state({"b": torch.ones(1)}, tmp_path / "1.safetensors")
    with pytest.raises(UserError, match="2.safetensors: no such file"):
        read_state(index)
    write_state({"a": torch.ones(1), "c": torch.ones(1)}, tmp_path / "2.safetensors")
    assert [file.name for file in weight_files(index)] == ["1.safetensors", "2.safetensors"]
    assert sorted(read_state(find_weights(tmp_path))) == ["a", "b", "c"]
    for outside in ("../2.safetensors", "/etc/passwd", "a/2.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(UserError, match="expected files of the same folder"):
            read_state(index)
    for name in ("x" * 5000, "a\0b", "..", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="no such file of weights"):
            read_state(index)
    for broken in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000):
        index.write_text(broken)
        with pytest.raises(UserError, match="index.json: cannot be read as an index"):
            read_state(index)


def test_strict_loading_onto_the_meta_device(tmp_path):
    with torch.device("meta"):
        layer = nn.Linear(2, 1)
    state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1), "extra": torch.zeros(1)}
    with pytest.raises(UserError, match="1 unexpected .extra.$"):
        load_strictly(layer, state, tmp_path)
    load_strictly(layer, state, tmp_path, ignore=["extra"])
    assert layer(torch.tensor([[2.0, 3.0]])).item() == 5


def test_only_the_first_names_are_shown(tmp_path):
    layers = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(5)))
    with pytest.raises(UserError) as caught:
        load_strictly(layers, {}, tmp_path)
    assert str(caught.value).endswith("5 missing (0.weight, 1.weight, 2.weight, …)")
