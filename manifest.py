"""Manifests: sizes and checksums of the files in a folder of weights, so that damage is noticed before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from maskgym import files
from maskgym.errors import UserError

NAME = "maskgym_manifest.json"


def write(folder: Path, step: int | None = None, names: Iterable[str] | None = None) -> None:
    """Write the manifest of a folder, its last file; a folder without one was not finished, or is another program's.

    Args:
        folder: The folder.
        step: Number of finished updates, of a checkpoint.
        names: Files to list; None lists all, with those in its folders.
    """
    listed = describe(folder, _names(folder) if names is None else names)
    files.write(folder / NAME, json.dumps({"step": step, "files": listed}, indent=1) + "\n")


def describe(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int | str]]:
    """Compute the size and the SHA-256 checksum of files in a folder, by name, sorted."""
    return {name: _describe(folder / name) for name in sorted(names)}


def check(folder: Path, step: int | None = None) -> None:
    """Compare a folder with its manifest, if it has one.

    Args:
        folder: Folder from `write`, or any other.
        step: Number of finished updates that the manifest, which must then exist, must state; None accepts any.

    Raises:
        UserError: If the manifest cannot be read, a file is missing or changed, or the step is another one.
    """
    file = folder / NAME
    if step is None and not file.exists():
        return
    try:
        found = json.loads(files.read(file))
        known, listed = found["step"], dict(found["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the manifest of a finished checkpoint or policy") from error
    if step is not None and known != step:
        raise UserError(f"{file}: of step {known}: expected step {step}, as the folder's name says")
    for name, description in listed.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, but listed in {NAME}: expected the folder as it was saved")
        if _describe(folder / name) != description:
            raise UserError(f"{folder / name}: differs from {NAME}: expected the file as it was saved")


def fingerprint(path: Path) -> str:
    """Compute 16 hexadecimal digits that identify the weights in a folder, or in one file.

    The checksums of a manifest are taken as they are, so that no gigabytes are read again.

    Raises:
        UserError: If the manifest cannot be read.
    """
    file = path / NAME
    try:
        if file.exists():
            listed = json.loads(files.read(file))["files"]
        else:
            listed = describe(path, _names(path)) if path.is_dir() else {"": _describe(path)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as weights, or as the manifest of a saved policy") from error
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def _names(folder: Path) -> Iterator[str]:
    """Yield the paths of a folder's files, relative to it, except that of the manifest."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != NAME:
            yield name


def _describe(file: Path) -> dict[str, int | str]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}
