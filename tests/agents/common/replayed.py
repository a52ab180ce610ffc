"""Train agents of text on answers that are given, not sampled; the other half of ``test_parallel.py``.

``python tests/agents/common/replayed.py FOLDER`` trains in this process, and under ``torchrun`` in several, which share
each batch. Rank 0 writes its log as ``FOLDER/CASE.json``, one dictionary per update.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState, accelerator
from accelerate.utils import DistributedType
from gymnasium.vector import AutoresetMode
from torch.distributed.tensor import DTensor
from trl import RLOOTrainer

from maskgym import agents, policies
from maskgym.agents.common import parallel
from maskgym.agents.text.training import METHODS
from maskgym.envs.reasoning import ReasoningVectorEnv

UPDATES, BATCH = 3, 8
CASES = {
    "cgpo": {"isr_learning_rate": 1e-4},
    "sft": {"isr_learning_rate": 1e-4},
    "spo": {},
    "grpo": {"group_size": 4},
    "rloo": {"group_size": 4},
    "dapo": {"group_size": 4, "sampling_rounds": 1},
    "dapo, filled up": {"group_size": 4, "signal_tolerance": 0.05},
    "grpo, sharded": {"group_size": 4},
}


class Replayed:
    """Mixin: an answer follows from its row's sample and from which of a group's answers it is."""

    def _read(self, inputs):
        self._shown = super()._read(inputs)
        return self._shown

    def _answer(self, rows):  # DAPO's, to further prompts
        self._shown = rows
        return super()._answer(rows)

    def _generate_single_turn(self, *inputs):
        answers = []
        for place, row in enumerate(self._shown):
            generator = np.random.default_rng([row["index"], place % self.num_generations])
            words = generator.permutation(["red", "blue", "star", "ring", "left", "right", "top"])[:4]
            text = f"<think>x</think><answer><ins>{' '.join(words)}</ins></answer>"
            answers.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
        return answers if isinstance(self, RLOOTrainer) else (answers, None)


class ShardedState(accelerator.AcceleratorState):
    """Has accelerate shard on CPUs as it does on GPUs: it looks at the kind of device alone."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        if settings.get("fsdp_plugin") is not None and self.distributed_type is DistributedType.MULTI_CPU:
            self.fsdp_plugin = settings["fsdp_plugin"]
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def train(case: str, folder: Path) -> list[dict[str, float]]:
    """Run one case; return its log, and for sharded weights, as the last row, their distance from the start."""
    env = ReasoningVectorEnv(4, "sis", autoreset_mode=AutoresetMode.DISABLED)
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    settings = {"batch_size": BATCH, "learning_rate": 1e-4, "save_every": 1000, "output": folder / case}
    agent = agents.make(case.partition(",")[0], policy=policy, **settings, **CASES[case])
    method = METHODS[agent.method]
    METHODS[agent.method] = replace(method, trainer=type("Trainer", (Replayed, method.trainer), {}))
    logged: list[dict[str, float]] = []
    sharded = "sharded" in case
    if sharded and dist.is_initialized():
        agent.settings["fsdp"] = True  # the agent refuses it on CPUs
    before = {name: value.clone() for name, value in policy.model.state_dict().items()} if sharded else {}
    for updates in (UPDATES - 2, UPDATES) if sharded else (UPDATES,):
        agent.train([env], updates, lambda step, values: logged.append(values | lacking(policy)), resume=sharded)
    METHODS[agent.method] = method
    if sharded and not parallel.rank():
        moved = [(value - before[name]).norm() for name, value in policy.model.state_dict().items()]
        logged.append({"moved": float(torch.stack(moved).norm())})
    return logged


def lacking(policy) -> dict[str, float]:
    """Return which share of the weights another process holds."""
    parameters = list(policy.model.parameters())
    held = [value.to_local() if isinstance(value, DTensor) else value for value in parameters]
    return {"lacking": 1 - sum(value.numel() for value in held) / sum(value.numel() for value in parameters)}


def main(folder: Path) -> None:
    """Train all cases and write what they logged."""
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        accelerator.AcceleratorState = ShardedState
    for case in CASES:
        logged = train(case, folder)
        if not parallel.rank():
            (folder / f"{case}.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
