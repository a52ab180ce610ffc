"""Decoupled Clip and Dynamic Sampling Policy Optimization (DAPO) on TRL.

TRL has the clip range, the loss over tokens and the penalty on overlong answers. This module adds dynamic sampling: it
drops zero-variance groups and answers further prompts until the batch is full.

Choices that the paper leaves open, and departures from it:

- *Tolerance.* Eq. 11 drops groups whose answers are all right or all wrong. Rewards are continuous here, so a group is
  dropped if their standard deviation is below ``signal_tolerance``. As in the paper, the overlong penalty is excluded.
- *Bound.* The paper samples until the batch is full; here, sampling stops after ``sampling_rounds`` rounds. The rest is
  filled with zero-variance groups, whose advantages are 0.
- *Further prompts.* Each round answers as many prompts as are missing, drawn at random from ``refill_dataset``. The
  draw depends only on ``seed`` and step, so a resumed run continues with the same numbers.
- *Loss.* Eq. 8 divides by the tokens of a group, ``loss_type="dapo"`` by those of all groups of an update, as the
  authors' script does. Both agree for one group, and the result does not depend on the size of a forward pass, unlike
  that of ``"bnpo"``, which divides by the tokens of a forward pass.
- *Weight of the penalty.* Eq. 13 subtracts up to 1 from rewards of -1 and 1. Rewards lie in [0, 1] here, so the weight
  is one half.

References:
    Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476, Eq. 8 to 13.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.grpo_trainer import RewardFunc

from maskgym.agents.text.group_methods import GroupConfig, GroupTrainer, without_signal
from maskgym.agents.text.reward_function import Completion
from maskgym.agents.text.trainer import Row, check_range, read_rows, weighted_sums, with_images, without_completions
from maskgym.errors import UserError


@dataclass
class DAPOConfig(GroupConfig):
    """Settings of :class:`DAPOTrainer`: those of `GroupConfig`, with the paper's defaults, and the ones below.

    Args:
        sampling_rounds: Most rounds of answering prompts per batch; 1 disables dynamic sampling.
        overlong_share: Share of the longest answer, at its end, over which the penalty grows to its full weight
            (Eq. 13); 0 disables it.
        overlong_weight: Weight of the penalty beside the rewards.

    Raises:
        UserError: If a value is out of range.
    """

    loss_type: str = field(default="dapo", metadata={"help": "Mean over the tokens of all answers."})
    epsilon_high: float | None = field(default=0.28, metadata={"help": "The ratio is clipped at 1 + this."})
    sampling_rounds: int = field(default=10, metadata={"help": "Most rounds of answering prompts per batch."})
    overlong_share: float = field(default=0.2, metadata={"help": "Share of the longest answer with a penalty."})
    overlong_weight: float = field(default=0.5, metadata={"help": "Weight of the penalty."})

    def check(self) -> None:
        """Check sampling and penalty."""
        super().check()
        check_range(self, ["sampling_rounds"], lambda value: value >= 1, "at least 1")
        check_range(self, ["overlong_share"], lambda value: 0 <= value <= 1, "0 to 1")
        check_range(self, ["overlong_weight"], lambda value: value >= 0, "at least 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.generation_batch_size // self.world_size
        if self.sampling_rounds > 1 and share % self.num_generations:
            raise UserError(
                f"sampling_rounds={self.sampling_rounds}: expected whole groups of {self.num_generations} answers per "
                f"process, got {share} answers"
            )


@dataclass
class Group:
    """Answers to one prompt in TRL's form, one entry per answer.

    ``rewards`` are (G, terms). ``sampled`` are the log-probabilities of the tokens when vLLM sampled them, else empty.
    """

    rows: list[Row]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    sampled: list[list[float]]
    completions: list[Completion]
    images: list[list[Image.Image]]
    rewards: Tensor


class DAPOTrainer(GroupTrainer):
    """Train a language model by DAPO.

    Further logged scalars: ``group/share_without_signal`` covers all sampled groups, including dropped ones;
    ``dapo/rounds`` is the number of rounds, and ``dapo/share_unfilled`` the share of the batch without signal. The
    scalar ``reward`` covers the batch that is learned. What reward functions log covers the first round, in which
    nothing is dropped.

    Args:
        model: As in ``GRPOTrainer``.
        reward_funcs: As in ``GRPOTrainer``; the overlong penalty is added to them.
        args: A :class:`DAPOConfig`.
        refill_dataset: Rows to draw further prompts from; None means ``train_dataset``.
        **kwargs: Further arguments of ``GRPOTrainer``, except tools.

    Raises:
        UserError: If there is no data set to draw further prompts from, or tools are given.
    """

    _name = "DAPO"
    _paper: ClassVar = {"title": "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "id": "2503.14476"}
    config_class: ClassVar[type[DAPOConfig]] = DAPOConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: DAPOConfig | None = None,
        refill_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        args = DAPOConfig(self._name) if args is None else args
        self.refill_dataset = kwargs.get("train_dataset") if refill_dataset is None else refill_dataset
        self._batch: list[Group] = []
        if isinstance(args, DAPOConfig):
            if args.sampling_rounds > 1 and not isinstance(self.refill_dataset, Dataset):
                raise UserError("sampling_rounds: a data set that streams needs refill_dataset, or 1 round")
            if kwargs.get("tools") or kwargs.get("environment_factory") or kwargs.get("rollout_func"):
                raise UserError("tools, environment_factory, rollout_func: DAPO supports none of them")
            reward_funcs, args = _with_penalty(reward_funcs, args)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        if not self.model.training or self.args.sampling_rounds == 1:
            return super()._generate_and_score_completions(inputs)
        self._batch, unfilled = self._sample(self._read(inputs))
        # While `_batch` is set, the methods below return its answers and rewards to the parent.
        rows = list(chain.from_iterable(group.rows for group in self._batch))
        outputs = super()._generate_and_score_completions(rows)
        self._batch = []
        if unfilled:
            outputs["advantages"][-unfilled * self.num_generations :] = 0
        return outputs

    def _sample(self, rows: list[Row]) -> tuple[list[Group], int]:
        """Sample groups for this process's share of a batch, zero-variance groups last; also return their number.

        In each round, all processes answer as many prompts as the one with the most missing, because their answers are
        scored together.
        """
        wanted = len(rows) // self.num_generations
        kept: list[Group] = []
        dropped: list[Group] = []
        for number in range(1, self.args.sampling_rounds + 1):
            for group in self._answer(rows):
                (dropped if self._is_flat(group) else kept).append(group)
            if number == 1:
                logged = {name: list(values) for name, values in self._pending_metrics.items()}
            missing = max(0, wanted - len(kept))
            most = self._of_all([missing]).max()
            if not most:
                break
            rows = self._further_rows(int(most), number)
        self._pending_metrics.clear()
        self._pending_metrics.update(logged)
        self._pending_extra_logs.clear()  # These columns of the table of completions are longer than the batch now.
        without, sampled, unfilled = self._of_all([len(dropped), len(kept) + len(dropped), missing / wanted]).mean(0)
        metrics = self._current_metrics
        metrics["group/share_without_signal"].append(float(without / sampled))
        metrics["dapo/rounds"].append(number)
        metrics["dapo/share_unfilled"].append(float(unfilled))
        return kept[:wanted] + dropped[:missing], missing

    def _of_all(self, numbers: list[float]) -> Tensor:
        """Gather N numbers of every process, (processes, N)."""
        return self.accelerator.gather(torch.tensor([numbers], device=self.accelerator.device))

    def _answer(self, rows: list[Row]) -> list[Group]:
        """Generate and score answers to prompts, each of which occurs ``num_generations`` times in a row."""
        self._prompted = rows
        prompts = with_images(rows) if {"image", "images"} & set(rows[0]) else [row["prompt"] for row in rows]
        prompt_ids, completion_ids, _, completions, sampled, _, images, _ = super()._generate(prompts)
        rewards = self._local(super()._calculate_rewards(rows, prompts, completions, completion_ids), len(rows))
        images, sampled, groups = images or [], sampled or [], []
        for start in range(0, len(rows), self.num_generations):
            part = slice(start, start + self.num_generations)
            tokens = prompt_ids[part], completion_ids[part], sampled[part]
            groups.append(Group(rows[part], *tokens, completions[part], images[part], rewards[part]))
        return groups

    def _compared(self, rewards_of_terms: Tensor) -> Tensor:
        """Compute the rewards without the penalty, which is the last term if it is on."""
        scored = slice(None, -1) if self.args.overlong_share else slice(None)
        return weighted_sums(rewards_of_terms[:, scored], self.reward_weights[scored])

    def _is_flat(self, group: Group) -> bool:
        return bool(without_signal(self._compared(group.rewards), self.num_generations, self.args.signal_tolerance))

    def _further_rows(self, count: int, number: int) -> list[Row]:
        """Draw ``count`` prompts for the round after round ``number``, each ``num_generations`` times in a row."""
        generator, dataset = np.random.default_rng((self.args.seed, self._step, number)), self.refill_dataset
        assert dataset is not None  # The constructor checks it.
        total = count * self.accelerator.num_processes
        drawn = generator.choice(len(dataset), total, replace=total > len(dataset))
        drawn = drawn[count * self.accelerator.process_index :][:count]
        rows = without_completions(read_rows(dataset, drawn))
        return [row for row in rows for _ in range(self.num_generations)]

    def _generate(self, prompts: list) -> tuple:
        if not self._batch:
            return super()._generate(prompts)
        prompt_ids = [ids for group in self._batch for ids in group.prompt_ids]
        completion_ids = [ids for group in self._batch for ids in group.completion_ids]
        completions = [completion for group in self._batch for completion in group.completions]
        images = [shown for group in self._batch for shown in group.images] or None
        sampled = [values for group in self._batch for values in group.sampled] or None
        return prompt_ids, completion_ids, None, completions, sampled, {}, images, []

    def _calculate_rewards(
        self,
        inputs: list[Row],
        prompts: list,
        completions: list[Completion],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        if not self._batch:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_of_terms = self.accelerator.gather(torch.cat([group.rewards for group in self._batch]))
        return self._rewards_of_terms

    def _log_signal(self) -> None:
        if self.args.sampling_rounds == 1:  # Otherwise `_sample` logs it, before groups are dropped.
            super()._log_signal()


def _with_penalty(
    reward_funcs: RewardFunc | list[RewardFunc] | None, args: DAPOConfig
) -> tuple[list[RewardFunc], DAPOConfig]:
    """Add the overlong penalty to reward functions and settings, if it is on."""
    functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not args.overlong_share:
        return functions, args
    cache = max(round(args.overlong_share * args.max_completion_length), 1)
    args = copy.copy(args)
    args.reward_weights = [*(args.reward_weights or [1.0] * len(functions)), args.overlong_weight]
    return [*functions, get_soft_overlong_punishment(args.max_completion_length, cache)], args
