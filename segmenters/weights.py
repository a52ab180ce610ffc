"""Read, load strictly and write state dicts in safetensors or PyTorch files, whole or in shards."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from maskgym.errors import UserError, brief

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Network = TypeVar("Network", bound=nn.Module)

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
NAMES_SHOWN = 3


def find_weights(folder: Path) -> Path:
    """Find the weights file, or the index of the shards, in a folder.

    Raises:
        UserError: If the folder holds no weights.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights there: expected one of {', '.join(WEIGHT_NAMES)}")


def weights_file(path: Path, names: Sequence[str]) -> Path:
    """Find a file of weights: the path itself, or the only file of a folder that has one of the published names.

    Args:
        path: File, or folder that holds it.
        names: Names under which the weights are published.

    Raises:
        UserError: If the path does not exist, or the folder holds none or several of the names.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint: expected a file of weights, or a folder that holds one")
    found = [name for name in names if (path / name).is_file()]
    if len(found) == 1:
        return path / found[0]
    if not found:
        raise UserError(f"{path}: no weights there: expected {'one of ' * (len(names) > 1)}{', '.join(names)}")
    raise UserError(f"{path}: holds {' and '.join(found)}: expected the path of one of them")


def weight_files(file: Path) -> list[Path]:
    """List the files that hold tensors: the file itself, or the shards that an index names.

    Raises:
        UserError: If the file or a shard is missing, or the index cannot be read.
    """
    shards = [file]
    if file.suffix == ".json":
        try:
            names = sorted(set(json.loads(file.read_text())["weight_map"].values()))
            shards = [file.parent / name for name in names]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read as an index of weights: expected a 'weight_map'") from error
        if outside := next((name for name in names if Path(name).name != name), None):
            raise UserError(f"{file}: names {outside}: expected files of the same folder")
    for shard in shards:
        if not os.path.isfile(shard):  # unlike Path.is_file, it answers to names that no file can have
            raise UserError(f"{shard}: no such file of weights")
    return shards


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU without executing stored code.

    Args:
        file: ``.safetensors``, a file of ``torch.save``, or an index (``.json``) of either.

    Raises:
        UserError: If a file is missing or cannot be read.
    """
    state: dict[str, Tensor] = {}
    for shard in weight_files(file):
        state.update(_read_file(shard))
    return state


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        zipped = zipfile.is_zipfile(file)  # PyTorch's own format since 1.6, and the only one that memory can map
        if zipped:
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():  # PyTorch itself compares no checksums
                    raise UserError(f"{file}: cannot be read as weights: damaged at {damaged}")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # its text advises to load without weights_only, which would run code
        raise UserError(f"{file}: cannot be read as weights: damaged, or holds more than names and tensors") from error
    # A damaged file raises almost anything: IndexError, AssertionError, zipfile.BadZipFile, struct.error.
    except Exception as error:
        raise UserError(f"{file}: cannot be read as weights: {first_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: holds a {type(state).__name__}: expected names and tensors only")
    return dict(state)


def first_line(error: Exception) -> str:
    """Shorten an error of a library to one line: the first line of its message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: Path, ignore: Sequence[str] = (), assign: bool = True
) -> None:
    """Load a state dict into a module, or reject it as a whole.

    Args:
        module: Target module, possibly on the meta device.
        state: Names and tensors.
        source: File named in the error.
        ignore: Unused names that the state dict may contain.
        assign: Whether to use the given tensors as parameters instead of copying their values.

    Raises:
        UserError: If names are missing, unexpected, have another shape, or hold NaN or infinity; it shows the first few
            of each.
    """
    expected = module.state_dict()
    state = {name: value for name, value in state.items() if name not in ignore or name in expected}
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    refuse_mismatch(
        source,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        misshaped=misshaped,
    )
    module.load_state_dict(state, strict=True, assign=assign)
    refuse_broken(module, source)


def refuse_broken(module: nn.Module, source: Path | str) -> None:
    """Raise a UserError that names the first parameters with NaN or infinity, of which every output would be."""
    broken = [name for name, value in module.named_parameters() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{source}: damaged: {_named(broken, 'with NaN or infinity')}")


def refuse_mismatch(source: Path | str, **problems: Sequence[str]) -> None:
    """Raise one UserError with the count and first few names of each kind of problem, if there are problems."""
    parts = []
    for kind, names in problems.items():
        if names:
            parts.append(_named(names, kind))
    if parts:
        raise UserError(f"{source}: does not fit the model: {'; '.join(parts)}")


def _named(names: Sequence[str], kind: str) -> str:
    more = ", …" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:NAMES_SHOWN])}{more})"


def bundled(path: Path) -> Path:
    """Check that bundled weights exist, and return their path.

    Raises:
        UserError: If the package was installed without them.
    """
    if not path.exists():
        raise UserError(f"{path}: the bundled weights are missing: make them with maskgym pretrain")
    return path


def with_dtype(state: Mapping[str, Tensor], dtype: torch.dtype, exact: str) -> dict[str, Tensor]:
    """Convert the tensors of a state dict to ``dtype``, except the tensor named ``exact``, which becomes float32."""
    return {name: value.detach().to(torch.float32 if name == exact else dtype) for name, value in state.items()}


def check_sizes(config: DataclassInstance) -> None:
    """Raise a ValueError that names the first size of a config that is too small, or not of its default's type."""
    for field in fields(config):
        value, default = getattr(config, field.name), field.default
        if isinstance(default, tuple):
            fits = all(type(one) is int and one >= 0 for one in value)
        elif isinstance(default, bool):
            fits = isinstance(value, bool)
        else:
            fits = type(value) in (int, type(default)) and value >= (field.name != "window_size")
        if not fits:
            raise ValueError(f"{field.name} is {brief(value)}: expected one like {default}")


def without_weights(build: Callable[[], Network], source: Path) -> Network:
    """Build a network on the meta device, which keeps no weights; errors name ``source``.

    Raises:
        UserError: If the sizes fit no network.
    """
    try:
        with torch.device("meta"):
            return build()
    except (AssertionError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its config fits no network: {first_line(error)}") from error


def write_state(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a state dict as safetensors atomically."""
    temporary = file.with_name(f"{file.name}.tmp")
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, temporary, metadata={"format": "pt"})
    os.replace(temporary, file)


def write_text(text: str, file: Path) -> None:
    """Write a text file atomically."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)
