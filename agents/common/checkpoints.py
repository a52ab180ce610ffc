"""Atomic checkpoints of training loops, and checks of numbers."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from maskgym import files
from maskgym.agents.base import Agent, OnLog
from maskgym.agents.common import parallel
from maskgym.aliases import JsonObject, Settings
from maskgym.errors import UserError

TrainingState = dict[str, JsonObject]  # state dictionaries of modules and optimizers, and descriptions, by name


class CheckpointedAgent(Agent):
    """Agent that writes its own checkpoints, so that a resumed training gives the same numbers.

    Random draws of an update must depend only on the seed and the update's number.

    Args:
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If save_every is below 1.
    """

    checkpoint_name: ClassVar[str]  # file name

    def __init__(self, seed: int, output: str | Path, save_every: int) -> None:
        check_at_least(1, save_every=save_every)
        self.seed, self.output, self.save_every = seed, Path(output), save_every

    @abstractmethod
    def training_state(self) -> TrainingState:
        """Collect the weights and the states of optimizers."""

    def learned_state(self) -> TrainingState:
        """Collect the tensors that must stay finite; a subclass whose `training_state` takes long has fewer."""
        return self.training_state()

    @abstractmethod
    def load_training_state(self, state: Settings, file: Path) -> None:
        """Load what `training_state` returned; ``file`` is for errors."""

    def save(self, path: str | Path) -> None:
        """Write the training state to ``policy.pt`` in a folder; a subclass may write the weights alone."""
        write_checkpoint(Path(path) / "policy.pt", self.training_state())

    def load(self, path: str | Path) -> None:
        """Load what `save` wrote.

        Raises:
            UserError: If the file is missing, damaged, or of other settings.
        """
        file = Path(path) / "policy.pt"
        with fitting(file):
            self.load_training_state(read_checkpoint(file), file)

    def finish_update(self, number: int, values: dict[str, float], on_log: OnLog) -> None:
        """Report an update, counted from 1, and write a checkpoint if one is due.

        Raises:
            UserError: If a weight is not finite: a finite loss may have a gradient that is not.
        """
        on_log(number, values)
        if name := not_finite(self.learned_state()):
            raise UserError(f"update {number}: {name} is not finite: stopped before a checkpoint of it")
        if number % self.save_every == 0:
            self.checkpoint(number)

    def checkpoint(self, number: int) -> None:
        """Write the state after a number of updates; rank 0 writes, because the state is the same on all workers."""
        if not parallel.rank():
            state = {**self.training_state(), "update": number, "agent": type(self).__name__}
            write_checkpoint(self.output / self.checkpoint_name, state)

    def restore(self) -> int:
        """Load the checkpoint in ``output``, if any; return its number of finished updates.

        Raises:
            UserError: If another algorithm wrote the checkpoint, or the policy's settings differ.
        """
        file = self.output / self.checkpoint_name
        if not file.exists():
            return 0
        state = read_checkpoint(file)
        if state.get("agent") != type(self).__name__:
            raise UserError(f"{file}: a checkpoint of {state.get('agent')}: expected one of {type(self).__name__}")
        with fitting(file):
            self.load_training_state(state, file)
            return state["update"]


def not_finite(state: Settings, prefix: str = "") -> str:
    """Name the first tensor of nested dictionaries that is not finite; empty if there is none."""
    for name, value in state.items():
        if isinstance(value, dict):
            if found := not_finite(value, f"{prefix}{name}."):
                return found
        elif isinstance(value, torch.Tensor) and not value.isfinite().all():
            return f"{prefix}{name}"
    return ""


def write_checkpoint(file: Path, state: Settings) -> None:
    """Write tensors, numbers and names atomically; missing folders are created."""
    with files.replacing(file) as temporary:
        torch.save(state, temporary)


def read_checkpoint(file: Path, device: torch.device | str = "cpu") -> Settings:
    """Load a checkpoint of `write_checkpoint` to a device.

    Raises:
        UserError: If the file is missing, damaged (its checksums tell), or no checkpoint.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise UserError(f"{file}: is no regular file: expected the file of a checkpoint")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # PyTorch itself compares no checksums.
        if damaged is not None:
            raise UserError(f"{file}: damaged at {damaged}: expected the file as it was written")
        state = torch.load(file, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file of weights") from error
    except UserError:
        raise
    # Damage makes the readers of zip files and pickles raise anything. They advise to allow code, so none is quoted.
    except Exception as error:
        raise UserError(f"{file}: cannot be read as a checkpoint ({type(error).__name__}): was it damaged?") from error
    if not isinstance(state, dict):
        raise UserError(f"{file}: holds a {type(state).__name__}: expected the dictionary of a checkpoint")
    return state


@contextmanager
def fitting(file: Path) -> Iterator[None]:
    """Turn the errors of loading a state into modules and optimizers into a UserError that names its file."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: does not fit this run: {type(error).__name__}: {reason}") from error


def check_at_least(least: float, **numbers: float) -> None:
    """Raise a UserError that names the setting if a number is too small or NaN."""
    for name, value in numbers.items():
        if not value >= least:
            raise UserError(f"algo.{name}={value}: expected at least {least}")
