"""Checkpoints that are whole or not there, and settings that are in range."""

from __future__ import annotations

import os

import pytest
import torch

from maskgym.agents.common.checkpoints import check_at_least, fitting, not_finite, read_checkpoint, write_checkpoint
from maskgym.errors import UserError


def test_what_is_written_comes_back_and_no_part_of_it_is_left_behind(tmp_path):
    state = {"weights": {"a": torch.arange(3)}, "update": 4, "kind": "x"}
    write_checkpoint(tmp_path / "state.pt", state)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    found = read_checkpoint(tmp_path / "state.pt")
    assert torch.equal(found["weights"].pop("a"), torch.arange(3)) and found["update"] == 4
    with pytest.raises(TypeError):
        write_checkpoint(tmp_path / "state.pt", {"bad": (n for n in range(3))})
    assert read_checkpoint(tmp_path / "state.pt")["update"] == 4  # the old one is still whole


def test_the_first_tensor_that_is_not_finite_is_named():
    whole = {"a": torch.ones(2), "b": {"c": torch.arange(3), "d": [1.0], "e": "x"}, "f": float("inf")}
    assert not_finite(whole) == ""
    for bad in (torch.tensor([1, float("nan")]), torch.tensor(-float("inf"))):
        assert not_finite(whole | {"b": {**whole["b"], "z": bad}}) == "b.z"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    place = content.index(torch.arange(1000).numpy().tobytes()) + 4000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "cannot be read as a checkpoint"),
        (flip, "damaged at .*/data/"),
        (lambda content: b"", "cannot be read as a checkpoint"),
        (lambda content: b"junk" * 50, "cannot be read as a checkpoint"),
    ],
)
def test_damage_is_told_in_one_line_without_advice_to_run_code(tmp_path, damage, words):
    file = tmp_path / "state.pt"
    write_checkpoint(file, {"weights": torch.arange(1000), "update": 4})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"state\.pt: {words}") as caught:
        read_checkpoint(file)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: is no regular file"):
        read_checkpoint(tmp_path / "state.pt")


def test_code_and_other_objects_are_refused(tmp_path):
    torch.save({"weights": print}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"code\.pt: cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "code.pt")
    with pytest.raises(UserError, match=r"list\.pt: holds a list"):
        read_checkpoint(tmp_path / "list.pt")


def test_a_state_that_does_not_fit_is_told(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.pt: does not fit this run: RuntimeError: Error.* Missing key"),
        fitting(tmp_path / "a.pt"),
    ):
        torch.nn.Linear(1, 1).load_state_dict({})


def test_a_missing_file_and_a_small_number_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such file of weights"):
        read_checkpoint(tmp_path / "none.pt")
    check_at_least(1, epochs=1)
    with pytest.raises(UserError, match="algo.epochs=0: expected at least 1"):
        check_at_least(1, batch_size=2, epochs=0)
