"""Rationales from a file, as ``maskgym data reason`` writes them, for samples without a rationale."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import DataFault, check_regular
from maskgym.data.layout.listing import is_text
from maskgym.data.sample import Dataset, Sample
from maskgym.errors import UserError

QUERY = "refer"


class WithRationales(Dataset):
    """Samples of a data set with rationales from a file, in the data set's order.

    Samples without a rationale are left out and counted in `describe`, because there is nothing to imitate. Rows of
    other tasks, and of samples outside the data set (such as those of another split), are ignored.

    Args:
        dataset: Data set of the samples.
        file: JSON Lines, or several such files; each row holds ``key``, ``task``, ``rationale`` (the whole answer text)
            and optionally ``images``, a list with one entry per image of the sample. A key may lack the name of the
            sample's set, as in a file that was made from this set alone, if only one of the sets has it.

    Attributes:
        task, split: Task and split of the data set.
        keys: The key of each sample.

    Raises:
        UserError: If the file cannot be read, or has no rationale for any sample.
        DataFault: If a line is truncated, lacks one of the three fields, or repeats a sample.
    """

    def __init__(self, dataset: Dataset, file: str | Path | Sequence[str | Path]) -> None:
        files = [file] if isinstance(file, str | Path) else file
        self.dataset, self.file = dataset, ", ".join(map(str, files))
        self.task, self.split = dataset.task, dataset.split
        # A query's answers are JSON, although its objects are read as instances.
        task = QUERY if dataset.shown == QUERY else dataset.task
        rationales = read_rationales(files, task)
        found = find_rows(dataset, rationales)
        self._indices, self._rows = list(found), list(found.values())
        self.keys = tuple(dataset.keys[index] for index in self._indices)
        if not self.keys:
            raise UserError(
                f"{self.file}: {len(rationales)} rationales for {task}, none of them for the {len(dataset)} "
                f"samples of the {self.split} split: expected a file made from this data set"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of all samples."""
        return tuple(range(len(self)))

    @cached_property
    def shown(self) -> str:
        """Task as requested of the data set."""
        return self.dataset.shown

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Name of each sample's set, if the data set puts several together."""
        return tuple(self.dataset.sets[index] for index in self._indices) if self.dataset.sets else ()

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read the photos of one sample."""
        return self.dataset.photos(self._indices[index])

    def describe(self) -> list[str]:
        """List what is unusual about the data set, and count the samples that are left out."""
        left = len(self.dataset) - len(self)
        more = [f"{left} of {len(self.dataset)} samples are left out: no rationale in {self.file}"] if left else []
        return [*self.dataset.describe(), *more]

    def __getitem__(self, index: int) -> Sample:
        """Read a sample of the data set with its rationale from the file.

        Raises:
            UserError: If the rationale covers another number of images, as after another grouping.
        """
        sample, row = self.dataset[self._indices[index]], self._rows[index]
        count = len(row["images"]) if isinstance(row.get("images"), list) else len(sample.images)
        if count != len(sample.images):
            raise UserError(
                f"{self.file}: the rationale for '{sample.key}' is of {count} images, the sample has "
                f"{len(sample.images)}: expected groups of the same size"
            )
        return replace(sample, rationale=row["rationale"])


def read_rows(file: Path) -> Iterator[tuple[int, JsonObject]]:
    """Yield the line number, from 1, and the object of each non-empty line of a JSON Lines file.

    Raises:
        UserError: If the file cannot be read.
        DataFault: If it is no regular file, or a line is not a JSON object.
    """
    check_regular(file)
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataFault(f"{file}: line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataFault(f"{file}: line {number}: a {type(row).__name__} in place of a JSON object")
        yield number, row


def find_rows(dataset: Dataset, rationales: Mapping[str, JsonObject]) -> dict[int, JsonObject]:
    """Find the row of each sample that has one, by index.

    Args:
        dataset: Data set of the samples.
        rationales: Rows by key, of the data set or, without the name of a set, of one of its sets.

    Raises:
        UserError: If a key without the name of a set is that of samples of several sets.
    """
    bare = Counter(key.partition("/")[2] for key in dataset.keys) if dataset.sets else Counter[str]()
    found = {}
    for index, key in enumerate(dataset.keys):
        own = key.partition("/")[2]
        if key in rationales:
            found[index] = rationales[key]
        elif dataset.sets and own in rationales:
            if bare[own] > 1:
                raise UserError(f"a rationale for '{own}': several sets have this key: expected '{key}', with the set")
            found[index] = rationales[own]
    return found


def read_rationales(file: str | Path | Sequence[str | Path], task: str) -> dict[str, JsonObject]:
    """Read the rows of a task from one or several files, by the key of their sample.

    Raises:
        UserError: If a file cannot be read.
        DataFault: If a line is truncated, lacks ``key``, ``task`` or ``rationale``, or repeats a sample.
    """
    files = [file] if isinstance(file, str | Path) else file
    found: dict[str, JsonObject] = {}
    for place in (Path(one).expanduser() for one in files):
        for number, row in read_rows(place):
            for name in ("key", "task", "rationale"):
                if not isinstance(row.get(name), str) or not row[name]:
                    came = json.dumps(row.get(name))[:60]
                    raise DataFault(f"{place}: line {number}: '{name}' is {came}: expected a text")
                if not is_text(row[name]):
                    raise DataFault(f"{place}: line {number}: '{name}' has half of a surrogate pair, which is no text")
            if row["task"] != task:
                continue
            if row["key"] in found:
                raise DataFault(f"{place}: line {number}: a second rationale for '{row['key']}'")
            found[row["key"]] = row
    return found
