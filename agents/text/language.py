"""Language agents: environments of text on TRL's trainers.

TRL wants a data set of prompts and a reward function: `maskgym.agents.text.reward_function` makes both of environments.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from gymnasium.vector import VectorEnv
from transformers import PrinterCallback, TrainerCallback

from maskgym.agents.base import Agent, OnLog
from maskgym.agents.common import parallel
from maskgym.agents.text.cgpo import CGPOConfig, CGPOTrainer
from maskgym.agents.text.dapo import DAPOConfig, DAPOTrainer
from maskgym.agents.text.group_methods import GroupConfig, GroupTrainer, LeaveOneOutConfig, LeaveOneOutTrainer
from maskgym.agents.text.reward_function import EnvReward, Episodes
from maskgym.agents.text.spo import SPOConfig, SPOTrainer
from maskgym.errors import UserError


class LanguageAgent(Agent):
    """What agents of text share; each names its trainer, its config and what it sets there.

    Args:
        policy: A `maskgym.policies.text.mllm.LanguagePolicy`.
        env: Unused: text has one space. Taken so that every agent is made alike.
        seed: Seed of the order of samples, of sampling and of what else a trainer draws.
        output: Folder of the checkpoints.
        batch_size: Answers an update, of all workers together (see `maskgym.agents.common.parallel`).
        group_size: Answers a prompt, a divisor of ``batch_size``; None takes the algorithm's own number.
        micro_batch_size: Answers a forward pass of a worker; None takes its whole share at once.
        max_new_tokens: Longest answer in tokens.
        save_every: Updates between checkpoints.
        **settings: Of the trainer's config: ``learning_rate``, ``temperature``, ``num_iterations``, ….

    Raises:
        UserError: If a setting is unknown or out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod")
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")  # several workers can train it together
    takes: ClassVar[frozenset[str]] = frozenset({"supervised", "scorer"})
    config: ClassVar[Any]
    trainer: ClassVar[Any]
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        policy: Any,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path = "checkpoints",
        batch_size: int = 128,
        group_size: int | None = None,
        micro_batch_size: int | None = None,
        max_new_tokens: int = 128,
        save_every: int = 10,
        **settings: Any,
    ) -> None:
        self.policy, self.seed, self.output = policy, seed, Path(output)
        self.batch_size, self.max_new_tokens, self.save_every = batch_size, max_new_tokens, save_every
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens), ("save_every", save_every)):
            if value < 1:
                raise UserError(f"algo.{name}={value}: expected at least 1")
        share, rest = divmod(batch_size, parallel.size())
        if rest:
            raise UserError(f"algo.batch_size={batch_size}: expected a multiple of the {parallel.size()} workers")
        self.micro_batch_size = share if micro_batch_size is None else micro_batch_size
        if self.micro_batch_size < 1 or share % self.micro_batch_size:
            whose = f"batch_size={batch_size}" if share == batch_size else f"a worker's {share} answers"
            raise UserError(f"algo.micro_batch_size={micro_batch_size}: expected a divisor of {whose}")
        fields = self.config.__dataclass_fields__
        self.group_size = fields["num_generations"].default if group_size is None else group_size
        if self.group_size < 1 or batch_size % self.group_size:
            raise UserError(f"algo.group_size={self.group_size}: expected a divisor of batch_size={batch_size}")
        self.settings = {**self.defaults, **settings}
        unknown = sorted((set(self.settings) - set(fields)) | (set(self.settings) & {"num_generations"}))
        if unknown:
            kind = self.config.__name__
            raise UserError(f"unknown setting algo.{unknown[0]}: expected one of this agent's or of {kind}'s")
        config = self._config(updates=1)  # refuses what is out of range now, not after an evaluation
        if getattr(config, "use_vllm", False) and find_spec("vllm") is None:
            raise UserError("algo.use_vllm=true: vLLM is not installed: pip install 'trl[vllm]'")
        if getattr(config, "fsdp", None) and config.use_cpu:
            raise UserError("algo.fsdp: accelerate shards on GPUs only")

    def train(
        self,
        envs: Sequence[VectorEnv],
        updates: int,
        on_log: OnLog,
        resume: bool = False,
        supervised: Sequence[VectorEnv] | None = None,
        scorer: Any = None,
    ) -> None:
        """Train for a number of optimizer steps, supervised ones counted.

        Args:
            envs: One a task, autoreset DISABLED, on the training split; each batch is of one task, in turn.
            updates: Optimizer steps in all, those before a resumed checkpoint included.
            on_log: Called after each with its number, from 1, and named scalars.
            resume: Go on from the last whole checkpoint in ``output``, where there is one.
            supervised: Environments whose rationales supervised steps imitate, where there are any; None takes
                ``envs``.
            scorer: What scores answers in place of ``envs``; it has the methods ``step`` and ``cost`` of `Episodes`,
                and perhaps ``expect``, called with the task, the sample and an answer that ``step`` will ask for.

        Raises:
            UserError: If supervised steps are asked for and the samples have no rationale.
        """
        config = self._config(updates)
        episodes = Episodes(envs)
        reward = EnvReward(episodes if scorer is None else scorer)
        trainer = self.trainer(
            model=self.policy.model,
            reward_funcs=reward,
            args=config,
            train_dataset=episodes.rows(updates, self.batch_size // self.group_size, self.seed),
            processing_class=self.policy.processor,
            callbacks=[_Logs(on_log, reward.cost)],
            **self._more(config, episodes, Episodes(supervised or envs)),
        )
        if hasattr(scorer, "expect"):
            trainer.on_answer = lambda row, answer: scorer.expect(row["task"], row["index"], answer)
        trainer.remove_callback(PrinterCallback)  # the caller shows what it wants of the log
        checkpoint = last_checkpoint(self.output) if resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.is_fsdp_enabled:
            self._gather(trainer)

    def _gather(self, trainer: Any) -> None:
        """Give the first worker a policy of its own, whole: one whose weights are dealt out answers only on all."""
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        del self.policy.model
        if not parallel.rank():
            self.policy.model.load_state_dict(state)

    def _more(self, config: Any, episodes: Episodes, supervised: Episodes) -> dict[str, Any]:
        """Return arguments that this agent's trainer takes beside the common ones."""
        return {}

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[str]:
        """Return one answer an observation, greedy or sampled at the training temperature."""
        temperature = 0.0 if greedy else self.settings.get("temperature", 1.0)
        return self.policy.generate(observations, self.max_new_tokens, temperature)

    def save(self, path: str | Path) -> None:
        """Write the policy as a folder that loads by ``policy=qwen2_5_vl policy.path=…``."""
        self.policy.save(path)

    def load(self, path: str | Path) -> None:
        """Take the weights of a folder that `save` wrote."""
        self.policy.load(path)

    def _config(self, updates: int) -> Any:
        on_gpu = self.policy.device.type == "cuda"
        half = on_gpu and self.policy.dtype is torch.bfloat16
        return self.config(
            **{
                "output_dir": str(self.output),
                "max_steps": updates,
                "per_device_train_batch_size": self.micro_batch_size,
                "gradient_accumulation_steps": self.batch_size // (self.micro_batch_size * parallel.size()),
                "num_generations": self.group_size,
                "max_completion_length": self.max_new_tokens,
                "shuffle_dataset": False,  # the rows are in order already, a task a batch
                "seed": self.seed,
                "save_steps": self.save_every,
                "save_total_limit": 2,
                "logging_steps": 1,
                "logging_nan_inf_filter": False,  # the caller stops at one; TRL's would show the mean of the others
                "lr_scheduler_type": "constant",
                "bf16": half,
                "use_cpu": not on_gpu,
                "gradient_checkpointing": on_gpu,
                "report_to": "none",
                "disable_tqdm": True,
                "log_completions": False,
                **self.settings,
            }
        )


class CGPOAgent(LanguageAgent):
    """Confidence-Guided Policy Optimization, with interleaved supervised steps (see `maskgym.agents.text.cgpo`)."""

    config, trainer = CGPOConfig, CGPOTrainer

    def _more(self, config: CGPOConfig, episodes: Episodes, supervised: Episodes) -> dict[str, Any]:
        return {"isr_dataset": _examples(supervised) if config.isr_sft_steps else None}


class SFTAgent(CGPOAgent):
    """Supervised fine-tuning on rationales: every step of the cycle is supervised (Saliency-R1 Eq. 4)."""

    defaults: ClassVar[dict[str, Any]] = {"isr_period": 1, "isr_sft_steps": 1}


class GRPOAgent(LanguageAgent):
    """Group Relative Policy Optimization with a divergence from the policy before training (DeepSeekMath Eq. 3, 4)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[dict[str, Any]] = {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.04}


class DrGRPOAgent(LanguageAgent):
    """Dr. GRPO: neither an answer's length nor a group's deviation divides anything (arXiv 2503.20783, section 3)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[dict[str, Any]] = {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}


class DAPOAgent(LanguageAgent):
    """DAPO: decoupled clip range, dynamic sampling, overlong punishment (see `maskgym.agents.text.dapo`)."""

    config, trainer = DAPOConfig, DAPOTrainer
    defaults: ClassVar[dict[str, Any]] = {"scale_rewards": "group", "beta": 0.0}

    def _more(self, config: DAPOConfig, episodes: Episodes, supervised: Episodes) -> dict[str, Any]:
        return {"refill_dataset": episodes.every_row()}


class GSPOAgent(LanguageAgent):
    """Group Sequence Policy Optimization: one ratio an answer, clipped as a whole (arXiv 2507.18071, Eq. 5 to 7)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[dict[str, Any]] = {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "scale_rewards": "group",
        "beta": 0.0,
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    }


class RLOOAgent(LanguageAgent):
    """REINFORCE Leave-One-Out: an answer less the mean of the group's others (arXiv 2402.14740)."""

    config, trainer = LeaveOneOutConfig, LeaveOneOutTrainer


class SPOAgent(LanguageAgent):
    """Single-stream Policy Optimization: an answer less what its prompt has earned (see `maskgym.agents.text.spo`)."""

    config, trainer = SPOConfig, SPOTrainer
    defaults: ClassVar[dict[str, Any]] = {"key_columns": ["task", "index"]}


class _Logs(TrainerCallback):
    """Hand the trainer's log of each step on, numbers only, with what its answers cost."""

    def __init__(self, receive: OnLog, cost: Callable[[], dict[str, float]]) -> None:
        self.receive, self.cost = receive, cost

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Pass on what one optimizer step logged; the summary at the end of training is not one."""
        if logs and "train_runtime" not in logs:
            numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            self.receive(state.global_step, numbers | self.cost())


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, or None; unfinished ones are removed.

    The trainer writes ``trainer_state.json`` last, so a checkpoint without a readable one was cut short.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return path
    return None


def _examples(episodes: Episodes) -> Dataset:
    """Return every sample of every task, tasks mixed, as rows with completions."""
    for task, env in enumerate(episodes.envs):
        if episodes.reset(task, [0])[1][0] is None:
            base: Any = env.unwrapped
            raise UserError(
                f"{base.task}: its samples have no rationale to imitate; expected a data set that has "
                "them, or no supervised steps"
            )
    return episodes.every_row()
