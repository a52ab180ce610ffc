"""Helpers of training loops: the logging callback, atomic checkpoints, and checks of numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from maskgym.errors import UserError

OnLog = Callable[[int, Mapping[str, float]], None]  # takes an update's number, from 1, and named scalars


def write_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and names atomically."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        torch.save(state, temporary)
    except BaseException:  # on a full disk or Ctrl-C the older file stays and the partial one is removed
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, file)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a checkpoint of `write_checkpoint` to the CPU.

    Raises:
        UserError: If the file is missing.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file of weights") from error


def check_agent(agent: Any, state: Mapping[str, Any], file: Path) -> None:
    """Raise a UserError if another algorithm wrote the checkpoint, whose ``agent`` names the agent's class."""
    expected = type(agent).__name__
    if state.get("agent") != expected:
        raise UserError(f"{file}: a checkpoint of {state.get('agent')}: expected one of {expected}")


def check_at_least(least: int, **numbers: int) -> None:
    """Raise a UserError that names the setting if a number is too small."""
    for name, value in numbers.items():
        if value < least:
            raise UserError(f"algo.{name}={value}: expected at least {least}")
