"""Single-stream Policy Optimization (SPO) on TRL: one answer a prompt, compared with a running value of that prompt.

Where the paper leaves a choice, and where we depart from it:

- *Continuous rewards.* The tracker is a Beta distribution over success, ``alpha`` counting successes and ``beta``
  failures. A reward in [0, 1] counts as a part of either, so the value is a running mean of rewards with
  ``alpha + beta`` as its effective number of answers.
- *Forgetting.* The paper's factor follows the divergence of the policy since the prompt was last answered, between
  0.875 and 0.96. That needs each prompt's last answer scored anew; ours is constant.
- *First value.* The paper estimates it from 8 answers to every prompt before training. Ours is the mean reward of the
  batch before, with the weight of ``prior_weight`` answers (in the first batch, of that batch).
- *Prioritized sampling* of prompts is left out: the order of samples is the environments', the same for every method.
- *Mean of the loss.* Over tokens, then over answers, as CGPO's, so that the two differ by their advantage only.
  The authors' script takes it over all tokens, and clips at 0.2 and 0.28.

References:
    Xu and Ding, Single-stream Policy Optimization, arXiv 2509.13232.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import nanstd

from maskgym.agents.text.trainer import ResumableTrainer, check_as_trl_does, check_range, check_settings
from maskgym.errors import UserError

SUPPORTED = {
    "num_generations": 1,
    "scale_rewards": "none",
    "multi_objective_aggregation": "sum_then_normalize",
}


@dataclass
class SPOConfig(GRPOConfig):
    """Settings of :class:`SPOTrainer`: those of ``GRPOConfig``, and the ones below.

    Args:
        forgetting: What an answer's weight is multiplied by with each later answer to the same prompt, 0 to 1; 1
            forgets nothing.
        prior_weight: How many answers the value of a prompt that has none yet is worth.
        key_columns: Columns that tell one prompt from another, together: where prompts differ by their images only,
            another one than ``prompt``.

    Raises:
        UserError: If a value is out of its range or not supported.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Answers a prompt. SPO takes one."})
    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then over answers."})
    scale_rewards: str = field(default="none", metadata={"help": "Without effect: SPO has no groups."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta, as Saliency-R1's."})
    forgetting: float = field(default=0.9, metadata={"help": "Factor on what is known of a prompt, an answer."})
    prior_weight: float = field(default=1.0, metadata={"help": "Answers that a first value is worth."})
    key_columns: list[str] = field(default_factory=lambda: ["prompt"], metadata={"help": "What names a prompt."})

    def __post_init__(self) -> None:
        check_settings(self, SUPPORTED)
        check_range(self, ["forgetting"], lambda value: 0 <= value <= 1, "0 to 1")
        check_range(self, ["prior_weight"], lambda value: value > 0, "more than 0")
        check_as_trl_does(self, super().__post_init__)


class ValueTracker:
    """What each prompt earns, as a Beta distribution whose counts fade.

    Args:
        forgetting: Factor on a prompt's counts at each answer to it.
        prior_weight: Sum of the counts of a prompt without an answer.

    Example:
        >>> tracker = ValueTracker(forgetting=0.5, prior_weight=2.0)
        >>> tracker.observe(["a", "b"], [1.0, 0.0])  # first batch: its mean, 0.5, is where both start
        [0.5, 0.5]
        >>> tracker.observe(["a", "c"], [1.0, 1.0])  # a: (0.5 * 1 + 1) / (0.5 * 2 + 1); c: the batch before's mean
        [0.75, 0.5]
    """

    def __init__(self, forgetting: float, prior_weight: float) -> None:
        self.forgetting, self.prior_weight = forgetting, prior_weight
        self.counts: dict[str, tuple[float, float]] = {}
        self.mean: float | None = None

    def observe(self, keys: list[str], rewards: list[float]) -> list[float]:
        """Return the value of each prompt before a batch, then learn from its rewards.

        Args:
            keys: Names of the prompts, any of them more than once.
            rewards: In [0, 1]; NaN, of an answer that could not be scored, teaches nothing.
        """
        scored = [reward for reward in rewards if reward == reward]
        batch_mean = sum(scored) / len(scored) if scored else 0.5
        start = batch_mean if self.mean is None else self.mean
        prior = (self.prior_weight * start, self.prior_weight * (1 - start))
        found = [self.counts.get(key, prior) for key in keys]
        for key, reward in zip(keys, rewards, strict=True):
            if reward == reward:
                alpha, beta = self.counts.get(key, prior)
                self.counts[key] = (self.forgetting * alpha + reward, self.forgetting * beta + 1 - reward)
        self.mean = batch_mean if scored else self.mean
        return [alpha / (alpha + beta) for alpha, beta in found]


def normalized(advantages: torch.Tensor) -> torch.Tensor:
    """Return advantages (B,) with mean 0 and deviation 1 over the batch; 0 where one is NaN."""
    scaled = (advantages - advantages.nanmean()) / (nanstd(advantages) + 1e-4)  # the addend is TRL's
    return scaled.nan_to_num(nan=0.0)


class SPOTrainer(ResumableTrainer, GRPOTrainer):
    """Train a language model by SPO. Takes what ``GRPOTrainer`` takes; rewards should lie in [0, 1].

    Logged beside TRL's own: ``spo/value`` (mean of the values that rewards were compared with), ``spo/advantage_abs``
    (before normalisation) and ``spo/share_known`` (answers to prompts that had one before). The tracker is part of
    checkpoints.
    """

    _tag_names: ClassVar = ["trl", "spo"]
    _name = "SPO"
    _paper: ClassVar = {"title": "Single-stream Policy Optimization", "id": "2509.13232"}
    config_class: ClassVar = SPOConfig

    def __init__(self, model: Any, reward_funcs: Any = None, args: SPOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        self.tracker = ValueTracker(self.args.forgetting, self.args.prior_weight)

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        rows = self._read(inputs)
        missing = set(self.args.key_columns) - set(rows[0])
        if missing:
            raise UserError(f"key_columns: rows lack {', '.join(sorted(missing))}; they have {', '.join(rows[0])}")
        outputs = super()._generate_and_score_completions(rows)
        self._current_metrics.pop("frac_reward_zero_std")  # of groups of one
        if not self.model.training:
            return outputs
        keys = gather_object(["/".join(str(row[name]) for name in self.args.key_columns) for row in rows])
        advantages = self._advantages(keys, self._total_rewards())
        self._logs["advantages"].extend(advantages.tolist())  # in place of the parent's, of an answer with itself
        return {**outputs, "advantages": self._local(advantages, len(rows))}

    def _advantages(self, keys: list[str], rewards: torch.Tensor) -> torch.Tensor:
        """Return ``r - v``, normalised over all devices' batch (B,), and let the tracker learn from the batch."""
        known = sum(key in self.tracker.counts for key in keys) / len(keys)
        values = torch.tensor(self.tracker.observe(keys, rewards.tolist()), device=rewards.device)
        advantages = rewards - values
        self._current_metrics["spo/value"].append(values.mean().item())
        self._current_metrics["spo/advantage_abs"].append(advantages.abs().nanmean().item())
        self._current_metrics["spo/share_known"].append(known)
        return normalized(advantages)

    def extra_state(self) -> dict[str, Any]:
        """Return the tracker's state."""
        return {"counts": self.tracker.counts, "mean": self.tracker.mean}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take the tracker's state."""
        self.tracker.counts, self.tracker.mean = state["counts"], state["mean"]
