"""What our trainers of text add to TRL's: rows read when needed, an order that resumes, whole checkpoints.

`ResumableTrainer` is a mixin over TRL's trainers that sample answers, so that each algorithm's file holds its algorithm
only:

- rows of ``train_dataset`` travel as numbers and are read when answers to them are generated, and only then;
- the order of an epoch follows its number, so that a run resumed in its third epoch reads the same prompts;
- tokens that stand for images are never sampled (a sampled one crashes the next forward pass);
- a checkpoint holds what TRL's does not: the step counter, the answers that are still to be used, and what a subclass
  adds by `ResumableTrainer.extra_state`;
- each update logs the shares of the response types and the advantage that each type was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from trl import GRPOConfig
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import RepeatSampler

from maskgym.agents.text.response_types import confidence, mean_by_type, rank_normalized, response_types, shares
from maskgym.errors import UserError
from maskgym.policies.text.mllm import vision_token_ids

OnAnswer = Callable[[Mapping[str, Any], str], None]  # called with a prompt's row and the text of an answer to it

AT_LEAST_ONE = (
    "num_generations",
    "num_iterations",
    "max_completion_length",
    "per_device_train_batch_size",
)
NOT_NEGATIVE = ("learning_rate", "beta")
POSITIVE = ("epsilon", "epsilon_high", "temperature")
SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size", "generation_batch_size")


def check_settings(config: Any, fixed: dict[str, Any]) -> None:
    """Refuse a setting of a TRL config that is out of range or not the one value that an algorithm supports.

    Args:
        config: ``GRPOConfig`` or ``RLOOConfig``, before its own checks.
        fixed: Option name to the only value supported.

    Raises:
        UserError: In one line that names the setting.
    """
    name = type(config).__name__.removesuffix("Config")
    for option, expected in fixed.items():
        if getattr(config, option) != expected:
            raise UserError(f"{option}={getattr(config, option)!r}: {name} supports only {expected!r}")
    for options, holds, words in (
        (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
        (NOT_NEGATIVE, lambda value: value >= 0, "at least 0"),
        (POSITIVE, lambda value: value > 0, "more than 0"),
    ):
        check_range(config, options, holds, words)


def check_range(config: Any, options: Iterable[str], holds: Any, words: str) -> None:
    """Raise a UserError for the first of the options that is no number or does not hold; None where it may be."""
    for option in options:
        value = getattr(config, option)
        if value is None and "None" in str(config.__dataclass_fields__[option].type):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise UserError(f"{option}={value}: expected {words}")


def check_as_trl_does(config: Any, parent_checks: Callable[[], None]) -> None:
    """Run the parent's checks, without the one that refuses a single answer a prompt.

    Args:
        config: Before its checks.
        parent_checks: ``super().__post_init__``.

    Raises:
        UserError: If the parent refuses something.
    """
    alone = config.num_generations == 1
    if alone:  # twice the batch at two answers a prompt passes exactly the other checks
        config.num_generations = 2
        for name in SIZES:
            setattr(config, name, getattr(config, name) and 2 * getattr(config, name))
    try:
        parent_checks()
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    if alone:
        config.num_generations = 1
        for name in SIZES:
            setattr(config, name, getattr(config, name) // 2)


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order follows the epoch: a run resumed in its third epoch then reads the same prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of ``epoch`` (0-based; the first is TRL's)."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class Listener(StoppingCriteria):
    """Stops nothing: tells of each answer when its end has been generated, while others are still under way.

    Args:
        ends: Tokens that end an answer.
        tell: Called with the row of the batch, and the answer's tokens, its end included.
    """

    def __init__(self, ends: Sequence[int], tell: Callable[[int, list[int]], None]) -> None:
        self.ends, self.tell = torch.tensor(ends), tell
        self.over: torch.Tensor | None = None  # bool (B,)
        self.start = 0  # of the answers, behind the prompts

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return bool (B,), nothing to stop, for prompts with what was generated so far, int64 (B, L)."""
        if self.over is None:
            self.over, self.start = torch.zeros_like(input_ids[:, 0], dtype=torch.bool), input_ids.shape[1] - 1
        new = torch.isin(input_ids[:, -1], self.ends.to(input_ids.device)) & ~self.over
        self.over |= new
        for row in new.nonzero().flatten().tolist():
            self.tell(row, input_ids[row, self.start :].tolist())
        return torch.zeros_like(new)


# The mixin's parent is one of TRL's trainers, by the class that mixes it in.
if TYPE_CHECKING:
    from trl import GRPOTrainer as _Parent
else:
    _Parent = object


class ResumableTrainer(_Parent):
    """Mixin over ``GRPOTrainer`` or ``RLOOTrainer``; see the module's description.

    Logged beside TRL's own, per type of `maskgym.agents.text.response_types`: ``response_types/hrlc``, its share of
    the answers that are of any type, and ``response_advantage/hrlc``, the mean of its answers' rank-normalised
    advantages. Both are of all answers of an update, however many forward passes it takes.

    Args:
        model: As in the parent.
        reward_funcs: As in the parent.
        args: An instance of `config_class`; None takes its defaults.
        **kwargs: As in the parent: ``train_dataset``, ``processing_class``, ``peft_config``, ….

    Raises:
        UserError: If ``args`` is of another class.
    """

    config_class: ClassVar[Any] = GRPOConfig
    _name = "TRL"

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, **kwargs: Any) -> None:
        args = self.config_class(self._name) if args is None else args
        if not isinstance(args, self.config_class):
            raise UserError(f"args: got {type(args).__name__}, expected a {self.config_class.__name__}")
        self._log_probabilities: list[torch.Tensor] = []  # of answers, in the order in which models scored them
        self._answers: list[torch.Tensor] = []  # of the update under way, see `_log_answers`
        self._prompted: list[dict[str, Any]] = []  # rows that answers are being generated to
        self.on_answer: OnAnswer | None = None  # told of each answer as soon as it is whole, with its prompt's row
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        suppressed = {*self.generation_kwargs.get("suppress_tokens", ())}
        suppressed.update(vision_token_ids(self.model.config, self._tokenizer))
        if suppressed:
            self.generation_kwargs["suppress_tokens"] = sorted(suppressed)
            self.generation_config.suppress_tokens = sorted(suppressed)

    # Data: row numbers until a row is needed.

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of row numbers; what streams has none and is loaded as TRL does."""
        if not isinstance(self.train_dataset, Dataset):
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=range(len(self.train_dataset)),
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        self._log_probabilities.clear()
        self._prompted = self._read(inputs)
        outputs = super()._generate_and_score_completions(self._prompted)
        return {**outputs, "rewards": self._local(self._total_rewards(), len(inputs))}

    def _generate_single_turn(self, *arguments: Any, **settings: Any) -> Any:
        if self.on_answer is None:
            return super()._generate_single_turn(*arguments, **settings)
        model: Any = self.model
        # TRL's own call has no place for it. vLLM does not ask the model, and tells of nothing.
        criteria = StoppingCriteriaList([Listener(self.eos_token_ids, self._tell)])
        model.generate = partial(model.generate, stopping_criteria=criteria)
        try:
            return super()._generate_single_turn(*arguments, **settings)
        finally:
            del model.generate

    def _tell(self, row: int, tokens: list[int]) -> None:
        assert self.on_answer is not None
        self.on_answer(self._prompted[row], self.processing_class.batch_decode([tokens], skip_special_tokens=True)[0])

    def _read(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """Return the rows of a batch of row numbers, each read once, or the batch itself where it holds rows."""
        if isinstance(inputs[0], int):
            numbers = list(dict.fromkeys(inputs))
            rows = dict(zip(numbers, read_rows(self.train_dataset, numbers), strict=True))
            inputs = [rows[number] for number in inputs]
        return self._without_completions(inputs)

    @staticmethod
    def _without_completions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Rows may be supervised steps' too; the parent would take a completion's format for the prompt's.
        return [{name: value for name, value in row.items() if name != "completion"} for row in rows]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        self._rewards_of_terms = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_of_terms

    def _total_rewards(self) -> torch.Tensor:
        """Return the weighted sums of the last rewards, all devices' (B,); NaN for what no term could score."""
        return weighted_sums(self._rewards_of_terms, self.reward_weights)

    def _local(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """Return this device's ``count`` of all devices' values."""
        start = self.accelerator.process_index * count
        return values[start : start + count]

    @property
    def _current_metrics(self) -> Any:
        return self._metrics["train" if self.model.training else "eval"]

    # Response types.

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **settings: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*arguments, **settings)
        self._log_probabilities.append(found[0].detach())  # (B, T)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._log_probabilities.clear()
        loss = super()._compute_loss(model, inputs)
        # Without old ones this is the only update with these answers, and the policy is the one that sampled them.
        sampled = inputs.get("old_per_token_logps", self._log_probabilities[-1])
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        self._log_answers(inputs["rewards"], confidence(sampled, mask), inputs["advantages"])
        return loss

    def _log_answers(self, rewards: torch.Tensor, confidences: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """Take note of the answers of a forward pass, and log their types with an update's last one.

        Args:
            rewards: (B,), this device's; NaN for an answer without.
            confidences: (B,).
            advantages: (B,).

        Returns:
            All devices' (B, 3).
        """
        gathered = self.accelerator.gather(torch.stack([rewards, confidences, advantages], dim=1))
        self._answers.append(gathered)
        if self.accelerator.sync_gradients or not self.model.training:
            rewards, confidences, advantages = torch.cat(self._answers).unbind(1)
            self._answers.clear()
            types = response_types(rewards, confidences)
            for name, share in shares(types).items():
                self._current_metrics[f"response_types/{name}"].append(share)
            for name, mean in mean_by_type(rank_normalized(advantages), types).items():
                self._current_metrics[f"response_advantage/{name}"].append(mean)
        return gathered

    # Checkpoints.

    def extra_state(self) -> dict[str, Any]:
        """Return what a subclass wants in checkpoints: tensors, numbers, text, and lists and dictionaries of them."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`extra_state` returned."""

    def _state_path(self, folder: str) -> str:
        return os.path.join(folder, f"{self._name.lower()}_state_{self.accelerator.process_index}.pt")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)  # of several processes, the one that makes it may be behind
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        answers = None if used_up else self._buffered_inputs
        torch.save({"step": self._step, "answers": answers, **self.extra_state()}, self._state_path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The Trainer compares names with the file's literally. Models that see are saved under their hub names, which
        # differ, so it would go on with the weights it has and say so in a warning only.
        if model is not None or not isinstance(self.model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = self._state_path(checkpoint)
            if not os.path.isfile(path):
                raise UserError(f"{path}: missing, so {self._name} cannot resume from this checkpoint")
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self._step, self._buffered_inputs = state.pop("step"), state.pop("answers")
            self.load_extra_state(state)


def weighted_sums(rewards_of_terms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum (B,) of rewards (B, terms), NaN left out; NaN where there is nothing else."""
    rewards = (rewards_of_terms * weights.to(rewards_of_terms.device)).nansum(1)
    rewards[rewards_of_terms.isnan().all(1)] = torch.nan
    return rewards


def read_rows(dataset: Any, indices: Iterable[int]) -> list[dict[str, Any]]:
    """Return rows of a data set by their numbers, in one call where it takes one: a transform may be batched."""
    indices = [int(index) for index in indices]
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


def with_images(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the rows' prompts as messages that hold their images."""
    images = [[row["image"]] if row.get("image") is not None else row.get("images") for row in rows]
    return [prepare_multimodal_messages(row["prompt"], images=shown) for row, shown in zip(rows, images, strict=True)]
