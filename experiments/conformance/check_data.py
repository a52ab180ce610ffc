"""Check a data set: every split, its keys, and some samples, in the environments that show them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial

import numpy as np

from maskgym.aliases import Settings
from maskgym.data import SPLITS, Dataset, Sample
from maskgym.envs.checks import check_sample
from maskgym.errors import EmptySplit, UserError
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings

RULES = {
    "class": "a subclass of maskgym.data.Dataset, whose task is sod, sis or cosod",
    "split": "the split that was asked for",
    "length": "a length of at least 1, and a sample at every index below it",
    "sample": "samples as `maskgym.data.Sample` describes them, which the environments of the task show",
    "repeat": "the same sample each time an index is read",
    "keys": "one key per sample, a text, all different, in the order of the samples",
    "apart": "no photo in two splits",
    "pickle": "a data set that survives pickling, because workers receive copies",
}
SHOWN = 8  # samples per split that are read, spread evenly


def check(make: Callable[..., Dataset], given: Settings, found: Findings) -> None:
    """Make the data set of each split, and check it.

    Args:
        make: Function that makes it, from ``split`` and the arguments.
        given: Arguments of the user.
        found: Receiver of the findings.

    Raises:
        UserError: If the training split cannot be made.
    """
    seen: dict[str, tuple[str, Sample]] = {}
    for split in [given["split"]] if "split" in given else SPLITS:
        try:
            dataset = make(**{**given, "split": split})
        except UserError as error:
            if split == "train" and not isinstance(error, EmptySplit):
                raise
            found.note(f"split {split} was not checked: {error}")
            continue
        check_split(dataset, split, found, seen)


def check_split(dataset: Dataset, split: str, found: Findings, seen: dict[str, tuple[str, Sample]]) -> None:
    """Check the data set of one split; ``seen`` holds the samples that were read of the others, by key."""
    kind = isinstance(dataset, Dataset)
    if not found.expect(kind, "class", f"a {type(dataset).__module__}.{type(dataset).__qualname__}"):
        return
    task = getattr(dataset, "task", None)
    if not found.expect(task in ("sod", "sis", "cosod"), "class", f"task={task!r}"):
        return
    own = getattr(dataset, "split", None)
    if not found.expect(own == split, "split", f"split={own!r} where split={split!r} was asked for"):
        return
    size = found.attempt("length", f"len of the {split} split", lambda: len(dataset))
    if size is None or not found.expect(size >= 1, "length", f"len of the {split} split is {size}"):
        return
    keys = found.attempt("keys", f"keys of the {split} split", lambda: tuple(dataset.keys))
    if keys is not None:
        _check_keys(keys, size, split, found)
    readable = []
    for index in dict.fromkeys(np.linspace(0, size - 1, min(SHOWN, size)).astype(int).tolist()):
        where = f"index {index} of the {split} split"
        sample = found.attempt("length", where, partial(dataset.__getitem__, index))
        if sample is None or found.attempt("sample", "", partial(check_sample, sample, index)) is None:
            continue
        readable.append(index)
        if keys is not None and index < len(keys):
            found.expect(sample.key == keys[index], "keys", f"{where} has key {sample.key!r}; keys has {keys[index]!r}")
        again = dataset[index]
        changed = [field.name for field in fields(Sample) if not _equal(sample, again, field.name)]
        found.expect(not changed, "repeat", f"{where} was read twice, with other {', '.join(changed)}")
        other = seen.setdefault(str(sample.key), (split, sample))
        shared = other[0] != split and _equal(sample, other[1], "images")
        found.expect(not shared, "apart", f"{where}, '{sample.key}', is in the {other[0]} split too")
    _show(dataset, readable, found)
    with found.guard("pickle", f"pickling the {split} split"):
        copy = pickle.loads(pickle.dumps(dataset))
        found.expect(len(copy) == size, "pickle", f"len of a copy of the {split} split is {len(copy)}, not {size}")


def _check_keys(keys: tuple[str, ...], size: int, split: str, found: Findings) -> None:
    different = len({repr(key) for key in keys})
    texts = all(isinstance(key, str) for key in keys)
    found.expect(len(keys) == size, "keys", f"{len(keys)} keys of the {split} split, whose len is {size}")
    found.expect(texts, "keys", f"keys of the {split} split are not all texts: {keys[:3]}")
    found.expect(different == len(keys), "keys", f"{len(keys)} keys of the {split} split, of which {different} differ")


def _show(dataset: Dataset, indices: Sequence[int], found: Findings) -> None:
    """Let the environments of the task show and score samples; an environment names the sample that it refuses."""
    first = dataset[indices[0]] if indices else None
    kinds = [dataset.shown if dataset.shown == "refer" else dataset.task]  # a query may refer to nothing
    if first is not None and (first.ranks is not None or first.need is not None):
        kinds.append("user_need" if first.ranks is None else "ranking")
    settings = {"group_size": len(first.images)} if dataset.task == "cosod" and first is not None else {}
    for kind in kinds if indices else ():
        with found.guard("sample"):
            env = probes.make_env(kind, dataset, **settings)
            for index in indices:
                observations, _ = env.reset(seed=0, options={"index": index})
                env.step(probes.random_actions(env, observations))


def _equal(one: Sample, other: Sample, name: str) -> bool:
    """Compare a field of two samples, in which arrays are nested in tuples at most once."""
    first, second = getattr(one, name), getattr(other, name)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(np.array_equal, first, second))
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else first == second
