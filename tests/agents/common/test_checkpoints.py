"""Checkpoints that are whole or not there, and settings that are in range."""

from __future__ import annotations

import pytest
import torch

from maskgym.agents.common.checkpoints import check_at_least, read_checkpoint, write_checkpoint
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


def test_a_missing_file_and_a_small_number_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such file of weights"):
        read_checkpoint(tmp_path / "none.pt")
    check_at_least(1, epochs=1)
    with pytest.raises(UserError, match="algo.epochs=0: expected at least 1"):
        check_at_least(1, batch_size=2, epochs=0)
