"""Estimate the hours of the stages of `maskgym.experiments.reproduce.grid`, before anything runs.

A run takes its updates times a rate, an evaluation its samples, a baseline its training images and samples, and each of
them the start of its command. The libraries are imported once. Rates are measured on this machine with the given
checkpoints and data, or computed for a GPU: operations counted on the networks of the published sizes, divided by a
stated share of the peak of its data sheet. Computed hours are a lower bound: they have no time for Python, for reading
photos or for launching kernels.
"""

from __future__ import annotations

import inspect
import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgym import data
from maskgym.aliases import Config
from maskgym.data.published import PUBLISHED, folder_of
from maskgym.data.readers.voc import CLASSES
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.experiments.evaluation import paper_tables
from maskgym.experiments.evaluation.evaluation import evaluate
from maskgym.experiments.grids.processes import ForkServer
from maskgym.experiments.grids.runner import COMMON, call
from maskgym.experiments.planning import devices
from maskgym.experiments.reproduce.grid import Row
from maskgym.experiments.wiring import build, composition
from maskgym.experiments.wiring.process import peak_mib
from maskgym.policies.few_shot import BASELINES
from maskgym.segmenters.weights import Network

LONG_S = 36_000  # of all stages: a longer plan is in hours
START_S = 30.0  # of a command on a GPU machine: imports and reading the weights
UPDATES = 3  # that are measured; the first warms up
IMPORTS = "imports, once for all stages"
NEEDS = 69_239  # samples of UserSOD by its paper, where there is no folder of it
TUNING = 4  # of a baseline's step, in encodings: forward, recomputed, and twice that backward


@dataclass(frozen=True)
class Rates:
    """Seconds of each unit of work, and memory.

    Attributes:
        source: What the rates are of, for the reader.
        start: Seconds of a command that builds the parts of a run and does nothing with them.
        update: Seconds per update.
        score: Seconds per held-out sample.
        encode: Seconds per image of a baseline, whose prediction is one encoding and whose training `TUNING` of them.
        gib: Largest memory, in GiB; None where it was not measured.
        imports: Seconds to import the libraries, once for all stages; 0 where ``start`` has them.
    """

    source: str
    start: float
    update: float
    score: float
    encode: float
    gib: float | None = None
    imports: float = 0.0


def computed(gpu: str, update: float, score: float, encode: float) -> Rates:
    """Compute the rates of a GPU from the operations of each unit of work.

    Raises:
        UserError: If there is no such GPU.
    """
    rate = devices.by_name(gpu).segmenter_flops
    return Rates(f"{gpu.upper()}, computed from its data sheet", START_S, update / rate, score / rate, encode / rate)


def measured(arguments: Sequence[str], untrained: Sequence[str], modules: Sequence[str]) -> Rates:
    """Measure the rates of a run on this machine.

    Args:
        arguments: Arguments of the run.
        untrained: Further arguments, with which it trains nothing.
        modules: Modules that the stages import, and entries of registries, beside those of every run.
    """
    imports, start = _starts((*arguments, *untrained), modules)
    config = composition.compose(arguments)
    parts = build.make_parts(config)
    ((task, env),) = build.make_train_envs(config, parts).items()
    held_out = build.make_held_out_env(config, task, parts)
    with TemporaryDirectory() as folder:
        agent = build.make_agent(config, Path(folder), env, parts)
        ends: list[float] = []
        agent.train([env], UPDATES, lambda step, values: ends.append(time.monotonic()))
        update = (ends[-1] - ends[0]) / (len(ends) - 1)
    count = min(held_out.num_envs, unwrap(held_out, SampleVectorEnv).num_samples)
    begun = time.monotonic()
    evaluate(agent, held_out, range(count))
    score = (time.monotonic() - begun) / count
    return Rates("this machine, measured", start, update, score, score, peak_mib() / 1024, imports)


def _starts(arguments: Sequence[str], modules: Sequence[str]) -> tuple[float, float]:
    """Measure the seconds to import the libraries, and those of a run that neither trains nor evaluates.

    Both commands run as the stages do: forked from a process that has imported what they need.
    """
    with TemporaryDirectory() as folder, ForkServer(os.cpu_count() or 1, (*COMMON, *modules)) as server:
        begun = time.monotonic()
        call(server, ("doctor", "--help"))  # the first command waits for the imports
        imported = time.monotonic()
        call(server, ("run", *arguments, "evaluation.samples=0", f"out={folder}/run"))
        return imported - begun, time.monotonic() - imported


def operations(build_network: Callable[[], Network], run: Callable[[Network], object]) -> int:
    """Count the floating-point operations of a call of a network, without weights."""
    with torch.device("meta"), torch.no_grad():
        network = build_network().eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counted:
            run(network)
    return counted.get_total_flops()


def count(root: Path | None, name: str, split: str) -> int:
    """Count the samples of a published data set: of its folder, or by its authors where it is not there.

    Args:
        root: Folder that holds data sets; None for none.
        name: Name of the set, or ``NAME/PART`` for a part of its test split.
        split: Name of the split.
    """
    base, _, part = name.partition("/")
    folder = folder_of(root, name) if root else None
    if folder is None:
        counts = PUBLISHED[base].sentences or PUBLISHED[base].counts
        known = PUBLISHED[base].partitions[part] if part else counts.get(split) or counts.get("validation", 0)
        return known or (NEEDS if base == "usersod" and split == "train" else 0)
    return len(data.make(base, root=folder, split=split, **({"partition": part} if part else {})))


def updates_of(config: Config, samples: int) -> int:
    """Look up the number of updates, or compute it from passes over the training samples."""
    algo = config["algo"]
    if algo.get("batch_size") and algo.get("epochs"):
        return int(algo["epochs"] * max(1, samples // algo["batch_size"]))
    return int(algo["updates"])


def table(given: Namespace, paper: str, rows: Sequence[Row], rates: Rates, checks: int) -> str:
    """Write the plan as text: a line per stage and the sum.

    The checks of the data share a line and count their starts alone; reading the photos is not counted.

    Args:
        given: Arguments of the command.
        paper: Name of the paper's file in ``papers/``.
        rows: Rows whose stages are planned.
        rates: Seconds of the units of work.
        checks: Number of data sets that are checked first.

    Raises:
        UserError: If several GPUs are asked for.
    """
    if given.gpus > 1:
        raise UserError(f"--gpus {given.gpus}: {paper} trains on one GPU")
    found = {IMPORTS: (0, 0, rates.imports)} if rates.imports else {}
    found[f"data, {checks} checks"] = 0, 0, checks * rates.start
    unknown: dict[str, None] = {}
    for row in rows:
        tests = {name: count(given.data, name, "test") for name in _datasets(paper, row)}
        unknown |= {name: None for name, number in tests.items() if not number}
        held_out = sum(tests.values())
        if row.baseline:
            seconds = rates.start + (held_out + TUNING * _fitted(row.baseline, given.smoke)) * rates.encode
            found.setdefault(row.place, (held_out, 0, seconds))
            continue
        config = composition.compose(row.agent.settings)
        shots, name = config["train_samples"], config["data"]["name"]
        if shots and config["env"].get("train_samples_per") == "category":
            shots *= len(CLASSES)
        samples = count(given.data, name, "train")
        samples = min(shots or samples, samples or shots or 0)
        updates = updates_of(config, samples)
        found.setdefault(row.agent.name, (samples, updates, rates.start + updates * rates.update))
        found.setdefault(row.place, (held_out, 0, rates.start + held_out * rates.score))
    total = sum(seconds for *_, seconds in found.values())
    unit, length = ("hours", 3600) if total > LONG_S else ("minutes", 60)
    told = f"each stage has {rates.start:.1f} s to start its command, a check of data nothing else"
    lines = [f"rates: {rates.source}", told, f"{'stage':<44}{'samples':>9}{'updates':>9}{unit:>9}"]
    lines += [f"{stage:<44}{n:>9,}{updates:>9,}{s / length:>9.1f}" for stage, (n, updates, s) in found.items()]
    lines.append(f"{'together':<62}{total / length:>9.1f}")
    if unknown:
        lines.append(f"without {', '.join(unknown)}, whose number of test samples is not known before it is there")
    memory = "not computed" if rates.gib is None else f"{rates.gib:.1f} GiB of this machine's {_room():.0f}"
    return "\n".join([*lines, f"memory of the largest stage: {memory}"])


def _fitted(baseline: str, smoke: bool) -> int:
    """Count the images of a baseline's training: its steps, one in a smoke run, times their batch."""
    settings = inspect.signature(BASELINES[baseline]).parameters
    if "steps" not in settings:
        return 0
    return (1 if smoke else settings["steps"].default) * settings["batch_size"].default


def _datasets(paper: str, row: Row) -> tuple[str, ...]:
    return paper_tables.published(f"{paper}/{row.scored or row.table}").datasets


def _room() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
