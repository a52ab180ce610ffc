"""Mutated data files over all readers: harm is told by name, and what is harmless changes no value.

Each row is one small valid data set (`maskgym.benchmarks.fuzzing.layouts`), each case one mutation of one file of it
(`maskgym.benchmarks.fuzzing.mutations`). A set is read by ``maskgym.data.check`` and as a run reads it, predictions by
``maskgym evaluate``. Harm counts as told if a fault, a note or an error that the unchanged set does not have names the
file, the row or the key.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from random import Random

import datasets
import numpy as np

from maskgym import data
from maskgym.benchmarks.fuzzing import trees
from maskgym.benchmarks.fuzzing.layouts import PREDICTED, TRUTH, Layout, layouts
from maskgym.benchmarks.fuzzing.mutations import Mutation, mutate
from maskgym.benchmarks.fuzzing.trees import Tree
from maskgym.benchmarks.fuzzing.verdicts import Tally, guarded, lines_of, strict, wrong_line
from maskgym.data import Dataset, Sample, WithRationales
from maskgym.data.check import check
from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluate_command

HARMFUL_SHARE = 0.65


@dataclass
class Reading:
    """Result of reading a data set.

    Attributes:
        told: Lines of faults, notes and errors, with the folder's name replaced.
        values: Samples, or scores; None if it was refused.
    """

    told: list[str] = field(default_factory=list)
    values: list[object] | None = None


def read(layout: Layout, root: Path) -> Reading:
    """Read a data set in the layout's way."""
    found = Reading()
    if layout.how == "predictions":
        _evaluate(layout, root, found)
    else:
        _read_data(layout, root, found)
    found.told = [line.replace(str(root.resolve()), "ROOT").replace(str(root), "ROOT") for line in found.told]
    return found


def _read_data(layout: Layout, root: Path, found: Reading) -> None:
    """Check the set, then read every sample of it as a run does."""
    arguments = {**layout.arguments}
    with _telling(found):
        if layout.how == "data":
            with contextlib.redirect_stderr(io.StringIO()):
                report = check(layout.data, root, arguments.pop("task", None), **arguments)
            found.told += [*report.faults, *report.notes]
            str(report).encode()
    with _telling(found):
        source = {"path": str(root)} if layout.how == "hf" else {"root": root}
        made: Dataset = data.make(layout.data, split="all", **source, **layout.arguments)
        if layout.how == "rationales":
            made = WithRationales(made, root / "reasons.jsonl")
        found.told += made.describe()
        found.values = [made[index] for index in range(len(made))]


def _evaluate(layout: Layout, root: Path, found: Reading) -> None:
    """Score the predictions; the values are the scores of the set and of each image."""
    out = root.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = [f"data.{name}={value}" for name, value in layout.arguments.items()]
    command = [str(root / PREDICTED), f"data={layout.data}", f"data.root={root / TRUTH}", *settings]
    with _telling(found), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        evaluate_command.answer(evaluate_command.parse([*command, "--split=all", "--jobs=1", f"--out={out}"]))
        (scores,) = json.loads((out / "results.json").read_text())["scores"].values()
        found.told += scores.pop("notes", [])
        found.values = [scores, (out / "images.csv").read_text()]


@contextlib.contextmanager
def _telling(found: Reading) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        found.told += lines_of(error)
        found.values = None


def same(one: object, other: object) -> bool:
    """Compare samples, or scores, to the last bit."""
    if isinstance(one, Sample) and isinstance(other, Sample):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(Sample))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


@dataclass
class Row:
    """Cases of one layout.

    Attributes:
        layout: The data set.
        seed: Seed of all cases.
        tallies: Harmful and harmless mutations.
    """

    layout: Layout
    seed: int
    tallies: tuple[Tally, Tally] = field(init=False)

    def __post_init__(self) -> None:
        name = self.layout.name
        self.tallies = Tally(f"{name}: harmful", True), Tally(f"{name}: harmless", False)

    def run(self, count: int) -> Iterator[None]:
        """Try so many mutations, each with a generator of its own; yield after each."""
        name = self.layout.name
        with tempfile.TemporaryDirectory() as folder, strict(), _own_cache(Path(folder)):
            place, tree = Path(folder), self.layout.tree()
            trees.write(tree, place / "outside", place)
            sound = self._read(tree, place)
            if sound.values is None:
                raise AssertionError(f"{name}: the unchanged set is refused: {sound.told}")
            for number in range(count):
                random = Random(f"{self.seed} {name} {number}")
                harmful = random.random() < HARMFUL_SHARE
                mutation = mutate(random, self.layout, tree, harmful)
                failure = guarded(partial(self._judge, mutation, sound, place))
                label = f"{name}, --seed {self.seed}, number {number}, {mutation.reason}"
                self.tallies[0 if harmful else 1].add(label, failure)
                yield

    def _read(self, tree: Tree, place: Path) -> Reading:
        """Write a tree and read it."""
        root = place / "root"
        shutil.rmtree(root, ignore_errors=True)
        trees.write(tree, root, place / "outside")
        return read(self.layout, root)

    def _judge(self, mutation: Mutation, sound: Reading, place: Path) -> str:
        """Read a mutated set; return the failure, empty if there is none."""
        found = self._read(mutation.tree, place)
        if wrong := next(filter(None, map(wrong_line, found.told)), ""):
            return wrong
        new = [line for line in found.told if line not in sound.told]
        if not mutation.harmful:
            equal = found.values is not None and same(found.values, sound.values)
            return "" if equal else f"a harmless mutation changed values: {new[:3]}"
        if any(name in line for line in new for name in mutation.names):
            return ""
        silent = "it is not told" if found.values is not None else "it is refused by another name"
        return f"{silent}: expected one of {mutation.names}, came {new[:3]}"


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Keep the caches of the Hugging Face library in a folder of this row."""
    kept, shown = datasets.config.HF_DATASETS_CACHE, datasets.is_progress_bar_enabled()
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = kept
        if shown:
            datasets.enable_progress_bars()


def rows_of(seed: int) -> tuple[Row, ...]:
    """List the rows."""
    return tuple(Row(layout, seed) for layout in layouts())


def counts_of(total: int, rows: Sequence[Row]) -> list[int]:
    """Share a number of cases evenly among rows; each gets at least one."""
    return [max(1, (total + place) // len(rows)) for place in range(len(rows))] if rows else []
