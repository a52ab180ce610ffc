"""The training samples of ``data=tasks``: its parts, drawn once per process, and what a run writes about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from maskgym.aliases import Config, JsonObject, Settings
from maskgym.data import Dataset, Subset, make
from maskgym.data.parts import Counts, HeldOut, Parts, draw, listing
from maskgym.data.rationales import find_rows, read_rationales
from maskgym.data.tasks import TASKS
from maskgym.errors import EmptySplit, UserError
from maskgym.experiments.wiring import run_folder

NAME = "tasks"  # the option of `data`
NOT_READ = ("name", "rationales", "parts")  # keys that the reader does not take


class Drawn(NamedTuple):
    """The training split of a task, and its parts."""

    dataset: Dataset
    parts: Parts


def given(config: Config) -> bool:
    """Check whether a config names the data sets by task."""
    return config["data"]["name"] == NAME


def tasks(config: Config) -> list[str]:
    """List the environment's tasks; of ``data=tasks``, those that have a set."""
    asked = list(config["env"]["gym_ids"])
    return [task for task in asked if config["data"].get(task)] if given(config) else asked


def check_task(config: Config, task: str) -> None:
    """Raise a UserError if ``data=tasks`` has no sets for a task."""
    if task not in TASKS:
        raise UserError(
            f"env={config['env']['name']} data={NAME}: is for {', '.join(TASKS)}: expected data=NAME data.root=DIR"
        )


def check_set(config: Config, task: str) -> None:
    """Raise a UserError if ``data=tasks`` names no set to train a task on."""
    check_task(config, task)
    if not config["data"][task]:
        raise UserError(f"data.{task} is not set: expected a set, or several as data.{task}=[NAME,NAME]")


def counts(config: Config, task: str) -> Counts:
    """Read the sizes of a task's parts.

    Raises:
        UserError: If a size is no whole number of at least 0, or ``train_samples`` draws too.
    """
    parts = config["data"]["parts"]
    sizes = {"sft": parts["sft"].get(task), "rl": parts["rl"], "isr": parts["isr"]}
    for name, value in {**sizes, "seed": parts["seed"]}.items():
        key = f"data.parts.{name}" + f".{task}" * (name == "sft")
        if (value is not None or name == "seed") and (type(value) is not int or value < 0):
            raise UserError(f"{key}={value}: expected a whole number, at least 0" + ", or null" * (name != "seed"))
    found = Counts(**sizes)
    if found.asked and config["train_samples"] is not None:
        raise UserError(f"train_samples={config['train_samples']}: data.parts chooses the samples: expected null")
    return found


def training(config: Config, task: str, part: str) -> Dataset:
    """Select the samples of a part of a task's training split, ``rl``, ``sft`` or ``isr``.

    Without sizes in ``data.parts``, each part is the training split without held-out photos.
    """
    check_set(config, task)
    drawn = draw_all(config)[task]
    return Subset(drawn.dataset, getattr(drawn.parts, part if counts(config, task).asked else "rl"))


def draw_all(config: Config) -> dict[str, Drawn]:
    """Draw the parts of every task of the environment that has a set; a second call with the same data is cheap."""
    sizes = {task: counts(config, task) for task in tasks(config)}
    key = json.dumps({"data": config["data"], "group_size": config["env"].get("group_size")}, sort_keys=True)
    return _draw_all(key, tuple(sizes.items()))


@lru_cache(maxsize=2)
def _draw_all(key: str, sizes: tuple[tuple[str, Counts], ...]) -> dict[str, Drawn]:
    asked = json.loads(key)
    settings, group_size = asked["data"], asked["group_size"]
    held_out = HeldOut(_held_out(settings, group_size))
    found = {}
    for task, wanted in sizes:
        dataset = _read(settings, task, "train", group_size)
        parts = draw(task, dataset, held_out, wanted, settings["parts"]["seed"], _imitable(dataset, task, settings))
        if not parts.rl and not wanted.asked:
            raise UserError(f"data.{task}: every training sample shows a photo that is held out")
        found[task] = Drawn(dataset, parts)
    return found


def _held_out(settings: Settings, group_size: int | None) -> list[tuple[str, Dataset]]:
    """Read the held-out splits of every task that has a set, whether the run trains on the task or not."""
    found = []
    for task in TASKS:
        for split in ("validation", "test"):
            if settings[task] or settings["held_out"][task]:
                with suppress(EmptySplit):
                    found.append((task, _read(settings, task, split, group_size)))
    return found


def _read(settings: Settings, task: str, split: str, group_size: int | None) -> Dataset:
    reader = {name: value for name, value in settings.items() if name not in NOT_READ}
    return make(NAME, task=task, split=split, group_size=group_size, **reader)


def _imitable(dataset: Dataset, task: str, settings: Settings) -> frozenset[int] | None:
    """List the samples with a rationale; None if neither a file nor the data has any."""
    if settings["rationales"] is not None:
        return frozenset(find_rows(dataset, read_rationales(settings["rationales"], task)))
    return frozenset(dataset.with_rationale) or None


def listed(config: Config) -> JsonObject:
    """List the keys of each task's parts, and what they were drawn from, as JSON types."""
    drawn = draw_all(config)
    return {
        "seed": config["data"]["parts"]["seed"],
        "tasks": {task: listing(task, one.dataset, one.parts) for task, one in drawn.items()},
    }


def remember(config: Config, folder: Path) -> JsonObject:
    """Write the parts of a run into its folder; return the file, its hash and the sizes for the results.

    Raises:
        UserError: If the folder holds other parts, because the data has changed since the run began.
    """
    content = run_folder.to_json(listed(config), indent=2) + "\n"
    file = folder / run_folder.PARTS
    if file.exists() and file.read_text(encoding="utf-8") != content:
        raise UserError(
            f"{file}: its parts are not those of the data now: expected the data sets that the run began with"
        )
    run_folder.write(file, content)
    sizes = {
        task: {name: len(getattr(one.parts, name)) for name in ("rl", "sft", "isr", "shared")}
        for task, one in draw_all(config).items()
    }
    return {"file": run_folder.PARTS, "sha256": hashlib.sha256(content.encode()).hexdigest(), "sizes": sizes}


def told(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Write one line per task on its parts."""
    lines = []
    for task, one in sizes.items():
        parts = ", ".join(f"{one[name]:,} {name}" for name in ("rl", "sft", "isr"))
        shared = f"; {one['shared']:,} samples with held-out photos are in none of them" * bool(one["shared"])
        lines.append(f"{task}: training samples: {parts}{shared} (listed in {run_folder.PARTS})")
    return lines
