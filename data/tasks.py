"""Data sets by task, ``sod=duts sis=[ilso,sis10k,soc] cosod=cocoseg``, found by their usual folder names in a root."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskgym.aliases import Settings
from maskgym.data.concatenated import Concatenated
from maskgym.data.layout.images import DataFault
from maskgym.data.published import PUBLISHED, folder_of
from maskgym.data.sample import Dataset
from maskgym.errors import EmptySplit, UserError

TASKS = ("sod", "sis", "cosod")
Source = str | Sequence[str] | None
Folder = str | Path | None


def make_tasks(
    task: str = "sod",
    split: str = "train",
    sod: Source = None,
    sis: Source = None,
    cosod: Source = None,
    held_out: Mapping[str, Source] | None = None,
    root: Folder = None,
    roots: Mapping[str, Folder] | None = None,
    readers: Mapping[str, Settings] | None = None,
    group_size: int | None = None,
) -> Concatenated:
    """Read the sets of one task, one after another, each under its name.

    A set is a name in `maskgym.data`, or a folder of ``root``, whose reader is told from its content as ``maskgym data
    check`` does.

    Args:
        task: ``sod``, ``sis`` or ``cosod``.
        split: ``train``, ``validation`` or ``test``.
        sod: The sets of salient objects, one or several.
        sis: The sets of salient instances.
        cosod: The sets of co-salient groups.
        held_out: By task, the sets of the splits ``validation`` and ``test``; absent or null, those above.
        root: Folder that holds the sets by their usual names.
        roots: Folder of a set by its name, if it is elsewhere.
        readers: Further arguments of a set's reader, by the set's name.
        group_size: Photos per sample of ``cosod``; None gives whole groups.

    Raises:
        EmptySplit: If no set has a sample in the split.
        UserError: If the task has no set, folders are missing, or a set cannot serve the task.
    """
    if task not in TASKS:
        raise UserError(f"task={task}: data=tasks reads {', '.join(TASKS)}")
    named = named_sets({"sod": sod, "sis": sis, "cosod": cosod}, held_out or {})
    places = find_folders({name: key for key, names in named.items() for name in names}, root, roots or {})
    further = readers or {}
    if unknown := sorted({*(roots or {}), *further} - places.keys()):
        raise UserError(f"data=tasks: a root or arguments of '{unknown[0]}', which is no set of a task")
    aside = split != "train" and named[f"data.held_out.{task}"]
    key = f"data.held_out.{task}" if aside else f"data.{task}"
    if not named[key]:
        raise UserError(f"data.{task} is not set: expected a set, or several as data.{task}=[NAME,NAME]")
    size = {"group_size": group_size} if task == "cosod" else {}
    parts: dict[str, Dataset] = {}
    empty: EmptySplit | None = None
    for name in named[key]:
        try:
            part = read_set(name, places[name], task=task, split=split, **size, **further.get(name, {}))
        except EmptySplit as error:
            if split == "train":
                raise EmptySplit(f"{key}={name}: {error}") from error
            empty = empty or EmptySplit(f"{key}={name}: {error}")
        except DataFault as error:
            raise DataFault(*(f"{key}={name}: {fault}" for fault in error.faults)) from error
        except UserError as error:
            raise UserError(f"{key}={name}: {error}") from error
        else:
            parts[name] = part
    if not parts:
        assert empty is not None
        raise empty
    return Concatenated(parts)


def read_set(name: str, root: Path | None, task: str, **arguments: Any) -> Dataset:
    """Make one data set of a task.

    Args:
        name: A name in `maskgym.data`, or of a folder.
        root: The set's folder; None for a set without one, such as scenes.
        task: The task.
        **arguments: Further arguments of the reader.

    Raises:
        UserError: If the set does not serve the task, or as its reader raises.
    """
    from maskgym import data
    from maskgym.data.check import detect

    kind = name if name in data.names() else detect(root or "")
    if task == "cosod" and kind == "folder" != name:  # a folder of one group looks like one of single photos
        kind = "groups"
    taken = _arguments_of(kind)
    if task == "cosod" and not takes_groups(kind):
        offer = ", ".join(each for each, published in PUBLISHED.items() if published.task == task)
        raise UserError(f"holds single photos, not groups of them: expected a set for cosod, such as groups, {offer}")
    given = {"root": root} if "root" in taken else {}
    return data.make(kind, task=task, **given, **arguments)


def find_folders(names: Mapping[str, str], root: Folder, roots: Mapping[str, Folder]) -> dict[str, Path | None]:
    """Find the folder of each set; None for one that has none.

    Args:
        names: Names of the sets, each with the key that names it.
        root: Folder that holds the sets.
        roots: Folder of a set by its name, if it is elsewhere.

    Raises:
        UserError: If there are sets without a folder, all of which are named.
    """
    from maskgym import data

    parent = None if root is None else Path(root).expanduser()
    if parent is not None and not parent.is_dir():
        raise UserError(f"data.root={root}: {'not a folder' if parent.exists() else 'no such folder'}")
    found: dict[str, Path | None] = {}
    missing = []
    for name, key in names.items():
        if own := roots.get(name):
            found[name] = Path(own).expanduser()
        elif name in data.names() and "root" not in _arguments_of(name):
            found[name] = None
        elif parent is not None and (folder := folder_of(parent, name)):
            found[name] = folder
        else:
            missing.append(
                f"{key}={name} (folder {' or '.join(PUBLISHED[name].folder if name in PUBLISHED else [name])})"
            )
    if missing:
        where = f"not in data.root={root}" if root else "data.root is not set"
        raise UserError(f"{where}: {', '.join(missing)}: expected the folders there, or data.roots.NAME=DIR")
    return found


def takes_groups(kind: str) -> bool:
    """Check whether a data set, by its name in `maskgym.data`, has groups of photos."""
    return "group_size" in _arguments_of(kind)


def _arguments_of(kind: str) -> frozenset[str]:
    from maskgym import data

    reader = PUBLISHED[kind].reader if kind in PUBLISHED else kind
    return frozenset(inspect.signature(data.get(reader)).parameters)


def named_sets(sources: Mapping[str, Source], held_out: Mapping[str, Source]) -> dict[str, list[str]]:
    """List the names of the sets by key.

    Raises:
        UserError: If a task is unknown, or a key names a set twice.
    """
    if unknown := sorted(set(held_out) - set(TASKS)):
        raise UserError(f"data.held_out.{unknown[0]}: expected {', '.join(TASKS)}")
    given = {f"data.{task}": sources[task] for task in TASKS}
    given |= {f"data.held_out.{task}": held_out.get(task) for task in TASKS}
    found = {}
    for key, source in given.items():
        found[key] = [source] if isinstance(source, str) else [str(name) for name in source or ()]
        if twice := [name for name in found[key] if found[key].count(name) > 1]:
            raise UserError(f"{key}: {twice[0]} is named twice")
    return found
