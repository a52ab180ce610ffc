"""Damaged files: of run folders, before each command that reads them, and of checkpoints of text."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from maskgym import manifest
from maskgym.aliases import JsonObject
from maskgym.benchmarks.attacked import runs
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage
from maskgym.experiments import cli
from maskgym.experiments.web import play
from maskgym.experiments.wiring import run_folder

NESTED = 100_000  # brackets
Damage = Callable[[Path, random.Random], object]
Act = Callable[[Path], tuple[str, object]]  # reads a run; returns the line that told, and what came out


def _replace(file: Path, content: bytes) -> None:
    """Write a new file, so that a link to the old one stays whole."""
    file.unlink()
    file.write_bytes(content)


def _flip(file: Path, chance: random.Random) -> None:
    """Change one byte: any bit of one that a checksum covers, else the highest, which makes texts no UTF-8."""
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8) if covered(file) else 0x80
    _replace(file, bytes(content))


def _special(make: Callable[[Path], None]) -> Damage:
    def damage(file: Path, chance: random.Random) -> None:
        file.unlink()
        make(file)

    return damage


def _written(content: bytes) -> Damage:
    return lambda file, chance: _replace(file, content)


DAMAGES: dict[str, Damage] = {
    "removed": lambda file, chance: file.unlink(),
    "emptied": _written(b""),
    "truncated": lambda file, chance: _replace(
        file, file.read_bytes()[: chance.randrange(1, max(2, file.stat().st_size - 1))]
    ),
    "flipped": _flip,
    "{}": _written(b"{}"),
    "[]": _written(b"[]"),
    "null": _written(b"null"),
    "number": _written(b"17"),
    "text": _written(b'"\\u001b[2J"'),
    "nested": _written(b"[" * NESTED + b"]" * NESTED),
    "binary": lambda file, chance: _replace(file, chance.randbytes(2000)),
    "folder": _special(Path.mkdir),
    "pipe": _special(os.mkfifo),
    "link to itself": _special(lambda file: file.symlink_to(file)),
    "endless device": _special(lambda file: file.symlink_to("/dev/zero")),
}
ANOTHER = "another run's"


def covered(file: Path) -> bool:
    """Check whether a manifest or its own format has a checksum of a file."""
    if file.suffix == ".pt":
        return True
    return (file.parent / manifest.NAME).exists() and file.name != manifest.NAME


def damaged_files(stage: Stage) -> Case:
    """Prepare: one file of a run folder is damaged, and a command reads the folder."""
    readers: dict[str, dict[str, tuple[Path, Callable[[Path], str]]]] = {}

    def case(chance: random.Random, number: int) -> str:
        kind = stage.kinds[number % len(stage.kinds)]
        if kind not in readers:
            readers[kind] = _readers(stage, kind)
        name = chance.choice(list(readers[kind]))
        source, read = readers[kind][name]
        folder = stage.copied(source)
        file = runs.pick(chance, folder)
        how = chance.choice([*DAMAGES, *([ANOTHER] * (file.suffix != ".png"))])  # pictures of runs are all alike
        stage.label = f"{name} {kind}, {file.relative_to(folder)} {how}"
        checked = covered(file) and name != "report"
        if how == ANOTHER:
            _replace(file, _other(stage, kind, file.relative_to(folder)).read_bytes())
        else:
            DAMAGES[how](file, chance)
        line = read(folder)
        if how == "flipped" and checked and not line and _reads(name, file):
            raise Broken("a changed byte was not told")
        return line

    return case


def _reads(name: str, file: Path) -> bool:
    """Check whether a command reads a file of weights: one that resumes a finished run needs no policy, and so on."""
    ours = {"resume": "checkpoint", "evaluate": "policy", "play": "policy", "again": ""}[name]
    return bool(ours) and (ours in file.parent.name or file.name in ("clicks.pt", "masks.pt"))


def _other(stage: Stage, kind: str, name: Path) -> Path:
    """Find the file of the same place, or name, in a run of another kind, else any other of its kind."""
    for other in stage.kinds:
        folder = runs.finished(stage, other)
        same = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(f"*{name.suffix}"))
        if other != kind and same:
            return same[0]
    return runs.finished(stage, kind) / run_folder.RESULTS


def _readers(stage: Stage, kind: str) -> dict[str, tuple[Path, Callable[[Path], str]]]:
    """Build the commands that read a run: each with the folder to damage, and a function that compares what it does."""
    whole = runs.finished(stage, kind)
    expected, slim = runs.ended(whole), stage.folder / f"slim-{kind}"
    if not slim.exists():  # what only reads a finished run reads no checkpoint
        shutil.copytree(whole, slim, ignore=shutil.ignore_patterns("checkpoint-*", "clicks.pt", "masks.pt"))
    found: dict[str, Callable[[Path], tuple[str, object]]] = {
        "report": _reported,
        "evaluate": _evaluated,
        "play": _played,
    }
    right: dict[str, object] = {}
    pictured = len(list((slim / run_folder.SAMPLES).glob("*.png")))

    def compared(name: str) -> Callable[[Path], str]:
        def read(folder: Path) -> str:
            line, result = found[name](folder)
            left = [file for file in (folder / run_folder.SAMPLES).glob("*.png") if file.is_file()]
            same = result == right[name] or (name == "report" and len(left) < pictured)  # the page shows fewer
            if not line and not same:
                raise Broken("silently other")
            return line

        return read

    for name, act in found.items():
        line, right[name] = act(stage.copied(slim))
        if line:
            raise Broken(f"{name} of an undamaged run: {line}")
    resume = lambda folder: runs.resumed(folder, kind, expected)  # noqa: E731
    return {
        "resume": (runs.stopped(stage, kind), resume),
        "again": (whole, resume),
        **{name: (slim, compared(name)) for name in found},
    }


def _reported(folder: Path) -> tuple[str, object]:
    page = folder / "page.html"
    _, _, line = runs.command(cli.main, "report", str(folder), "--out", str(page))
    return line, "" if line else page.read_text()


def _evaluated(folder: Path) -> tuple[str, object]:
    _, out, line = runs.command(cli.main, "evaluate", str(folder))
    return line, "" if line else json.loads(out)


def _played(folder: Path) -> tuple[str, object]:
    from maskgym.benchmarks.attacked.harness import told

    shown: list[JsonObject] = []

    def act() -> None:
        game = play.open_game([], folder, folder / "played")
        place: JsonObject = {"task": game.tasks[0], "split": "test", "index": 0}
        shown.append(game.against({**place, "who": "policy"}))

    return told(act), shown


def edited_checkpoints(stage: Stage) -> Case:
    """Prepare: the folder of a checkpoint of text is edited, with its manifest left or written again; then resumed."""
    expected = runs.ended(runs.finished(stage, "text"))
    source = runs.stopped(stage, "text")

    def case(chance: random.Random, number: int) -> str:
        folder = stage.copied(source)
        checkpoint = folder / run_folder.CHECKPOINTS / "checkpoint-1"
        name, again = list(EDITS)[number % len(EDITS)], chance.random() < 0.5
        stage.label = f"{name}{', manifest written again' if again else ''}"
        EDITS[name](checkpoint)
        if again and checkpoint.is_dir():
            (checkpoint / manifest.NAME).unlink()
            manifest.write(checkpoint, 1)
        line = runs.resumed(folder, "text", expected)
        if not line and not again and name not in HARMLESS:
            raise Broken("the edit was not told")
        return line

    return case


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        state = load_file(checkpoint / "model.safetensors")
        change(state)
        save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})

    return edit


def _removed(state: dict[str, torch.Tensor]) -> None:
    del state[sorted(state)[0]]


def _renamed(state: dict[str, torch.Tensor]) -> None:
    name = sorted(state)[0]
    state["other"] = state.pop(name)


def _broken(state: dict[str, torch.Tensor]) -> None:
    state[sorted(state)[0]].view(-1)[0] = float("nan")


def _json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        file = checkpoint / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _without(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def _filled(name: str, content: str) -> Callable[[Path], object]:
    return lambda checkpoint: Path(checkpoint / name).write_text(content)


HARMLESS = ("a stray folder", "a file named as a checkpoint", "a newer folder without manifest")
EDITS: dict[str, Callable[[Path], object]] = {
    "no config": _without("config.json"),
    "empty config": _filled("config.json", "{}"),
    "a tensor less": _tensors(_removed),
    "a tensor renamed": _tensors(_renamed),
    "a tensor of NaN": _tensors(_broken),
    "no optimizer": _without("optimizer.pt"),
    "no scheduler": _without("scheduler.pt"),
    "no generators": _without("rng_state.pth"),
    "another step": _json("trainer_state.json", global_step=99),
    "no trainer state": _without("trainer_state.json"),
    "own state missing": _without("cgpo_state_0.pt"),
    "another temperature": _json("generation_config.json", temperature=0.01, do_sample=True, top_k=1),
    "a stray folder": lambda checkpoint: (checkpoint.parent / "checkpoint-abc").mkdir(),
    "a file named as a checkpoint": lambda checkpoint: Path(checkpoint.parent / "checkpoint-7").touch(),
    "a newer folder without manifest": lambda checkpoint: (checkpoint.parent / "checkpoint-2").mkdir(),
}
