"""Plan a run from its config: memory per worker, seconds per update, hours of the run, and what they rest on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from maskgym.agents.text.forward_size import CPU_SHARE, head_bytes, largest_fitting, state_bytes
from maskgym.aliases import Config
from maskgym.errors import UserError
from maskgym.experiments.planning import devices, machine, memory, models, seconds, segmenters, work
from maskgym.experiments.planning.devices import Device
from maskgym.experiments.planning.machine import Clock
from maskgym.experiments.planning.memory import Memory
from maskgym.experiments.planning.models import Model
from maskgym.experiments.planning.seconds import START_S, Seconds
from maskgym.experiments.planning.segmenters import Segmenter
from maskgym.experiments.planning.work import Work
from maskgym.experiments.wiring import build, cluster
from maskgym.policies.text.mllm import LanguagePolicy


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        config: Config of the run.
        model: Counts of its policy.
        device: Device of each worker.
        segmenter: Counts of its segmenter; None if they are not known.
        works: What a worker does in an update, by task.
        counted: Whether the tokens of instructions were counted by the policy's tokenizer.
    """

    config: Config
    model: Model
    device: Device
    segmenter: Segmenter | None
    works: Mapping[str, Work]
    counted: bool

    @property
    def memory(self) -> Memory:
        """Memory of a worker, in the task that needs most."""
        found = [memory.of_worker(self.model, one, self.device, self.segmenter) for one in self.works.values()]
        return max(found, key=lambda one: one.total)

    @property
    def updates(self) -> list[Seconds]:
        """Seconds of an update of each task."""
        return [seconds.of_update(self.model, one, self.device, self.segmenter) for one in self.works.values()]

    @property
    def update(self) -> float:
        """Seconds of an update, on average over the tasks, which take turns."""
        return sum(one.update for one in self.updates) / len(self.works)

    @property
    def evaluations(self) -> int:
        """Number of evaluations: before and after training, and in between."""
        number, every = self.config["algo"]["updates"], self.config["evaluation"]["every"]
        if not self.config["evaluation"]["samples"]:
            return 0
        return 1 + (number > 0) + (max(number - 1, 0) // every if every else 0)

    @property
    def evaluation(self) -> float:
        """Seconds of an evaluation of all tasks."""
        samples, together = self.config["evaluation"]["samples"], self.config["env"]["num_envs"]
        common = (self.device, self.segmenter, samples, together)
        return sum(seconds.of_evaluation(self.model, one, *common) for one in self.works.values())

    @property
    def run(self) -> float:
        """Seconds of the run."""
        return START_S + self.evaluations * self.evaluation + self.config["algo"]["updates"] * self.update


def of_run(config: Config, gpu: str | None, answer: int | None = None, clock: Clock = time.perf_counter) -> Plan:
    """Plan a run.

    Args:
        config: Config of the run.
        gpu: Name of the GPU of each worker; None measures this machine.
        answer: Expected tokens of the longest answer of a batch; None for `work.ANSWER`.
        clock: Clock of the measurement.

    Raises:
        UserError: If the run would be refused, or is none that is planned.
    """
    device = None if gpu is None else devices.by_name(gpu)
    if answer is not None and answer < 1:
        raise UserError(f"--answer {answer}: expected at least 1")
    build.check(config)
    work.check(config)
    on_gpu = torch.cuda.is_available() if device is None else device.gpu
    place = {"device": "cpu"} if "device" in config["policy"] else {}  # none is used, and a GPU may not be here
    policy = build.make_policy({**config, "policy": {**config["policy"], **place}})
    if not isinstance(policy, LanguagePolicy):
        raise UserError(f"policy={config['policy']['name']}: maskgym plan counts language models: expected one of them")
    works = work.of_run(config, policy, on_gpu, answer)
    shape = models.read_config(policy)
    model = models.count(shape, policy.lora_rank, policy.freeze_vision)
    segmenter = segmenters.of_run(config["segmenter"], on_gpu)
    if device is None:
        largest = max(works.values(), key=lambda one: one.tokens(model))
        precision = torch.float32 if segmenter is None else _precision(segmenter)
        length = largest.prompt(model) + largest.answer
        own = shape, model, policy.dtype, policy.lora_rank
        passed = length, largest.in_pass, largest.in_pass * length
        device = _measured(config, machine.Timed(*own, largest.answers, *passed, precision), clock)
    elif max(one.values for one in works.values()) == torch.float32.itemsize:
        device = replace(device, flops=device.single_flops)
    if config["algo"].get("micro_batch_size") == "auto":
        works = {task: _fitted(model, one, device, segmenter) for task, one in works.items()}
    return Plan(config, model, device, segmenter, works, work.has_processor(policy))


def _measured(config: Config, timed: machine.Timed, clock: Clock) -> Device:
    """Measure this machine with the threads of a worker; without GPUs all workers share its memory."""
    if config["scale"]["name"] == "ray" and not torch.cuda.is_available():
        count, _ = cluster.processes(config)
        torch.set_num_threads(config["scale"]["cpus_per_worker"] or max(1, (os.cpu_count() or 1) // count))
    found = machine.measure(timed, clock)
    return found if found.gpu else replace(found, memory=found.memory / work.workers_of(config))


def _precision(segmenter: Segmenter) -> torch.dtype:
    return torch.float32 if segmenter.size == torch.float32.itemsize else torch.bfloat16


def _fitted(model: Model, one: Work, device: Device, segmenter: Segmenter | None) -> Work:
    """Choose the answers per pass as ``algo.micro_batch_size=auto`` does on a device that holds nothing else."""
    free = device.memory * CPU_SHARE
    if device.gpu:
        free = device.memory - sum(memory.of_worker(model, one, device, segmenter).held.values())
    fixed = state_bytes(model.trained, one.pairs) + head_bytes(model.words, device.gpu)
    return replace(one, in_pass=largest_fitting(one.answers, memory.per_answer(model, one), fixed, int(free)))
