"""Decoupled Clip and Dynamic Sampling Policy Optimization (DAPO) on TRL.

TRL has the clip range, the loss over tokens and the punishment of overlong answers. Dynamic sampling is here: groups
without signal are dropped and further prompts are answered until the batch is full.

Where the paper leaves a choice, and where we depart from it:

- *Tolerance.* Eq. 11 drops groups whose answers are all right or all wrong. Rewards are continuous here: a group is
  dropped when they deviate by less than ``signal_tolerance``. As in the paper, overlong punishment does not count.
- *Bound.* The paper samples until the batch is full, we at most ``sampling_rounds`` times. What is missing then is
  filled up with groups without signal, whose advantages are 0.
- *Further prompts.* Each round answers as many prompts as are missing, drawn at random from ``refill_dataset`` by
  ``seed`` and step, so a resumed run goes on with the same numbers.
- *Loss.* Eq. 8 divides by the tokens of a group. ``loss_type="dapo"`` divides by those of all groups of an update: the
  same for one group, and the same whatever the size of a forward pass, which ``"bnpo"`` (tokens of a forward pass) is
  not. The authors' script does so too.
- *Weight of the punishment.* Eq. 13 takes up to 1 from rewards of -1 and 1. Ours lie in [0, 1], so half is taken.

References:
    Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476, Eq. 8 to 13.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from trl.rewards import get_soft_overlong_punishment

from maskgym.agents.text.group_methods import GroupConfig, GroupTrainer, without_signal
from maskgym.agents.text.trainer import check_range, read_rows, weighted_sums, with_images
from maskgym.errors import UserError

SUPPORTED = {"use_vllm": False}  # whose answers come with log-probabilities that a second draw would have to join


@dataclass
class DAPOConfig(GroupConfig):
    """Settings of :class:`DAPOTrainer`: those of `GroupConfig`, with the paper's defaults, and the ones below.

    Args:
        sampling_rounds: How often prompts are answered for one batch, at most; 1 is no dynamic sampling.
        overlong_share: Share of the longest answer, at its end, in which punishment grows to its full weight (Eq. 13);
            0 is none.
        overlong_weight: Weight of the punishment beside the rewards.

    Raises:
        UserError: If a value is out of its range.
    """

    loss_type: str = field(default="dapo", metadata={"help": "Mean over the tokens of all answers."})
    epsilon_high: float | None = field(default=0.28, metadata={"help": "The ratio is clipped at 1 + this."})
    sampling_rounds: int = field(default=10, metadata={"help": "Draws of prompts for one batch, at most."})
    overlong_share: float = field(default=0.2, metadata={"help": "Share of the longest answer that is punished."})
    overlong_weight: float = field(default=0.5, metadata={"help": "Weight of the punishment."})

    def __post_init__(self) -> None:
        for option, expected in SUPPORTED.items():
            if getattr(self, option) != expected:
                raise UserError(f"{option}={getattr(self, option)!r}: DAPO supports only {expected!r}")
        check_range(self, ["sampling_rounds"], lambda value: value >= 1, "at least 1")
        check_range(self, ["overlong_share"], lambda value: 0 <= value <= 1, "0 to 1")
        check_range(self, ["overlong_weight"], lambda value: value >= 0, "at least 0")
        super().__post_init__()
        share = self.generation_batch_size // self.world_size
        if self.sampling_rounds > 1 and share % self.num_generations:
            asked = f"sampling_rounds={self.sampling_rounds}"
            raise UserError(f"{asked}: expected whole groups of {self.num_generations} a process, got {share} answers")


@dataclass
class Group:
    """Answers to one prompt, as TRL hands them on: one entry each, but for ``rewards``, (G, terms)."""

    rows: list[dict[str, Any]]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Any]
    images: list[Any] | None
    rewards: torch.Tensor


class DAPOTrainer(GroupTrainer):
    """Train a language model by DAPO. Takes what ``GRPOTrainer`` takes, without tools, and ``refill_dataset``.

    Logged beside `GroupTrainer`'s: ``group/share_without_signal`` is of every group that was sampled, dropped ones
    included; ``dapo/rounds`` says how often prompts were answered, ``dapo/share_unfilled`` which share of the batch has
    no signal after all. ``reward`` is of the batch learned from; what reward functions log is of the first round, which
    nothing was dropped from.

    Args:
        model: As in ``GRPOTrainer``.
        reward_funcs: As in ``GRPOTrainer``; the punishment of overlong answers is added to them.
        args: A :class:`DAPOConfig`.
        refill_dataset: Rows to draw further prompts from; None takes ``train_dataset``.
        **kwargs: As in ``GRPOTrainer``.

    Raises:
        UserError: If there is nothing to draw further prompts from, or tools are given.
    """

    _name = "DAPO"
    _paper: ClassVar = {"title": "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "id": "2503.14476"}
    config_class: ClassVar = DAPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
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
            reward_funcs, args = _with_punishment(reward_funcs, args)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        if not self.model.training or self.args.sampling_rounds == 1:
            return super()._generate_and_score_completions(inputs)
        groups, unfilled = self._sample(self._read(inputs))
        self._batch = groups  # for the parent, which asks for answers and rewards by the methods below
        outputs = super()._generate_and_score_completions(list(chain.from_iterable(group.rows for group in groups)))
        self._batch = []
        if unfilled:
            outputs["advantages"][-unfilled * self.num_generations :] = 0
        return outputs

    def _sample(self, rows: list[dict[str, Any]]) -> tuple[list[Group], int]:
        """Return groups for this process's share of a batch, those without signal last, and how many these are.

        Every process answers as many prompts a round as the one that lacks most: their answers are scored together.
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
        self._pending_extra_logs.clear()  # columns of the completions table, longer than the batch by now
        without, sampled, unfilled = self._of_all([len(dropped), len(kept) + len(dropped), missing / wanted]).mean(0)
        metrics = self._current_metrics
        metrics["group/share_without_signal"].append(float(without / sampled))
        metrics["dapo/rounds"].append(number)
        metrics["dapo/share_unfilled"].append(float(unfilled))
        return kept[:wanted] + dropped[:missing], missing

    def _of_all(self, numbers: list[float]) -> torch.Tensor:
        """Return some numbers of every process, (processes, N)."""
        return self.accelerator.gather(torch.tensor([numbers], device=self.accelerator.device))

    def _answer(self, rows: list[dict[str, Any]]) -> list[Group]:
        """Return the answers to prompts, each of which comes ``num_generations`` times in a row."""
        self._prompted = rows
        prompts = with_images(rows) if {"image", "images"} & set(rows[0]) else [row["prompt"] for row in rows]
        prompt_ids, completion_ids, _, completions, _, _, images, _ = super()._generate(prompts)
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids)
        rewards = self._local(rewards, len(rows))
        groups = []
        for start in range(0, len(rows), self.num_generations):
            part = slice(start, start + self.num_generations)
            shown = None if images is None else images[part]
            parts = rows[part], prompt_ids[part], completion_ids[part], completions[part], shown, rewards[part]
            groups.append(Group(*parts))
        return groups

    def _compared(self, rewards_of_terms: torch.Tensor) -> torch.Tensor:
        """Return the rewards without the punishment, which comes last where it is on."""
        scored = slice(None, -1) if self.args.overlong_share else slice(None)
        return weighted_sums(rewards_of_terms[:, scored], self.reward_weights[scored])

    def _is_flat(self, group: Group) -> bool:
        return bool(without_signal(self._compared(group.rewards), self.num_generations, self.args.signal_tolerance))

    def _further_rows(self, count: int, number: int) -> list[dict[str, Any]]:
        generator, dataset = np.random.default_rng((self.args.seed, self._step, number)), self.refill_dataset
        assert dataset is not None  # checked with the arguments
        total = count * self.accelerator.num_processes
        drawn = generator.choice(len(dataset), total, replace=total > len(dataset))
        drawn = drawn[count * self.accelerator.process_index :][:count]
        rows = self._without_completions(read_rows(dataset, drawn))
        return [row for row in rows for _ in range(self.num_generations)]

    def _generate(self, prompts: list[Any]) -> Any:
        if not self._batch:
            return super()._generate(prompts)
        columns = {
            name: list(chain.from_iterable(getattr(group, name) for group in self._batch))
            for name in ("prompt_ids", "completion_ids", "completions")
        }
        images = [shown for group in self._batch for shown in group.images or ()] or None
        return columns["prompt_ids"], columns["completion_ids"], None, columns["completions"], None, {}, images, []

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        if not self._batch:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_of_terms = self.accelerator.gather(torch.cat([group.rewards for group in self._batch]))
        return self._rewards_of_terms

    def _log_signal(self) -> None:
        if self.args.sampling_rounds == 1:  # else logged with the sampling, before anything was dropped
            super()._log_signal()


def _with_punishment(reward_funcs: Any, args: DAPOConfig) -> tuple[list[Any], DAPOConfig]:
    """Return reward functions and settings with the punishment of overlong answers, where it is on."""
    functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not args.overlong_share:
        return functions, args
    cache = max(round(args.overlong_share * args.max_completion_length), 1)
    args = copy.copy(args)
    args.reward_weights = [*(args.reward_weights or [1.0] * len(functions)), args.overlong_weight]
    return [*functions, get_soft_overlong_punishment(args.max_completion_length, cache)], args
