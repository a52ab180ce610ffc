"""Confidence-Guided Policy Optimization (CGPO) on TRL, usable in place of ``GRPOTrainer``.

CGPO samples one answer per prompt. The advantage is the reward minus the policy's confidence, ``A = r - c``
(Saliency-R1, Eq. 13), where ``c`` is the mean probability of the sampled tokens (Eq. 10). The loss is PPO's clipped
objective (Eq. 14). Supervised steps between the updates (Interleaved SFT Regularization, ISR, Eq. 15) replace the KL
divergence from a reference model.

Choices that the paper leaves open, and departures from it:

- *Schedule.* Eq. 15 has one supervised step in every ``P``, the training details have two in every five. The settings
  ``isr_period`` and ``isr_sft_steps`` express both. The default is that of the training details.
- *Optimizer.* The supervised steps have their own AdamW state. The paper does not say.
- *Learning rate of ISR.* The paper does not state it. The default is the rate of its supervised stage, 1e-6.
- *Supervised loss.* Eq. 4 sums over tokens. The loss here is the mean over the tokens of an update, over all forward
  passes and devices, so it does not depend on how the update is cut into passes.

The confidence uses the log-probabilities of the sampling policy. If each answer serves one update only, the loss
computes them anyway, so a step costs one forward pass. Otherwise TRL computes them beforehand.

With ``use_vllm``, vLLM samples, and its probabilities differ a little from those of the policy in training. As in TRL,
log-probabilities, and so the confidence, are the policy's own, computed beforehand, and an importance weight corrects
the objective (``vllm_importance_sampling_mode``).

The ablations, which restore what CGPO removes, are in `maskgym.agents.text.cgpo_ablations`. Several answers per prompt
(``num_generations``) need no code of their own.

References:
    Li et al., Saliency-R1: Incentivizing Unified Saliency Reasoning Capability in MLLM with Confidence-Guided
    Reinforcement Learning, Eq. 4 and 10 to 15 and Section 4.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trl_utils
from trl.trainer.utils import add_fused_lm_head, pad

from maskgym.agents.text.response_types import confidence, masked_mean
from maskgym.agents.text.reward_function import message_text
from maskgym.agents.text.trainer import (
    ResumableTrainer,
    Row,
    TextConfig,
    check_range,
    read_rows,
    with_images,
)
from maskgym.aliases import JsonObject, Settings
from maskgym.errors import UserError
from maskgym.policies.text.mllm import prefilled

IGNORED_LABEL = -100
# Words of a tile of TRL's head in supervised steps. TRL's own 32,768 take 4 GiB without Triton, which keeps about eight
# copies of a tile of 4,096 tokens in float32.
TILE_WORDS = 8192
# What TRL's forward pass takes of a batch, such as pixels.
MODEL_INPUTS = frozenset(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
# Options of GRPOConfig that the loss does not implement, with the only supported value.
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
}


@dataclass
class CGPOConfig(TextConfig, GRPOConfig):
    """Settings of :class:`CGPOTrainer`: those of ``GRPOConfig``, with the paper's defaults, and the ones below.

    Options of ``GRPOConfig`` that Eq. 14 does not contain are refused.

    Args:
        num_generations: Answers per prompt; the paper samples one.
        isr_period: Length ``P`` of the cycle, in optimizer steps.
        isr_sft_steps: Number of supervised steps at the end of each cycle: 0 (no ISR) to ``isr_period`` (no RL).
        isr_learning_rate: Constant learning rate of the supervised steps; the scheduler applies to the updates only.
        isr_batch_size: Examples per device and forward pass in a supervised step, which has
            ``gradient_accumulation_steps`` passes; ``None`` means ``per_device_train_batch_size``.

    Raises:
        UserError: If a value is out of range, or an option of ``GRPOConfig`` is not supported.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Answers per prompt."})
    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then over answers (Eq. 14)."})
    scale_rewards: str = field(default="none", metadata={"help": "No effect, because CGPO has no groups."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Supports only False."})
    isr_period: int = field(default=5, metadata={"help": "Optimizer steps per cycle of RL and SFT."})
    isr_sft_steps: int = field(default=2, metadata={"help": "Supervised steps at the end of each cycle."})
    isr_learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate of the supervised steps."})
    isr_batch_size: int | None = field(default=None, metadata={"help": "Examples per device and supervised pass."})

    supported: ClassVar[Settings] = {**SUPPORTED, "beta": 0.0}

    def check(self) -> None:
        """Check the schedule and the settings of ISR."""
        if self.isr_period < 1 or not 0 <= self.isr_sft_steps <= self.isr_period:
            raise UserError(
                f"isr_sft_steps={self.isr_sft_steps}, isr_period={self.isr_period}: "
                "expected 0 <= isr_sft_steps <= isr_period and isr_period >= 1"
            )
        if self.isr_sft_steps and (self.deepspeed or self.fsdp):
            key = "deepspeed" if self.deepspeed else "fsdp"
            raise UserError(
                f"{key}: supervised steps, those of sft and of cgpo with isr_sft_steps={self.isr_sft_steps}, have an "
                "optimizer of their own, which DeepSpeed and FSDP do not shard: expected neither, or adapters "
                "(policy.lora_rank), or isr_sft_steps=0"
            )
        check_range(self, ["isr_batch_size"], lambda value: value >= 1, "at least 1")
        check_range(self, ["isr_learning_rate"], lambda value: value >= 0, "at least 0")

    def is_sft_step(self, global_step: int) -> bool:
        """Check whether the optimizer step after ``global_step`` finished ones is supervised."""
        return global_step % self.isr_period >= self.isr_period - self.isr_sft_steps


@dataclass
class Answers:
    """Answers of one forward pass, B on this device and up to T tokens long.

    Attributes:
        rewards: float (B,); NaN if an answer could not be scored.
        mask: (B, T), 1 on the answers' tokens, end tokens included, except on what tools wrote.
        log_probabilities: float (B, T), under the policy that learns, with gradient.
        old: float (B, T), log-probabilities under the policy that sampled.
        reference: float (B, T), log-probabilities under the reference model, if there is one.
        entropies: float (B, T), entropies of the policy that learns.
        importance: float (B, T) or (B, 1), importance weights, of ``old`` over vLLM's sampling probabilities as TRL
            truncates or masks them; None if the policy itself sampled.
    """

    rewards: Tensor
    mask: Tensor
    log_probabilities: Tensor
    old: Tensor
    reference: Tensor | None
    entropies: Tensor
    importance: Tensor | None = None

    def weighted(self, objective: Tensor) -> Tensor:
        """Multiply the objective of each token (B, T) by the importance weights, if there are any."""
        return objective if self.importance is None else objective * self.importance


def clipped_objective(
    log_ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor]:
    """Compute PPO's clipped objective of each token (the inside of Eq. 14), and where clipping stops its gradient.

    Args:
        log_ratio: (B, T), log-probability under the policy minus that under the sampling policy.
        advantages: (B,), constant.
        epsilon_low: The lower clip limit of the ratio is ``1 - epsilon_low``.
        epsilon_high: The upper clip limit of the ratio is ``1 + epsilon_high``.

    Returns:
        The objective (B, T), to be maximised, and a bool (B, T).
    """
    advantages = advantages.unsqueeze(1)  # (B, 1)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages
    return torch.minimum(unclipped, clipped), clipped < unclipped


class InterleavedOptimizer(torch.optim.Optimizer):
    """Optimizers of the policy and of ISR over the same parameters; ``supervised`` selects which one steps.

    The trainer sees one optimizer: the scheduler receives the policy's parameter groups, and a checkpoint holds both
    states.

    Args:
        policy: Optimizer of the policy updates.
        learning_rate: Constant learning rate of the supervised steps.
    """

    def __init__(self, policy: torch.optim.Optimizer, learning_rate: float) -> None:
        # No super().__init__: groups and state are the policy's, as in accelerate's wrapper.
        self.policy, self.learning_rate, self.supervised = policy, learning_rate, False
        self.isr = self._make_isr()

    def _make_isr(self) -> torch.optim.Optimizer:
        """Create the optimizer of the supervised steps."""
        groups = [{**group, "params": list(group["params"])} for group in self.policy.param_groups]
        return type(self.policy)(groups)

    @property
    def states(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers whose states a checkpoint holds, by name."""
        return {"policy": self.policy, "isr": self.isr}

    @property
    def param_groups(self) -> list[Settings]:
        """Parameter groups of the policy's optimizer."""
        return self.policy.param_groups

    @property
    def state(self) -> dict[Tensor, Settings]:
        """State of the policy's optimizer."""
        return self.policy.state

    @property
    def defaults(self) -> Settings:
        """Defaults of the policy's optimizer."""
        return self.policy.defaults

    def step(self, closure: None = None) -> None:
        """Step the optimizer whose turn it is."""
        if not self.supervised:
            self.policy.step(closure)
            return
        for group in self.isr.param_groups:
            group["lr"] = self.learning_rate
        self.isr.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, which both optimizers use."""
        self.policy.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, JsonObject]:
        """Collect the state of each optimizer."""
        return {name: optimizer.state_dict() for name, optimizer in self.states.items()}

    def load_state_dict(self, state_dict: dict[str, JsonObject]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            UserError: If the checkpoint holds other optimizers (``isr_shared_optimizer`` or ``isr_sft_steps`` differ).
        """
        if set(state_dict) != set(self.states):
            raise UserError(
                f"optimizer of the checkpoint: it holds {', '.join(map(str, sorted(state_dict)))}, expected "
                f"{', '.join(sorted(self.states))} (were isr_sft_steps and isr_shared_optimizer the same?)"
            )
        for name, optimizer in self.states.items():
            optimizer.load_state_dict(state_dict[name])


class CGPOTrainer(ResumableTrainer, GRPOTrainer):
    """Train a language model, or a vision-language model, by CGPO.

    An optimizer step of either kind counts as one step of ``state.global_step``. A supervised step generates nothing,
    keeps buffered answers, and skips the prompts of its place in the epoch's order without reading them. The ISR
    examples of a step depend only on ``seed`` and ``global_step``, so a resumed run continues with the same numbers.
    Rows and checkpoints are those of `maskgym.agents.text.trainer.ResumableTrainer`.

    Further logged scalars: ``cgpo/confidence``, ``cgpo/advantage`` and ``cgpo/advantage_abs`` (means over answers),
    ``clip_ratio/region_mean`` and ``entropy`` (means over tokens), and ``isr/loss`` on supervised steps. The table of
    completions has no advantages, because only the loss computes them.

    Args:
        isr_dataset: Rows with ``prompt``, ``completion`` (a string, or one assistant message in a list; the tokenizer's
            end token is appended) and, if there are images, ``images`` or ``image``.
        *arguments: Arguments of ``GRPOTrainer``. The weighted sum of ``reward_funcs`` is ``r`` and should lie in
            [0, 1], as ``c`` does.
        **kwargs: Further arguments of ``GRPOTrainer``: ``args``, a :class:`CGPOConfig`, ``train_dataset``,
            ``processing_class``, ``peft_config``, ….

    Raises:
        UserError: If ``args`` is of another class, or if ISR is on without rows, or with rows that lack a column.
    """

    _tag_names: ClassVar = ["trl", "cgpo"]
    _name = "CGPO"
    config_class: ClassVar[type[CGPOConfig]] = CGPOConfig
    _paper: ClassVar = {
        "title": "Saliency-R1: Incentivizing Unified Saliency Reasoning Capability in MLLM with Confidence-Guided "
        "Reinforcement Learning"
    }

    def __init__(self, *arguments: Any, isr_dataset: Dataset | None = None, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.isr_dataset = isr_dataset
        self._prefilled = prefilled(self.processing_class)
        if self.args.isr_sft_steps:
            self._check_isr()
            self._add_supervised_head()

    # Policy updates.

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        if "labels" in inputs:
            return self._sft_loss(model, inputs)
        answers, router_loss = self._score(model, inputs)
        loss = self.policy_loss(answers)
        if router_loss is not None:
            loss = loss + self.router_aux_loss_coef * router_loss
        return loss / self.current_gradient_accumulation_steps if self.model.training else loss

    def policy_loss(self, answers: Answers) -> Tensor:
        """Compute the loss of the answers of one forward pass (Eq. 10, 13 and 14)."""
        confidences = confidence(answers.old, answers.mask)  # Eq. 10, (B,)
        advantages = (answers.rewards - confidences).nan_to_num(nan=0.0)  # Eq. 13, (B,); 0 for an answer without reward
        log_ratio = answers.log_probabilities - answers.old  # (B, T)
        objective, clipped = clipped_objective(log_ratio, advantages, self.epsilon_low, self.epsilon_high)  # (B, T)
        self._log_update(answers, confidences, advantages, clipped)
        return -masked_mean(answers.weighted(objective), answers.mask).mean()  # Eq. 14

    def _score(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Answers, Tensor | None]:
        """Run the forward pass; return the answers, and the loss of the router in a mixture of experts."""
        log_probabilities, entropies, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: value for name, value in inputs.items() if name in MODEL_INPUTS},
        )  # (B, T) each
        answers = Answers(
            rewards=inputs["rewards"],
            mask=inputs["completion_mask"] * inputs.get("tool_mask", 1),
            log_probabilities=log_probabilities,
            # Without old log-probabilities, this is the answers' only update, so the sampling policy is this one.
            old=inputs.get("old_per_token_logps", log_probabilities.detach()),
            reference=inputs.get("ref_per_token_logps"),
            entropies=entropies,
            importance=inputs.get("importance_sampling_ratio"),
        )
        return answers, router_loss

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        outputs = super()._generate_and_score_completions(inputs)
        # With one answer per prompt, the parent's advantages compare an answer with itself.
        del outputs["advantages"]
        self._logs["advantages"].extend([float("nan")] * len(self._rewards_of_terms))
        self._current_metrics.pop("frac_reward_zero_std")
        return outputs

    # Supervised steps.

    def _is_sft_step(self) -> bool:
        return self.args.is_sft_step(self.state.global_step)

    def training_step(self, model: nn.Module, inputs: list[Row], num_items_in_batch: Tensor | None) -> Tensor:
        """Run one forward and backward pass; a supervised pass does not count as a use of buffered answers."""
        supervised = self._is_sft_step()
        if self.args.isr_sft_steps:
            self._interleaved.supervised = supervised
        if supervised:
            return super(GRPOTrainer, self).training_step(model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[int]], num_batches: int, device: torch.device
    ) -> tuple[list[list[int]] | list[list[Row]], Tensor | None]:
        """Collect the batches of one optimizer step: numbers of prompts, or ISR rows in a supervised step."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not self._is_sft_step():
            return batches, items
        examples = self._isr_batches(len(batches))
        self._isr_tokens = self._count_tokens(examples)
        return examples, items

    def _check_isr(self) -> None:
        """Raise a UserError if supervised steps cannot run with these settings and examples."""
        args, dataset = self.args, self.isr_dataset
        if dataset is None or not len(dataset):
            raise UserError(f"isr_sft_steps={args.isr_sft_steps} needs an isr_dataset with rows, got {dataset!r}")
        missing = {"prompt", "completion"} - set(dataset[0])
        if missing:
            raise UserError(f"isr_dataset: rows lack {', '.join(sorted(missing))}; they have {', '.join(dataset[0])}")

    def _isr_batches(self, count: int) -> list[list[Row]]:
        """Draw this device's examples of a supervised step with ``count`` forward passes."""
        assert self.isr_dataset is not None  # The constructor checks it.
        size = self.args.isr_batch_size or self.args.per_device_train_batch_size
        total: int = count * size * self.accelerator.num_processes
        generator = np.random.default_rng((self.args.seed, self.state.global_step))
        drawn = generator.choice(len(self.isr_dataset), total, replace=total > len(self.isr_dataset))
        first = count * size * self.accelerator.process_index
        return [
            read_rows(self.isr_dataset, drawn[start : start + size])
            for start in range(first, first + count * size, size)
        ]

    def _prepare_inputs(self, generation_batch: list[Row]) -> dict[str, Tensor]:
        if self.model.training and self._is_sft_step():
            return super(GRPOTrainer, self)._prepare_inputs(self._sft_inputs(generation_batch))
        return super()._prepare_inputs(generation_batch)

    def _sft_inputs(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Build model inputs: left-padded prompts, right-padded completions, and the completions as labels."""
        prompts = with_images(rows) if self._is_vlm else [row["prompt"] for row in rows]
        prompt_ids, _, fields = self._tokenize_prompts(prompts)
        completion_ids = [self._completion_ids(row["completion"]) for row in rows]
        ids, mask = self._padded(prompt_ids, completion_ids, self._tokenizer.pad_token_id)
        ignored = [[IGNORED_LABEL] * len(tokens) for tokens in prompt_ids]
        labels, _ = self._padded(ignored, completion_ids, IGNORED_LABEL)  # (B, L + T), as the ids
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for name, values in fields.items():
            if not isinstance(values, Tensor):  # Token types are lists, one per prompt; a completion's types are 0.
                values, _ = self._padded(values, [[0] * len(tokens) for tokens in completion_ids], 0)
            inputs[name] = values
        return inputs

    @staticmethod
    def _padded(
        prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], value: int
    ) -> tuple[Tensor, Tensor]:
        """Join each prompt with its completion, padded on both sides with ``value``; return that and its mask."""
        sides = []
        for rows, side in ((prompts, "left"), (completions, "right")):
            tensors = [torch.tensor(row) for row in rows]
            ones = [torch.ones_like(tensor) for tensor in tensors]
            sides.append((pad(tensors, value, side), pad(ones, 0, side)))
        ids, mask = (torch.cat(parts, dim=1) for parts in zip(*sides, strict=True))
        return ids, mask

    def _completion_ids(self, completion: str | list[JsonObject] | None) -> list[int]:
        if completion is None:
            raise UserError("isr_dataset: a row has no completion to imitate: expected one in each row")
        text = message_text(completion).removeprefix(self._prefilled.strip())  # The template has written it.
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self._tokenizer.eos_token_id]

    def _count_tokens(self, batches: list[list[Row]]) -> Tensor:
        """Count the tokens that an update imitates, end tokens included: the mean over devices, ()."""
        count = sum(len(self._completion_ids(row["completion"])) for batch in batches for row in batch)
        return self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), reduction="mean")

    def _sft_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Compute this pass's share of the cross-entropy of an update's completions (Eq. 4), at temperature 1.

        The shares of all passes add up to the mean over the tokens of the update. TRL's head computes the
        log-probabilities in tiles, so that the logits (B, L, V) are never in memory as a whole.
        """
        with self.accelerator.autocast(), self._supervised_head():
            output = model(**inputs, fused_lm_head=True)
        # Devices average their losses and gradients, so this quotient averages to the mean over all tokens.
        loss = -output.log_probs.sum() / self._isr_tokens
        share = self.accelerator.gather(loss.detach()).mean().item()
        # The log averages over passes, whose losses are to be added.
        self._metrics["train"]["isr/loss"].append(share * self.current_gradient_accumulation_steps)
        return loss

    def _add_supervised_head(self) -> None:
        """Build a forward pass with TRL's head at temperature 1; in policy updates it has the sampling temperature."""
        model = self._unwrapped_model
        sampling = model.forward
        add_fused_lm_head(model, temperature=1.0, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        self._supervised_forward, model.forward = model.forward, sampling

    @contextmanager
    def _supervised_head(self) -> Iterator[None]:
        """Let the model score tokens at temperature 1, in tiles of `TILE_WORDS`; the backward pass takes the same."""
        model = self._unwrapped_model
        sampling, model.forward = model.forward, self._supervised_forward
        width, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE, TILE_WORDS
        try:
            yield
        finally:
            model.forward = sampling
            trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = width

    @property
    def _unwrapped_model(self) -> PreTrainedModel:
        """The model below the adapters, if there are any; TRL's head is part of its forward pass."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the policy's optimizer and, with ISR, that of the supervised steps."""
        optimizer = super().create_optimizer(model)
        # A second call of `train` finds the optimizer that accelerate has wrapped.
        wrapped = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        if self.args.isr_sft_steps and not isinstance(wrapped, InterleavedOptimizer):
            self._interleaved = self.optimizer = self._interleave(optimizer)
        return self.optimizer

    def _interleave(self, optimizer: torch.optim.Optimizer) -> InterleavedOptimizer:
        """Add the optimizer of the supervised steps to the policy's."""
        return InterleavedOptimizer(optimizer, self.args.isr_learning_rate)

    # Logs.

    def _log_update(self, answers: Answers, confidences: Tensor, advantages: Tensor, clipped: Tensor) -> None:
        """Log confidences and advantages (B,), and where clipping stops gradients, bool (B, T)."""
        self._log_answers(answers.rewards, confidences, advantages)
        self._log_tokens(answers.mask, {"entropy": answers.entropies, "clip_ratio/region_mean": clipped})

    def _log_answers(self, rewards: Tensor, confidences: Tensor, advantages: Tensor) -> Tensor:
        gathered = super()._log_answers(rewards, confidences, advantages)
        _, confidences, advantages = gathered.unbind(1)
        metrics = self._current_metrics
        metrics["cgpo/confidence"].append(confidences.mean().item())
        metrics["cgpo/advantage"].append(advantages.mean().item())
        metrics["cgpo/advantage_abs"].append(advantages.abs().mean().item())
        return gathered

    def _log_tokens(self, mask: Tensor, values: dict[str, Tensor]) -> None:
        """Log means over the tokens (B, T) of all devices' answers."""
        sums = torch.stack([mask.sum(), *((value * mask).sum() for value in values.values())])
        tokens, *totals = self.accelerator.reduce(sums.float().detach(), reduction="sum").tolist()
        for name, total in zip(values, totals, strict=True):
            self._current_metrics[name].append(total / max(tokens, 1))
