"""Train agents of text on answers that are given, not sampled; the other half of ``test_parallel.py``.

``python tests/agents/replayed.py FOLDER`` trains in this process, and under ``torchrun`` in several, which share each
batch. The first one writes what it logged as ``FOLDER/CASE.json``, one dictionary an update.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from gymnasium.vector import AutoresetMode
from trl import RLOOTrainer

from maskgym import agents, policies
from maskgym.agents import parallel
from maskgym.envs.reasoning import ReasoningVectorEnv

UPDATES, BATCH = 5, 8
CASES = {
    "cgpo": {"isr_learning_rate": 1e-4},
    "sft": {"isr_learning_rate": 1e-4},
    "spo": {},
    "grpo": {"group_size": 4},
    "rloo": {"group_size": 4},
    "dapo": {"group_size": 4, "sampling_rounds": 1},
    "dapo, filled up": {"group_size": 4, "signal_tolerance": 0.05},
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


def train(case: str, folder: Path) -> list[dict[str, float]]:
    """Return what one of the cases logged."""
    env = ReasoningVectorEnv(4, "sis", autoreset_mode=AutoresetMode.DISABLED)
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    settings = {"batch_size": BATCH, "learning_rate": 1e-4, "save_every": 1000, "output": folder / case}
    agent = agents.make(case.partition(",")[0], policy=policy, **settings, **CASES[case])
    agent.trainer = type("Trainer", (Replayed, agent.trainer), {})
    logged: list[dict[str, float]] = []
    agent.train([env], UPDATES, lambda step, values: logged.append(values))
    return logged


def main(folder: Path) -> None:
    """Train all cases and write what they logged."""
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    for case in CASES:
        logged = train(case, folder)
        if not parallel.rank():
            (folder / f"{case}.json").write_text(json.dumps(logged))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
