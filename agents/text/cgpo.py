"""Confidence-Guided Policy Optimization (CGPO) on TRL, usable in place of ``GRPOTrainer``.

One answer a prompt. Its advantage is what the reward says less what the policy believed,
``A = r - c`` (Saliency-R1, Eq. 13), with ``c`` the mean probability of the sampled tokens (Eq. 10), in PPO's clipped
objective (Eq. 14). Supervised steps between the updates (Interleaved SFT Regularization, ISR, Eq. 15) take the place
of the divergence from a reference model.

Where the paper leaves a choice, and where we depart from it:

- *Schedule.* Eq. 15 has one supervised step in every ``P``; the training details have two in every five. Both can be
  said with ``isr_period`` and ``isr_sft_steps``; the default is the training details.
- *Optimizer.* The supervised steps have an AdamW state of their own. The paper does not say. With one state for both,
  the larger supervised gradients set the second moments and the policy updates shrink to nothing;
  ``isr_shared_optimizer`` shows it.
- *Learning rate of ISR.* Not stated; the default is the rate of the paper's supervised stage, 1e-6.
- *Supervised loss.* Eq. 4 sums over tokens; we take the mean over the tokens of a batch, as is usual.
- *Centring.* ``center_advantage`` subtracts the batch's mean advantage. This variant is OURS, not the paper's.

Four options show what the paper argues for by leaving it out: ``confidence`` as the exponential of the mean
log-probability, ``full_gradient`` (Eq. 11 itself in place of Eq. 13 and 14), ``beta`` (a divergence from the policy
before training, Eq. 8, in place of ISR), and ``num_generations`` (several answers a prompt).

The confidence comes from the log-probabilities of the sampling policy. When every answer is used for one update only,
those are the loss's own, so a step costs one forward pass; otherwise TRL computes the old ones and they are used.

References:
    Li et al., Saliency-R1: Incentivizing Unified Saliency Reasoning Capability in MLLM with Confidence-Guided
    Reinforcement Learning, Eq. 4 and 10 to 15 and Section 4.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from maskgym.agents.text.response_types import confidence, masked_mean
from maskgym.agents.text.trainer import (
    ResumableTrainer,
    check_as_trl_does,
    check_range,
    check_settings,
    read_rows,
    with_images,
)
from maskgym.errors import UserError
from maskgym.policies.text.mllm import vision_token_ids as vision_token_ids  # part of what this file has always offered

CONFIDENCES = ("mean_probability", "exp_mean_log")
EDGE = 1e-6  # Eq. 11 has no value where the confidence is 0 or 1
IGNORED_LABEL = -100
# What the loss below does not do, by option name, with the one value that it does.
SUPPORTED = {
    "loss_type": "grpo",
    "use_bias_correction_kl": False,
    "delta": None,
    "importance_sampling_level": "token",
    "multi_objective_aggregation": "sum_then_normalize",
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
}


@dataclass
class CGPOConfig(GRPOConfig):
    """Settings of :class:`CGPOTrainer`: those of ``GRPOConfig``, with the paper's defaults, and the ones below.

    Options of ``GRPOConfig`` that the objective of Eq. 14 has no place for are refused. Its ``beta`` is the weight of
    the divergence from the policy before training (Eq. 8), and takes the place of ISR.

    Args:
        num_generations: Answers a prompt; the paper takes one.
        confidence: ``mean_probability`` (Eq. 10) or ``exp_mean_log``, the exponential of the mean log-probability.
        full_gradient: Minimise Eq. 11, the confidence differentiated, whose gradient has Eq. 12 as a factor: unstable
            where the confidence is near 0 or 1. There is no ratio in it, so an answer serves for one update.
        center_advantage: Subtract the mean advantage of each forward pass's batch, all devices together. OURS.
        isr_period: Length ``P`` of the cycle of optimizer steps.
        isr_sft_steps: How many steps are supervised, at the end of each cycle: 0 (no ISR) to ``isr_period`` (no RL).
        isr_learning_rate: Constant learning rate of the supervised steps; the scheduler drives the policy's only.
        isr_batch_size: Examples a device and forward pass in a supervised step (``gradient_accumulation_steps``
            applies as ever); ``None`` means ``per_device_train_batch_size``.
        isr_shared_optimizer: Use one AdamW state for both kinds of step.

    Raises:
        UserError: If a value is out of its range, or an option of ``GRPOConfig`` is not supported.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Answers a prompt."})
    loss_type: str = field(
        default="grpo",
        metadata={"help": "Mean over tokens, then over answers (Eq. 14)."},
    )
    scale_rewards: str = field(default="none", metadata={"help": "Without effect: CGPO has no groups."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the policy updates."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Only False: the divergence is Eq. 8's."})
    confidence: str = field(default="mean_probability", metadata={"help": "Or exp_mean_log."})
    full_gradient: bool = field(default=False, metadata={"help": "Minimise Eq. 11 itself."})
    center_advantage: bool = field(default=False, metadata={"help": "Subtract the batch's mean advantage (ours)."})
    isr_period: int = field(default=5, metadata={"help": "Optimizer steps in one cycle of RL and SFT."})
    isr_sft_steps: int = field(default=2, metadata={"help": "Supervised steps at the end of each cycle."})
    isr_learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate of the supervised steps."})
    isr_batch_size: int | None = field(default=None, metadata={"help": "Examples a device in a supervised pass."})
    isr_shared_optimizer: bool = field(default=False, metadata={"help": "One optimizer state for both kinds."})

    def __post_init__(self) -> None:
        check_settings(self, SUPPORTED)
        if self.isr_period < 1 or not 0 <= self.isr_sft_steps <= self.isr_period:
            raise UserError(
                f"isr_sft_steps={self.isr_sft_steps}, isr_period={self.isr_period}: "
                "expected 0 <= isr_sft_steps <= isr_period and isr_period >= 1"
            )
        if self.beta and self.isr_sft_steps:
            raise UserError(f"beta={self.beta}: takes the place of ISR: expected isr_sft_steps=0 beside it")
        if self.confidence not in CONFIDENCES:
            raise UserError(f"confidence={self.confidence!r}: expected one of {', '.join(CONFIDENCES)}")
        if self.full_gradient and (self.center_advantage or self.num_iterations > 1):
            raise UserError("full_gradient=True: expected center_advantage=False and num_iterations=1 beside it")
        check_range(self, ["isr_batch_size"], lambda value: value >= 1, "at least 1")
        check_range(self, ["isr_learning_rate"], lambda value: value >= 0, "at least 0")
        check_as_trl_does(self, super().__post_init__)

    def is_sft_step(self, global_step: int) -> bool:
        """Return whether the optimizer step after ``global_step`` finished ones is supervised."""
        return global_step % self.isr_period >= self.isr_period - self.isr_sft_steps


def calibration_objective(rewards: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
    """Return ``r log c + (1 - r) log(1 - c)``, Eq. 11 with its sign turned; 0 for an answer without a reward.

    Its derivative by the confidence is Eq. 12, ``(r - c) / (c (1 - c))``; none within 1e-6 of 0 and 1.

    Args:
        rewards: (B,) in [0, 1].
        confidences: (B,) in [0, 1].
    """
    confidences = confidences.clamp(EDGE, 1 - EDGE)
    known = rewards.nan_to_num(nan=0.0)
    objective = known * confidences.log() + (1 - known) * (1 - confidences).log()
    return torch.where(rewards.isnan(), torch.zeros_like(objective), objective)


def clipped_objective(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    epsilon_low: float,
    epsilon_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PPO's clipped objective of each token (the inside of Eq. 14) and where clipping stops its gradient.

    Args:
        log_ratio: (B, T), log-probability under the policy less that under the sampling policy.
        advantages: (B,), constant.
        epsilon_low: The ratio is clipped from below at ``1 - epsilon_low``.
        epsilon_high: The ratio is clipped from above at ``1 + epsilon_high``.

    Returns:
        The objective (B, T), to be maximised, and a bool (B, T).
    """
    advantages = advantages.unsqueeze(1)  # (B, 1)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages
    return torch.minimum(unclipped, clipped), clipped < unclipped


class InterleavedOptimizer(torch.optim.Optimizer):
    """The policy's optimizer and ISR's over the same parameters; ``supervised`` says which one steps.

    To the trainer this is one optimizer: the scheduler sees the policy's parameter groups, and a checkpoint holds both
    states.

    Args:
        policy: The optimizer of the policy updates.
        learning_rate: Constant rate of the supervised steps.
        shared: Let the supervised steps use ``policy``'s state too, at their own rate.
    """

    def __init__(self, policy: torch.optim.Optimizer, learning_rate: float, shared: bool) -> None:
        self.policy = policy  # no super().__init__: groups and state are the policy's, as in accelerate's wrapper
        self.learning_rate = learning_rate
        self.supervised = False
        self.isr = policy
        if not shared:
            groups = [{**group, "params": list(group["params"]), "lr": learning_rate} for group in policy.param_groups]
            self.isr = type(policy)(groups)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the policy's parameter groups."""
        return self.policy.param_groups

    @property
    def state(self) -> dict[torch.Tensor, Any]:
        """Return the policy's state."""
        return self.policy.state

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the policy's defaults."""
        return self.policy.defaults

    def step(self, closure: Any = None) -> None:
        """Step the optimizer whose turn it is."""
        if not self.supervised:
            self.policy.step(closure)
            return
        rates = [group["lr"] for group in self.isr.param_groups]
        for group in self.isr.param_groups:
            group["lr"] = self.learning_rate
        self.isr.step(closure)
        for group, rate in zip(self.isr.param_groups, rates, strict=True):
            group["lr"] = rate

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, which both share."""
        self.policy.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return both states; a shared one once."""
        states = {"policy": self.policy.state_dict()}
        return states if self.isr is self.policy else {**states, "isr": self.isr.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            UserError: If the checkpoint's optimizer states are not of this form (``isr_shared_optimizer`` or
                ``isr_sft_steps`` differ).
        """
        expected = set(self.state_dict())
        if set(state_dict) != expected:
            raise UserError(
                f"optimizer of the checkpoint: it holds {', '.join(map(str, sorted(state_dict)))}, expected "
                f"{', '.join(sorted(expected))} (were isr_sft_steps and isr_shared_optimizer the same?)"
            )
        self.policy.load_state_dict(state_dict["policy"])
        if "isr" in expected:
            self.isr.load_state_dict(state_dict["isr"])


class CGPOTrainer(ResumableTrainer, GRPOTrainer):
    """Train a language model, or one that sees, by CGPO. Takes what ``GRPOTrainer`` takes, and ``isr_dataset``.

    One optimizer step is one step of ``state.global_step``, whichever its kind. A supervised step generates nothing and
    leaves buffered answers as they are; the prompts of its place in the epoch's order are passed over unread. The ISR
    examples of a step are drawn by ``seed`` and ``global_step``, so a resumed run goes on with the same numbers.
    Rows and checkpoints are those of `maskgym.agents.text.trainer.ResumableTrainer`.

    Logged beside TRL's own metrics and the parent's response types: ``cgpo/confidence``,
    ``cgpo/advantage``, ``cgpo/advantage_abs`` (means over answers), ``clip_ratio/region_mean``, ``entropy`` and, with
    ``beta``, ``kl`` (means over tokens) and, on supervised steps, ``isr/loss``. With ``full_gradient`` the advantages
    are logged, but not used. The completions table has none: they are known only when the loss is computed.

    Args:
        model: As in ``GRPOTrainer``.
        reward_funcs: As in ``GRPOTrainer``; the weighted sum is ``r`` and should lie in [0, 1], as ``c`` does.
        args: A :class:`CGPOConfig`.
        isr_dataset: Rows with ``prompt``, ``completion`` (a string, or one assistant message in a list; the tokenizer's
            end token is appended) and, where there are images, ``images`` or ``image``.
        **kwargs: As in ``GRPOTrainer``: ``train_dataset``, ``processing_class``, ``peft_config``, ….

    Raises:
        UserError: If ``args`` is of another class, or ISR is on and has no rows, rows that lack a column, or
            DeepSpeed or FSDP.
    """

    _tag_names: ClassVar = ["trl", "cgpo"]
    _name = "CGPO"
    config_class: ClassVar = CGPOConfig
    _paper: ClassVar = {
        "title": "Saliency-R1: Incentivizing Unified Saliency Reasoning Capability in MLLM with Confidence-Guided "
        "Reinforcement Learning"
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: CGPOConfig | None = None,
        isr_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        args = CGPOConfig("CGPO") if args is None else args
        if isinstance(args, CGPOConfig) and args.isr_sft_steps:
            _check_isr(args, isr_dataset)
        self.isr_dataset = isr_dataset
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)

    # Data: ISR's own batches.

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the batches of one optimizer step: of prompts, or of ISR rows in a supervised one."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._is_sft_step():
            batches = self._isr_batches(len(batches))
        return batches, items

    def _isr_batches(self, count: int) -> list[list[dict[str, Any]]]:
        assert self.isr_dataset is not None  # checked with the arguments
        size = self.args.isr_batch_size or self.args.per_device_train_batch_size
        total: int = count * size * self.accelerator.num_processes
        generator = np.random.default_rng((self.args.seed, self.state.global_step))
        drawn = generator.choice(len(self.isr_dataset), total, replace=total > len(self.isr_dataset))
        first = count * size * self.accelerator.process_index
        return [
            read_rows(self.isr_dataset, drawn[start : start + size])
            for start in range(first, first + count * size, size)
        ]

    def _is_sft_step(self) -> bool:
        return self.args.is_sft_step(self.state.global_step)

    # One step.

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """Run one forward and backward pass; a supervised one does not count among those that use answers up."""
        supervised = self._is_sft_step()
        if self.args.isr_sft_steps:
            self._interleaved.supervised = supervised
        if supervised:
            return super(GRPOTrainer, self).training_step(model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if self.model.training and self._is_sft_step():
            return super(GRPOTrainer, self)._prepare_inputs(self._sft_inputs(generation_batch))
        return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        outputs = super()._generate_and_score_completions(inputs)
        # The parent's advantages compare an answer with itself.
        del outputs["advantages"]
        self._logs["advantages"].extend([float("nan")] * len(self._rewards_of_terms))
        self._current_metrics.pop("frac_reward_zero_std")
        return outputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if "labels" in inputs:
            return self._sft_loss(model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)  # (B, T)
        accepted = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
        log_probabilities, entropies, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: value for name, value in inputs.items() if name in accepted},
        )  # (B, T) each
        old = inputs.get("old_per_token_logps")
        # Without old ones this is the only update with these answers, and the policy is the one that sampled them.
        old = log_probabilities.detach() if old is None else old
        confidences = confidence(old, mask, self.args.confidence)  # (B,)
        advantages = self._advantages(inputs["rewards"], confidences)  # (B,)
        objective, clipped = clipped_objective(log_probabilities - old, advantages, self.epsilon_low, self.epsilon_high)
        answers = masked_mean(objective, mask)  # (B,)
        if self.args.full_gradient:
            believed = confidence(log_probabilities, mask, self.args.confidence, differentiate=True)
            answers = calibration_objective(inputs["rewards"], believed)
        if self.beta:
            log_reference_ratio = inputs["ref_per_token_logps"] - log_probabilities
            divergence = log_reference_ratio.exp() - log_reference_ratio - 1  # (B, T), at least 0
            answers = answers - self.beta * masked_mean(divergence, mask)
            self._log_tokens(mask, {"kl": divergence})
        loss = -answers.mean()
        if router_loss is not None:
            loss = loss + self.router_aux_loss_coef * router_loss
        self._log_answers(inputs["rewards"], confidences, advantages)
        self._log_tokens(mask, {"entropy": entropies, "clip_ratio/region_mean": clipped})
        return loss / self.current_gradient_accumulation_steps if self.model.training else loss

    def _advantages(self, rewards: torch.Tensor, confidences: torch.Tensor) -> torch.Tensor:
        """Return ``r - c`` (Eq. 13), centred if so set; 0 for an answer without a reward."""
        advantages = rewards - confidences
        if self.args.center_advantage:
            advantages = advantages - self.accelerator.gather(advantages).nanmean()
        return advantages.nan_to_num(nan=0.0)

    # Supervised steps.

    def _sft_inputs(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return model inputs with left-padded prompts and right-padded completions, and the latter as labels."""
        prompts = with_images(rows) if self._is_vlm else [row["prompt"] for row in rows]
        prompt_ids, _, fields = self._tokenize_prompts(prompts)
        completion_ids = [self._completion_ids(row["completion"]) for row in rows]
        ids, mask = self._padded(prompt_ids, completion_ids, self._tokenizer.pad_token_id)
        labels = pad(
            [torch.tensor(tokens) for tokens in completion_ids],
            padding_value=IGNORED_LABEL,
        )  # (B, T)
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for name, values in fields.items():
            if not isinstance(values, torch.Tensor):  # token types, one list a prompt; a completion's are 0
                values, _ = self._padded(values, [[0] * len(tokens) for tokens in completion_ids], 0)
            inputs[name] = values
        return inputs

    @staticmethod
    def _padded(
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        value: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each prompt with its completion, padded on either side with ``value``, and the mask of the rest."""
        sides = []
        for rows, side in ((prompts, "left"), (completions, "right")):
            tensors = [torch.tensor(row) for row in rows]
            ones = [torch.ones_like(tensor) for tensor in tensors]
            sides.append((pad(tensors, value, side), pad(ones, 0, side)))
        ids, mask = (torch.cat(parts, dim=1) for parts in zip(*sides, strict=True))
        return ids, mask

    def _completion_ids(self, completion: str | list[dict[str, Any]]) -> list[int]:
        if not isinstance(completion, str):
            content = completion[0]["content"]
            completion = content if isinstance(content, str) else "".join(part["text"] for part in content)
        ids = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        return [*ids, self._tokenizer.eos_token_id]

    def _sft_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the cross-entropy of the completions (Eq. 4), a mean over all devices' tokens, at temperature 1."""
        labels = inputs.pop("labels")  # (B, T)
        with self.accelerator.autocast():
            logits = model(**inputs, logits_to_keep=labels.size(1) + 1, use_cache=False).logits[:, :-1]  # (B, T, V)
        tokens = self.accelerator.reduce((labels != IGNORED_LABEL).sum().float(), reduction="mean")  # a device
        loss = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        loss = loss / tokens  # the mean of the devices' losses, as of their gradients, is then that over all tokens
        self._metrics["train"]["isr/loss"].append(self.accelerator.gather(loss.detach()).mean().item())
        return loss / self.current_gradient_accumulation_steps

    # Optimizer.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the policy's optimizer and, with ISR, the one of the supervised steps beside it."""
        optimizer = super().create_optimizer(model)
        wrapped = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper, when training is called again
        if self.args.isr_sft_steps and not isinstance(wrapped, InterleavedOptimizer):
            self._interleaved = InterleavedOptimizer(
                optimizer, self.args.isr_learning_rate, self.args.isr_shared_optimizer
            )
            self.optimizer = self._interleaved
        return self.optimizer

    # Logs.

    def _log_answers(self, rewards: torch.Tensor, confidences: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        gathered = super()._log_answers(rewards, confidences, advantages)
        _, confidences, advantages = gathered.unbind(1)
        metrics = self._current_metrics
        metrics["cgpo/confidence"].append(confidences.mean().item())
        metrics["cgpo/advantage"].append(advantages.mean().item())
        metrics["cgpo/advantage_abs"].append(advantages.abs().mean().item())
        return gathered

    def _log_tokens(self, mask: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        sums = torch.stack([mask.sum(), *((value * mask).sum() for value in values.values())])
        tokens, *totals = self.accelerator.reduce(sums.float().detach(), reduction="sum").tolist()
        for name, total in zip(values, totals, strict=True):
            self._current_metrics[name].append(total / max(tokens, 1))


def _check_isr(args: CGPOConfig, dataset: Dataset | None) -> None:
    if dataset is None or not len(dataset):
        raise UserError(f"isr_sft_steps={args.isr_sft_steps} needs an isr_dataset with rows, got {dataset!r}")
    missing = {"prompt", "completion"} - set(dataset[0])
    if missing:
        raise UserError(f"isr_dataset: rows lack {', '.join(sorted(missing))}; they have {', '.join(dataset[0])}")
    if args.deepspeed or args.fsdp:
        raise UserError("isr_sft_steps: DeepSpeed and FSDP hold one optimizer only; expected neither, or 0 steps")
