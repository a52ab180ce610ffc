"""Estimate the hours and the memory of an experiment's stages, before anything runs.

Rates are those of `maskgym plan` for a GPU (`maskgym.experiments.planning`), computed from counted operations and its
data sheet, or measured on this machine with the given checkpoints. The sum of a stage is simple: its start, what it
scores, what it samples and what it trains on, each times a rate.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from gymnasium.vector import VectorEnv

from maskgym import data
from maskgym.agents.text.language import LanguageAgent
from maskgym.data.published import PUBLISHED, folder_of
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.experiments.evaluation.evaluation import evaluate
from maskgym.experiments.grids.processes import ForkServer
from maskgym.experiments.grids.runner import COMMON
from maskgym.experiments.planning import plan as planning
from maskgym.experiments.planning import seconds
from maskgym.experiments.reproduce import saliency_r1, step_time
from maskgym.experiments.wiring import build
from maskgym.experiments.wiring.process import peak_mib

GIB = 2**30
TUNE_BATCH = 8  # samples of a step of the segmenter
UPDATES = 4  # that are measured: two of each kind, of which the first warm up
KINDS = ("score", "reinforce", "imitate", "tune")  # of work, in the order of `Rates`
DECODER_PASSES = 3  # forward and backward of the mask decoder, in forward passes


@dataclass(frozen=True)
class Rates:
    """Seconds per sample of each task, by kind of work, and memory.

    Attributes:
        source: What the rates are of, for the reader.
        start: Seconds until a command begins its work.
        score: Seconds to answer, segment and score a held-out sample.
        reinforce: Seconds of an answer of a reinforcement update: sampled, segmented and trained on.
        imitate: Seconds of an example of a supervised update.
        tune: Seconds of a sample of a step of the segmenter.
        gib: Memory that the largest stage takes, in GiB.
        room: Memory of the machine or the GPU, in GiB.
        gpus: Number of GPUs that training shares by ``scale=ray``, with as many times the batch.
        imports: Seconds to import the libraries, once for all stages.
    """

    source: str
    start: float
    score: Mapping[str, float]
    reinforce: Mapping[str, float]
    imitate: Mapping[str, float]
    tune: Mapping[str, float]
    gib: float
    room: float
    gpus: int = 1
    imports: float = 0.0


def computed(given: Namespace, gpu: str, gpus: int = 1) -> Rates:
    """Compute the rates of a GPU from its data sheet.

    The exchange of gradients between several is left out: adapters have 0.2 GB of them.

    Raises:
        UserError: If there is no such GPU.
    """
    found = planning.of_run(saliency_r1.config_of(given), gpu)
    device, segmenter, together = found.device, found.segmenter, found.config["env"]["num_envs"]
    assert segmenter is not None  # the recipe names an EVF-SAM
    rates: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for task, work in found.works.items():
        update = seconds.of_update(found.model, work, device, segmenter)
        scoring = seconds.of_evaluation(found.model, work, device, segmenter, together, together)
        rates["score"][task] = scoring / together
        rates["reinforce"][task] = update.sampled / work.answers
        rates["imitate"][task] = update.supervised / work.answers
        image = segmenter.encode + work.phrases * (segmenter.prompt + DECODER_PASSES * segmenter.decode)
        rates["tune"][task] = work.images * image / device.segmenter_flops
    source = f"{device.name}, computed from its data sheet"
    algo = found.config["algo"]
    if gpus > 1:
        batch, updates = gpus * algo["batch_size"], algo["updates"] // gpus
        shared = f"scale=ray scale.num_workers={gpus} scale.use_gpu=true algo.batch_size={batch} algo.updates={updates}"
        source = f"{gpus} × {source}; trains with {shared}; the other stages on one"
    score, reinforce, imitate, tune = (rates[kind] for kind in KINDS)
    gib, room = found.memory.total / GIB, device.memory / GIB
    return Rates(source, seconds.START_S, score, reinforce, imitate, tune, gib, room, gpus)


def measured(given: Namespace) -> Rates:
    """Measure the rates on this machine with the given checkpoints and data."""
    begun = time.monotonic()
    with ForkServer(os.cpu_count() or 1, (*COMMON, *saliency_r1.PARTS)) as server:
        server(["doctor", "--help"])
        imports = time.monotonic() - begun
        server(["doctor", "--help"])
        start = time.monotonic() - begun - imports
    config = saliency_r1.config_of(
        given,
        "policy=qwen2_5_vl",
        f"policy.path={saliency_r1.model(given, saliency_r1.POLICIES[given.size])}",
        f"segmenter.checkpoint={saliency_r1.model(given, saliency_r1.SEGMENTER)}",
        f"data.root={given.data}",
        saliency_r1.texts(given),
        *("algo.isr_period=2", "algo.isr_sft_steps=1"),
    )
    parts = build.make_parts(config)
    rates: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for task, env in build.make_train_envs(config, parts).items():
            agent = build.make_agent(config, Path(folder) / task, env, parts)
            assert isinstance(agent, LanguageAgent)
            rates["score"][task] = _scoring(agent, build.make_held_out_env(config, task, parts))
            supervised = build.make_supervised(config, {task: env}, parts)
            *_, last, reinforced, imitated = _ends(agent, env, supervised)
            rates["reinforce"][task] = (reinforced - last) / config["algo"]["batch_size"]
            rates["imitate"][task] = (imitated - reinforced) / config["algo"]["batch_size"]
            rates["tune"][task] = rates["score"][task]  # a step answers nothing, but goes back through the decoder
    told, gib = "this machine, measured", peak_mib() / 1024
    score, reinforce, imitate, tune = (rates[kind] for kind in KINDS)
    return Rates(told, start, score, reinforce, imitate, tune, gib, _room(), imports=imports)


def _scoring(agent: LanguageAgent, env: VectorEnv) -> float:
    """Measure the seconds to answer, segment and score a held-out sample, in a full batch of them."""
    count = min(env.num_envs, unwrap(env, SampleVectorEnv).num_samples)
    begun = time.monotonic()
    evaluate(agent, env, range(count))
    return (time.monotonic() - begun) / count


def _ends(agent: LanguageAgent, env: VectorEnv, supervised: Sequence[VectorEnv] | None) -> list[float]:
    """Train for `UPDATES`; return when each of them ended."""
    ends: list[float] = []
    agent.train([env], UPDATES, lambda step, values: ends.append(time.monotonic()), supervised=supervised)
    return ends


def _room() -> float:
    """Find the memory of the first GPU, or else of the machine, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1] / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


@dataclass(frozen=True)
class Row:
    """A line of the plan: a stage, the number of samples that it works on, and its seconds."""

    stage: str
    samples: int
    seconds: float


def rows(given: Namespace, rates: Rates, held_out: Mapping[str, int]) -> Iterator[Row]:
    """Estimate each stage after the check of the data, with the number of test samples of each task."""
    config, supervised = saliency_r1.config_of(given), saliency_r1.config_of(given, "algo=sft")
    asked = saliency_r1.tasks(given)
    looked_at = {task: min(config["evaluation"]["samples"], held_out[task]) for task in asked}
    scoring = 2 * sum(number * rates.score[task] for task, number in looked_at.items())  # before and after

    def mean(rate: Mapping[str, float]) -> float:
        return sum(rate[task] for task in asked) / len(asked)

    examples = supervised["algo"]["updates"] * supervised["algo"]["batch_size"]
    yield Row(
        "supervised training",
        examples,
        rates.imports + rates.start + scoring + examples * mean(rates.imitate) / rates.gpus,
    )
    tuned = given.segmenter_steps * TUNE_BATCH
    yield Row("segmenter", tuned, rates.start + tuned * mean(rates.tune))
    algo = config["algo"]
    examples = algo["updates"] * algo["batch_size"]
    share = algo["isr_sft_steps"] / algo["isr_period"]
    update = share * mean(rates.imitate) + (1 - share) * mean(rates.reinforce)
    yield Row("CGPO", examples, rates.start + scoring + examples * update / rates.gpus)
    for task in asked:
        yield Row(f"evaluation, {task}", held_out[task], rates.start + held_out[task] * rates.score[task])
        yield Row(f"table 1, {task}", 0, rates.start)


def count(given: Namespace, name: str) -> int:
    """Count the test samples of a data set: of its folder, or by its authors where it is not there."""
    photos = step_time.PAPER[PUBLISHED[name].task].images  # of a group; 1 for the other tasks
    folder = folder_of(given.data, name) if given.data else None
    if folder is None:
        return math.ceil(PUBLISHED[name].counts.get("test", 0) / photos)
    return len(data.make(name, root=folder, split="test", **({"group_size": photos} if photos > 1 else {})))


def table(given: Namespace, rates: Rates) -> str:
    """Write the plan as text: a line per stage, the sum, and whether it fits into memory."""
    sizes = {
        task: {name: count(given, name) for name in saliency_r1.held_out_sets(given, task)}
        for task in saliency_r1.tasks(given)
    }
    found = list(rows(given, rates, {task: sum(own.values()) for task, own in sizes.items()}))
    unit, seconds = ("hours", 3600) if sum(row.seconds for row in found) > 7200 else ("minutes", 60)
    lines = [f"rates: {rates.source}", f"{'stage':<24}{'samples':>10}{unit:>10}"]
    lines += [f"{row.stage:<24}{row.samples:>10,}{row.seconds / seconds:>10.1f}" for row in found]
    lines.append(f"{'together':<24}{'':>10}{sum(row.seconds for row in found) / seconds:>10.1f}")
    unknown = [name for own in sizes.values() for name, size in own.items() if not size]
    if unknown:
        lines.append(f"without {', '.join(unknown)}, whose number of test samples is not known before it is there")
    fits = "fits" if rates.gib < rates.room else "does not fit"
    lines.append(f"memory of the largest stage: {rates.gib:.0f} GiB of {rates.room:.0f}: {fits}")
    return "\n".join(lines)
