"""Language agents: environments of text on TRL's trainers.

TRL takes a data set of prompts and a reward function, and `maskgym.agents.text.reward_function` builds both from
environments.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from gymnasium.vector import VectorEnv
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, RLOOConfig

from maskgym.agents.base import Agent, OnLog, Scorer
from maskgym.agents.common import parallel
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.agents.text.cgpo import CGPOConfig, CGPOTrainer
from maskgym.agents.text.cgpo_ablations import ABLATIONS, AblatedCGPOConfig, AblatedCGPOTrainer
from maskgym.agents.text.dapo import DAPOConfig, DAPOTrainer
from maskgym.agents.text.group_methods import GroupConfig, GroupTrainer, LeaveOneOutConfig, LeaveOneOutTrainer
from maskgym.agents.text.reward_function import EnvReward, Episodes
from maskgym.agents.text.spo import SPOConfig, SPOTrainer
from maskgym.agents.text.trainer import ResumableTrainer
from maskgym.aliases import Observation, Settings
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.policies.text.mllm import LanguagePolicy


class LanguageAgent(Agent):
    """Base of the agents of text; a subclass names its trainer, its config and its default settings.

    Args:
        policy: Language model.
        env: Unused, because all environments of text have the same spaces.
        seed: Seed of the order of samples, of sampling, and of other random draws in training.
        output: Folder of the checkpoints.
        batch_size: Answers per update over all workers (see `maskgym.agents.common.parallel`).
        group_size: Answers per prompt, a divisor of ``batch_size``; None means the algorithm's default.
        micro_batch_size: Answers per forward pass of a worker; None means the worker's whole share.
        max_new_tokens: Maximum length of an answer in tokens.
        save_every: Updates between checkpoints.
        **settings: Fields of the trainer's config: ``learning_rate``, ``temperature``, ``num_iterations``, ….

    Raises:
        UserError: If a setting is unknown or out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod")
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")
    takes: ClassVar[frozenset[str]] = frozenset({"supervised", "scorer"})
    config: type[GRPOConfig | RLOOConfig]
    trainer: type[ResumableTrainer]
    defaults: ClassVar[Settings] = {}

    def __init__(
        self,
        policy: LanguagePolicy,
        env: VectorEnv | None = None,
        seed: int = 0,
        *,
        output: str | Path,
        batch_size: int = 128,
        group_size: int | None = None,
        micro_batch_size: int | None = None,
        max_new_tokens: int = 128,
        save_every: int = 10,
        **settings: Any,
    ) -> None:
        self.policy, self.seed, self.output = policy, seed, Path(output)
        self.batch_size, self.max_new_tokens, self.save_every = batch_size, max_new_tokens, save_every
        check_at_least(1, batch_size=batch_size, max_new_tokens=max_new_tokens, save_every=save_every)
        share, rest = divmod(batch_size, parallel.size())
        if rest:
            raise UserError(f"algo.batch_size={batch_size}: expected a multiple of the {parallel.size()} workers")
        self.micro_batch_size = share if micro_batch_size is None else micro_batch_size
        if self.micro_batch_size < 1 or share % self.micro_batch_size:
            whose = f"batch_size={batch_size}" if share == batch_size else f"a worker's {share} answers"
            raise UserError(f"algo.micro_batch_size={micro_batch_size}: expected a divisor of {whose}")
        self.settings = self._select({**self.defaults, **settings})
        fields = self.config.__dataclass_fields__
        self.group_size = fields["num_generations"].default if group_size is None else group_size
        if self.group_size < 1 or batch_size % self.group_size:
            raise UserError(f"algo.group_size={self.group_size}: expected a divisor of batch_size={batch_size}")
        unknown = sorted((set(self.settings) - set(fields)) | (set(self.settings) & {"num_generations"}))
        if unknown:
            kind = self.config.__name__
            raise UserError(f"unknown setting algo.{unknown[0]}: expected one of this agent's or of {kind}'s")
        config = self._config(updates=1)  # Refuse bad settings now instead of after the first evaluation.
        if config.use_vllm and find_spec("vllm") is None:
            raise UserError("algo.use_vllm=true: vLLM is not installed: pip install 'trl[vllm]'")
        if config.fsdp and config.use_cpu:
            raise UserError("algo.fsdp: accelerate shards on GPUs only")

    def _select(self, settings: Settings) -> Settings:
        """Select config and trainer by the settings; return the settings that this config takes."""
        return settings

    def train(
        self,
        envs: Sequence[VectorEnv],
        updates: int,
        on_log: OnLog,
        resume: bool = False,
        supervised: Sequence[VectorEnv] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Train for a number of optimizer steps, including supervised ones.

        Args:
            envs: Environments of the training split, one per task, with autoreset DISABLED; tasks take turns, one per
                batch.
            updates: Total number of optimizer steps, including those before a resumed checkpoint.
            on_log: Receiver of each step's number, from 1, and its named scalars.
            resume: Whether to continue from the last complete checkpoint in ``output``, if any.
            supervised: Environments whose rationales supervised steps imitate; None means ``envs``.
            scorer: Scores answers in place of ``envs``, and receives each finished answer while others are still being
                generated.

        Raises:
            UserError: If there are supervised steps, but the samples have no rationale.
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
            **self._data(config, episodes, Episodes(supervised or envs)),
        )
        if scorer is not None:
            trainer.on_answer = lambda row, answer: scorer.expect(row["task"], row["index"], answer)
        trainer.remove_callback(PrinterCallback)  # `on_log` decides what is shown.
        checkpoint = last_checkpoint(self.output) if resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.is_fsdp_enabled:
            self._gather(trainer)

    def _gather(self, trainer: ResumableTrainer) -> None:
        """Give rank 0 a policy with all weights, because sharded weights answer only on all workers together."""
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        del self.policy.model
        if not parallel.rank():
            self.policy.model.load_state_dict(state)

    def _data(self, config: GRPOConfig, episodes: Episodes, supervised: Episodes) -> dict[str, Dataset | None]:
        """Build the further data sets that this agent's trainer takes."""
        return {}

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> list[str]:
        """Generate one answer per observation, greedily or sampled at the training temperature."""
        temperature = 0.0 if greedy else self.settings.get("temperature", 1.0)
        return self.policy.generate(observations, self.max_new_tokens, temperature)

    def save(self, path: str | Path) -> None:
        """Write the policy to a folder that ``policy=qwen2_5_vl policy.path=…`` loads."""
        self.policy.save(path)

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote."""
        self.policy.load(path)

    def _config(self, updates: int) -> GRPOConfig:
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
                "shuffle_dataset": False,  # The rows are in order already, with one task per batch.
                "seed": self.seed,
                "save_steps": self.save_every,
                "save_total_limit": 2,
                "logging_steps": 1,
                "logging_nan_inf_filter": False,  # The caller stops at NaN, which TRL's filter would hide.
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
    """Confidence-Guided Policy Optimization, with interleaved supervised steps (see `maskgym.agents.text.cgpo`).

    A setting that ablates CGPO selects the trainer of `maskgym.agents.text.cgpo_ablations`.
    """

    config, trainer = CGPOConfig, CGPOTrainer

    def _select(self, settings: Settings) -> Settings:
        if any(settings.get(name, off) != off for name, off in ABLATIONS.items()):
            self.config, self.trainer = AblatedCGPOConfig, AblatedCGPOTrainer
            return settings
        return {name: value for name, value in settings.items() if name not in ABLATIONS}

    def _data(self, config: CGPOConfig, episodes: Episodes, supervised: Episodes) -> dict[str, Dataset | None]:
        return {"isr_dataset": _examples(supervised) if config.isr_sft_steps else None}


class SFTAgent(CGPOAgent):
    """Supervised fine-tuning on rationales: every step of the cycle is supervised (Saliency-R1 Eq. 4)."""

    defaults: ClassVar[Settings] = {"isr_period": 1, "isr_sft_steps": 1}


class GRPOAgent(LanguageAgent):
    """Group Relative Policy Optimization with the KL divergence from the first policy (DeepSeekMath, Eq. 3 and 4)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[Settings] = {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.04}


class DrGRPOAgent(LanguageAgent):
    """Dr. GRPO: GRPO without division by answer length or standard deviation (arXiv 2503.20783, Section 3)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[Settings] = {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}


class DAPOAgent(LanguageAgent):
    """DAPO: decoupled clip range, dynamic sampling, overlong penalty (see `maskgym.agents.text.dapo`)."""

    config, trainer = DAPOConfig, DAPOTrainer
    defaults: ClassVar[Settings] = {"scale_rewards": "group", "beta": 0.0}

    def _data(self, config: DAPOConfig, episodes: Episodes, supervised: Episodes) -> dict[str, Dataset | None]:
        return {"refill_dataset": episodes.every_row()}


class GSPOAgent(LanguageAgent):
    """Group Sequence Policy Optimization: one ratio per answer, clipped as a whole (arXiv 2507.18071, Eq. 5 to 7)."""

    config, trainer = GroupConfig, GroupTrainer
    defaults: ClassVar[Settings] = {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "scale_rewards": "group",
        "beta": 0.0,
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    }


class RLOOAgent(LanguageAgent):
    """REINFORCE Leave-One-Out: the reward minus the mean reward of the group's others (arXiv 2402.14740)."""

    config, trainer = LeaveOneOutConfig, LeaveOneOutTrainer


class SPOAgent(LanguageAgent):
    """Single-stream Policy Optimization: the reward minus the prompt's value (see `maskgym.agents.text.spo`)."""

    config, trainer = SPOConfig, SPOTrainer
    defaults: ClassVar[Settings] = {"key_columns": ["task", "index"]}


class _Logs(TrainerCallback):
    """Pass the numbers in the trainer's log of each step on, together with the cost of its answers."""

    def __init__(self, receive: OnLog, cost: Callable[[], dict[str, float]]) -> None:
        self.receive, self.cost = receive, cost

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Settings | None = None,
        **_: Any,
    ) -> None:
        """Pass on the log of one optimizer step; the summary at the end of training is not such a log."""
        if logs and "train_runtime" not in logs:
            numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            self.receive(state.global_step, numbers | self.cost())


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint in a folder, if any; incomplete ones are removed.

    The trainer writes ``trainer_state.json`` last, so a checkpoint that was interrupted has no readable one.
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
    """Build one row with a completion per sample, for all tasks."""
    for task, env in enumerate(episodes.envs):
        if episodes.reset(task, [0])[1][0] is None:
            shown = unwrap(env, SampleVectorEnv).dataset.task
            raise UserError(
                f"{shown}: its samples have no rationale to imitate; expected a data set that has "
                "them, or no supervised steps"
            )
    return episodes.every_row()
