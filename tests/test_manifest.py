"""Manifests: what is unchanged passes, and each kind of damage is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskgym import manifest
from maskgym.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(100))
    manifest.write(tmp_path, step=4)
    return tmp_path


def test_an_unchanged_folder_passes_and_notes_beside_it_do_not_matter(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / "mine.json").write_text("{}")
    manifest.check(folder)
    manifest.check(folder, step=4)


def test_files_that_are_not_named_are_not_listed(folder: Path) -> None:
    manifest.write(folder, names=["a.json"])
    flip(folder / "inner" / "b.bin")
    manifest.check(folder)
    (folder / "a.json").write_text("[]")
    with pytest.raises(UserError, match="a.json: differs"):
        manifest.check(folder)


def test_a_folder_of_another_program_passes_unless_a_step_is_expected(tmp_path: Path) -> None:
    manifest.check(tmp_path)
    with pytest.raises(UserError, match="cannot be read as the manifest of a finished"):
        manifest.check(tmp_path, step=4)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "a.json").unlink(), "a.json: missing"),
    "cut": (lambda f: (f / "inner" / "b.bin").write_bytes(bytes(99)), "inner/b.bin: differs"),
    "flipped": (lambda f: flip(f / "inner" / "b.bin"), "inner/b.bin: differs"),
    "renamed": (lambda f: (f / "a.json").rename(f / "c.json"), "a.json: missing"),
    "step": (lambda f: manifest.write(f, step=99), "of step 99: expected step 4"),
    "no JSON": (lambda f: (f / manifest.NAME).write_text("{"), "cannot be read"),
    "other JSON": (lambda f: (f / manifest.NAME).write_text("[1]"), "cannot be read"),
    "other files": (lambda f: (f / manifest.NAME).write_text('{"step": 4, "files": [3]}'), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(folder: Path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        manifest.check(folder, step=4)
    assert "\n" not in str(caught.value)
