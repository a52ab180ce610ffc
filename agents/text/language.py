"""Language agents: environments of text on TRL's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from gymnasium.vector import VectorEnv

from maskgym.agents.base import Agent, OnLog, Scorer
from maskgym.agents.common import parallel
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.aliases import Observation, Settings
from maskgym.errors import UserError
from maskgym.policies.text.mllm import LanguagePolicy
from maskgym.segmenters.outputs import Weights


class LanguageAgent(Agent):
    """Base of the agents of text; a subclass names its method and its default settings.

    Args:
        policy: Language model.
        env: Unused, because all environments of text have the same spaces.
        seed: Seed of the order of samples, of sampling, and of other random draws in training.
        output: Folder of the checkpoints.
        batch_size: Answers per update over all workers (see `maskgym.agents.common.parallel`).
        group_size: Answers per prompt, a divisor of ``batch_size``; None means the algorithm's default.
        micro_batch_size: Answers per forward pass of a worker; None means the worker's whole share, and ``auto`` the
            most that fit into the free memory by the formula of `maskgym.agents.text.forward_size`.
        max_new_tokens: Maximum length of an answer in tokens.
        patience: Updates in a row whose answers are mostly cut off, or none of which can be read, before training
            stops; None never stops.
        save_every: Updates between checkpoints.
        **settings: Fields of the trainer's config: ``learning_rate``, ``temperature``, ``num_iterations``, ….

    Raises:
        UserError: If a number is out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "refer")
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")
    takes: ClassVar[frozenset[str]] = frozenset({"supervised", "scorer"})
    members: ClassVar[tuple[str, ...]] = ("model", "processor", "generate", "save", "load")
    method: ClassVar[str]  # a name in `maskgym.agents.text.training.METHODS`
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
        micro_batch_size: int | str | None = None,
        max_new_tokens: int = 128,
        save_every: int = 10,
        patience: int | None = 20,
        **settings: Any,
    ) -> None:
        self.policy, self.seed, self.output = policy, seed, Path(output)
        self.batch_size, self.max_new_tokens, self.save_every = batch_size, max_new_tokens, save_every
        self.patience = patience
        check_at_least(1, batch_size=batch_size, max_new_tokens=max_new_tokens, save_every=save_every)
        if patience is not None:
            check_at_least(1, patience=patience)
        share, rest = divmod(batch_size, parallel.size())
        if rest:
            raise UserError(f"algo.batch_size={batch_size}: expected a multiple of the {parallel.size()} workers")
        self.sizes_itself = micro_batch_size == "auto"  # when training starts
        if micro_batch_size not in (None, "auto") and type(micro_batch_size) is not int:
            raise UserError(f"algo.micro_batch_size={micro_batch_size}: expected a whole number, auto or null")
        self.micro_batch_size = micro_batch_size if isinstance(micro_batch_size, int) else share
        if self.micro_batch_size < 1 or share % self.micro_batch_size:
            whose = f"batch_size={batch_size}" if share == batch_size else f"a worker's {share} answers"
            raise UserError(f"algo.micro_batch_size={micro_batch_size}: expected a divisor of {whose}")
        self.group_size, self.settings = group_size, {**self.defaults, **settings}

    def check_training(self, tasks: int = 1) -> None:
        """Check the settings of the trainer.

        Raises:
            UserError: If one is unknown or out of range, or no answer to one of several tasks would be reinforced.
        """
        from maskgym.agents.text.training import Training

        Training(self).check(tasks)

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
        from maskgym.agents.text.training import Training

        Training(self).run(envs, updates, on_log, resume, supervised or envs, scorer)

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

    def frozen(self) -> dict[str, Weights]:
        """Describe the model that training begins from."""
        found = getattr(self.policy, "fingerprint", None)  # policies of others may have none
        return {"start": {"name": self.method, "fingerprint": found, "random": False}}


class CGPOAgent(LanguageAgent):
    """Confidence-Guided Policy Optimization, with interleaved supervised steps (see `maskgym.agents.text.cgpo`).

    A setting that ablates CGPO selects the trainer of `maskgym.agents.text.cgpo_ablations`.
    """

    method = "cgpo"


class SFTAgent(CGPOAgent):
    """Supervised fine-tuning on rationales: every step of the cycle is supervised (Saliency-R1 Eq. 4)."""

    defaults: ClassVar[Settings] = {"isr_period": 1, "isr_sft_steps": 1}


class GRPOAgent(LanguageAgent):
    """Group Relative Policy Optimization with the KL divergence from the first policy (DeepSeekMath, Eq. 3 and 4)."""

    method = "grpo"
    defaults: ClassVar[Settings] = {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.04}


class DrGRPOAgent(LanguageAgent):
    """Dr. GRPO: GRPO without division by answer length or standard deviation (arXiv 2503.20783, Section 3)."""

    method = "grpo"
    defaults: ClassVar[Settings] = {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}


class DAPOAgent(LanguageAgent):
    """DAPO: decoupled clip range, dynamic sampling, overlong penalty (see `maskgym.agents.text.dapo`)."""

    method = "dapo"
    defaults: ClassVar[Settings] = {"scale_rewards": "group", "beta": 0.0}


class GSPOAgent(LanguageAgent):
    """Group Sequence Policy Optimization: one ratio per answer, clipped as a whole (arXiv 2507.18071, Eq. 5 to 7)."""

    method = "grpo"
    defaults: ClassVar[Settings] = {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "scale_rewards": "group",
        "beta": 0.0,
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    }


class CISPOAgent(LanguageAgent):
    """Clipped importance sampling weights in place of clipped updates (MiniMax-M1, arXiv 2506.13585)."""

    method = "grpo"
    defaults: ClassVar[Settings] = {
        "loss_type": "cispo",
        "scale_rewards": "group",
        "beta": 0.0,
        "epsilon_high": 5.0,
        "num_iterations": 2,
    }


class SAPOAgent(LanguageAgent):
    """Soft Adaptive Policy Optimization: a smooth gate in place of the clip range (arXiv 2511.20347)."""

    method = "grpo"
    defaults: ClassVar[Settings] = {"loss_type": "sapo", "scale_rewards": "group", "beta": 0.0, "num_iterations": 2}


class RLOOAgent(LanguageAgent):
    """REINFORCE Leave-One-Out: the reward minus the mean reward of the group's others (arXiv 2402.14740)."""

    method = "rloo"


class SPOAgent(LanguageAgent):
    """Single-stream Policy Optimization: the reward minus the prompt's value (see `maskgym.agents.text.spo`)."""

    method = "spo"
    defaults: ClassVar[Settings] = {"key_columns": ["task", "index"]}
