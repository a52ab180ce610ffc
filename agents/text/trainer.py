"""Extend TRL's trainers: rows are read when needed, the order resumes, and checkpoints are complete.

`ResumableTrainer` is a mixin over TRL's trainers that sample answers, so that the file of an algorithm holds only the
algorithm:

- Rows of ``train_dataset`` are handled as numbers and read only when answers to them are generated.
- The order of an epoch depends on its number, so that a run resumed in its third epoch reads the same prompts.
- Tokens that stand for images are never sampled, because a sampled one crashes the next forward pass.
- Of the decoding settings of a checkpoint only its end tokens count; ``generation_kwargs`` names others.
- A frozen vision encoder runs without autograd.
- A checkpoint also holds the step counter, the answers that are still to be used, and what a subclass adds in
  `ResumableTrainer.extra_state`. Its manifest (`maskgym.manifest`) is written last and checked before it is resumed.
- Each update logs the shares of the response types and the mean advantage of each type.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.grpo_trainer import RewardFunc
from trl.trainer.utils import RepeatSampler

from maskgym import manifest
from maskgym.agents.common.checkpoints import read_checkpoint, write_checkpoint
from maskgym.agents.text.response_types import confidence, mean_by_type, rank_normalized, response_types, shares
from maskgym.agents.text.reward_function import Completion
from maskgym.aliases import JsonObject, Settings
from maskgym.errors import UserError, one_line
from maskgym.policies.text.mllm import detach_frozen_vision, neutralise_decoding, vision_token_ids
from maskgym.segmenters.weights import refuse_mismatch

Row = dict[str, Any]  # columns of a data set's row: prompt, image or images, completion, task, index
OnAnswer = Callable[[Row, str], None]  # receives the row of a prompt and the text of an answer to it

AT_LEAST_ONE = ("num_generations", "num_iterations", "max_completion_length", "per_device_train_batch_size")
NOT_NEGATIVE = ("learning_rate", "beta")
POSITIVE = ("epsilon", "epsilon_high", "temperature")
SIZES = ("per_device_train_batch_size", "per_device_eval_batch_size", "generation_batch_size")


def check_range(config: TextConfig, options: Iterable[str], holds: Callable[[float], bool], words: str) -> None:
    """Raise a UserError for the first option that is not a number in its range; an optional one may be None."""
    for option in options:
        value = getattr(config, option)
        if value is None and "None" in str(config.__dataclass_fields__[option].type):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise UserError(f"{option}={value}: expected {words}")


# A class that uses a mixin below also inherits from one of TRL's classes.
if TYPE_CHECKING:
    from trl import GRPOConfig as _Config
    from trl import GRPOTrainer as _Trainer
else:
    _Config = _Trainer = object


@dataclass
class TextConfig(_Config):
    """Mixin over ``GRPOConfig`` or ``RLOOConfig``: common defaults, and errors of one line.

    Attributes:
        supported: Options of TRL with the only value that the algorithm supports.

    Raises:
        UserError: If a setting is out of range or not supported; the message names it.
    """

    num_generations: int | None = field(default=None, metadata={"help": "Answers per prompt."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of the policy updates."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta, as in Saliency-R1."})

    supported: ClassVar[Settings] = {}

    def __post_init__(self) -> None:
        name = type(self).__name__.removesuffix("Config")
        for option, expected in self.supported.items():
            if getattr(self, option) != expected:
                raise UserError(f"{option}={getattr(self, option)!r}: {name} supports only {expected!r}")
        check_range(self, AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
        check_range(self, NOT_NEGATIVE, lambda value: value >= 0, "at least 0")
        check_range(self, POSITIVE, lambda value: value > 0, "more than 0")
        self.check()
        # GRPO compares answers to one prompt, so TRL refuses a single one. CGPO and SPO compare nothing. They pass the
        # checks with two answers per prompt and twice the batch sizes, which satisfies exactly the other conditions.
        single = self.num_generations == 1
        if single:
            self.num_generations = 2
            for name in SIZES:
                setattr(self, name, getattr(self, name) and 2 * getattr(self, name))
        try:
            super().__post_init__()  # It also computes the batch sizes.
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
        if single:
            self.num_generations = 1
            for name in SIZES:
                setattr(self, name, getattr(self, name) // 2)

    def check(self) -> None:
        """Check the settings that TRL does not have."""


class EpochSampler(RepeatSampler):
    """Sampler of TRL whose order depends on the epoch, so that a run resumed in its third epoch reads its prompts."""

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of an epoch, counted from 0; the first order is TRL's."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


class AnswerEndCallback(StoppingCriteria):
    """Never stops generation; reports each finished answer while others are still being generated.

    Args:
        ends: Tokens that end an answer.
        report: Receiver of the row in the batch and the answer's tokens, its end token included.
    """

    def __init__(self, ends: Sequence[int], report: Callable[[int, list[int]], None]) -> None:
        self.ends, self.report = torch.tensor(ends), report
        self.finished: set[int] = set()
        self.start: int | None = None  # number of prompt tokens

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Report new ends; return bool (B,), always False, for prompts with generated tokens, int64 (B, L)."""
        if self.start is None:
            self.start = input_ids.shape[1] - 1
        ended = torch.isin(input_ids[:, -1], self.ends.to(input_ids.device))
        for row in ended.nonzero().flatten().tolist():
            if row not in self.finished:  # A finished answer is padded, perhaps with its end token.
                self.finished.add(row)
                self.report(row, input_ids[row, self.start :].tolist())
        return torch.zeros_like(ended)


class ResumableTrainer(_Trainer):
    """Mixin over ``GRPOTrainer`` or ``RLOOTrainer``; see the module's description.

    Further logged scalars, per type of `maskgym.agents.text.response_types`: ``response_types/hrlc``, the share of the
    type among answers of any type, and ``response_advantage/hrlc``, the mean rank-normalised advantage of its answers.
    Both cover all answers of an update, over all its forward passes.

    Args:
        model: As in the parent.
        reward_funcs: As in the parent.
        args: An instance of `config_class`; None means its defaults.
        **kwargs: Further arguments of the parent: ``train_dataset``, ``processing_class``, ``peft_config``, ….

    Raises:
        UserError: If ``args`` is of another class.
    """

    config_class: ClassVar[type[TextConfig]] = TextConfig
    _name = "TRL"

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: TextConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = self.config_class(self._name) if args is None else args
        if not isinstance(args, self.config_class):
            raise UserError(f"args: got {type(args).__name__}, expected a {self.config_class.__name__}")
        self._log_probabilities: list[Tensor] = []  # of the current answers, in the order in which models scored them
        self._answers: list[Tensor] = []  # of the current update, see `_log_answers`
        self._prompted: list[Row] = []  # rows that answers are being generated to
        self.on_answer: OnAnswer | None = None  # receives each finished answer, with the row of its prompt
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, **kwargs)
        neutralise_decoding(self.model, self._tokenizer)
        detach_frozen_vision(self.model)
        self._never_sample(vision_token_ids(self.model.config, self._tokenizer))

    def _never_sample(self, tokens: Sequence[int]) -> None:
        """Suppress tokens in generation, beside those that the settings suppress."""
        if self.use_vllm:  # vLLM has no list of such tokens, but a bias of the logits, whose least value is -100
            chosen = self.vllm_generation.generation_kwargs
            bias = {**chosen.get("logit_bias", {}), **dict.fromkeys(tokens, -100.0)}
            self.vllm_generation.generation_kwargs = {**chosen, "logit_bias": bias}
            return
        suppressed = sorted({*self.generation_kwargs.get("suppress_tokens", ()), *tokens})
        if suppressed:
            self.generation_kwargs["suppress_tokens"] = suppressed
            self.generation_config.suppress_tokens = suppressed

    # Data: numbers of rows, until a row is needed.

    def get_train_dataloader(self) -> DataLoader:
        """Build a loader of row numbers; a streamed data set has none and is loaded as in TRL."""
        if not isinstance(self.train_dataset, Dataset):
            return super().get_train_dataloader()
        return self._get_dataloader(
            dataset=range(len(self.train_dataset)),
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Dataset | range | None = None) -> EpochSampler:
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        self._log_probabilities.clear()
        self._prompted = self._read(inputs)
        outputs = super()._generate_and_score_completions(self._prompted)
        return {**outputs, "rewards": self._local(self._total_rewards(), len(inputs))}

    def _tokenize_prompts(self, prompts: list) -> tuple:
        try:
            return super()._tokenize_prompts(prompts)
        except ValueError as error:  # of the processor: Qwen's refuses photos that are 200 times as long as wide
            parts = [part for prompt in prompts for message in prompt for part in message["content"]]
            sizes = [part["image"].size for part in parts if isinstance(part, dict) and part.get("type") == "image"]
            if not sizes:  # nothing was shown, so the photos are not the cause
                raise
            told = ", ".join(f"{width}x{height}" for width, height in dict.fromkeys(sizes))
            raise UserError(f"the policy's processor refuses photos of {told} pixels: {one_line(error)}") from error

    def _generate_single_turn(self, *arguments: Any, **settings: Any) -> tuple:
        if self.on_answer is None:
            return super()._generate_single_turn(*arguments, **settings)
        # TRL's call of `generate` has no argument for the callback. vLLM does not call the model and reports nothing.
        model = self.model
        criteria = StoppingCriteriaList([AnswerEndCallback(self.eos_token_ids, self._report)])
        model.generate = partial(model.generate, stopping_criteria=criteria)
        try:
            return super()._generate_single_turn(*arguments, **settings)
        finally:
            del model.generate

    def _report(self, row: int, tokens: list[int]) -> None:
        assert self.on_answer is not None
        self.on_answer(self._prompted[row], self.processing_class.batch_decode([tokens], skip_special_tokens=True)[0])

    def _read(self, inputs: Sequence[Row | int]) -> list[Row]:
        """Read the rows of a batch of row numbers, each row once; a batch of rows stays as it is."""
        numbers = list(dict.fromkeys(row for row in inputs if isinstance(row, int)))
        rows = dict(zip(numbers, read_rows(self.train_dataset, numbers), strict=True)) if numbers else {}
        return without_completions([rows[row] if isinstance(row, int) else row for row in inputs])

    def _calculate_rewards(
        self,
        inputs: list[Row],
        prompts: list,
        completions: list[Completion],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        self._rewards_of_terms = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards_of_terms

    def _total_rewards(self) -> Tensor:
        """Compute the weighted sums of the last rewards, all devices' (B,); NaN if no term could score an answer."""
        return weighted_sums(self._rewards_of_terms, self.reward_weights)

    def _local(self, values: Tensor, count: int) -> Tensor:
        """Select this device's ``count`` of all devices' values."""
        start = self.accelerator.process_index * count
        return values[start : start + count]

    @property
    def _current_metrics(self) -> dict[str, list[float]]:
        return self._metrics["train" if self.model.training else "eval"]

    # Response types.

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **settings: Any) -> tuple:
        found = super()._get_per_token_logps_and_entropies(*arguments, **settings)
        self._log_probabilities.append(found[0].detach())  # (B, T)
        return found

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        self._log_probabilities.clear()
        loss = super()._compute_loss(model, inputs)
        # Without old log-probabilities, this is the answers' only update, so the sampling policy is this one.
        sampled = inputs.get("old_per_token_logps", self._log_probabilities[-1])
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        self._log_answers(inputs["rewards"], confidence(sampled, mask), inputs["advantages"])
        return loss

    def _log_answers(self, rewards: Tensor, confidences: Tensor, advantages: Tensor) -> Tensor:
        """Collect the answers of a forward pass, and log their types with the update's last pass.

        Args:
            rewards: This device's (B,); NaN for an answer without a reward.
            confidences: (B,).
            advantages: (B,).

        Returns:
            The three columns of all devices' answers, (B, 3).
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

    def extra_state(self) -> Settings:
        """Collect what a subclass adds to checkpoints: tensors, numbers, text, and lists and dictionaries of them."""
        return {}

    def load_extra_state(self, state: Settings) -> None:
        """Load what :meth:`extra_state` returned."""

    def _state_path(self, folder: str) -> Path:
        return Path(folder) / f"{self._name.lower()}_state_{self.accelerator.process_index}.pt"

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # Each process writes files of its own.
        if self.args.should_save:
            step = self.state.global_step
            manifest.write(Path(self._get_output_dir(trial)) / checkpoint_name(step), step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        answers = None if used_up else self._buffered_inputs
        state = {"step": self._step, "answers": answers, **self.extra_state()}
        write_checkpoint(self._state_path(output_dir), state)  # It makes the folder, which may not be there yet.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        manifest.check(folder, checkpoint_step(folder))
        _check_state(folder)
        # The Trainer matches names in the file literally. Vision-language models are saved under their hub names, which
        # differ, so it would keep the current weights with only a warning.
        if model is not None or not isinstance(self.model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved, report = type(self.model).from_pretrained(
            folder, config=self.model.config, dtype=self.model.dtype, output_loading_info=True, trust_remote_code=False
        )
        refuse_mismatch(folder, missing=sorted(report["missing_keys"]), unexpected=sorted(report["unexpected_keys"]))
        self.model.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "optimizer or scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = dict(read_checkpoint(self._state_path(checkpoint), self.accelerator.device))
            self._step, self._buffered_inputs = state.pop("step"), state.pop("answers")
            self.load_extra_state(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint, "states of random generators"):
            super()._load_rng_state(checkpoint)


@contextmanager
def _readable(checkpoint: str | None, what: str) -> Iterator[None]:
    """Turn PyTorch's refusal of a file that holds more than tensors into a UserError; it advises to allow code."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{checkpoint}: its {what} cannot be read: damaged, or more than tensors and numbers"
        ) from error


def _check_state(folder: Path) -> None:
    """Raise a UserError if the state of the trainer in a checkpoint is missing, or of another step than its folder."""
    file, step = folder / "trainer_state.json", checkpoint_step(folder)
    try:
        found = json.loads(file.read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the state of a trainer") from error
    if step is not None and found != step:
        raise UserError(f"{file}: of step {found}: expected step {step}, as the folder's name says")


def checkpoint_name(step: int) -> str:
    """Name the folder of a checkpoint, as transformers' Trainer does."""
    return f"checkpoint-{step}"


def checkpoint_step(folder: Path) -> int | None:
    """Read the number of finished steps from the name of a checkpoint's folder; None if it has another name."""
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() and folder.name == checkpoint_name(int(number)) else None


def weighted_sums(rewards_of_terms: Tensor, weights: Tensor) -> Tensor:
    """Sum rewards (B, terms) with their weights, except NaN, to (B,); NaN if all terms are NaN."""
    rewards = (rewards_of_terms * weights.to(rewards_of_terms.device)).nansum(1)
    rewards[rewards_of_terms.isnan().all(1)] = torch.nan
    return rewards


def read_rows(dataset: Dataset | Sequence[Row], indices: Iterable[int]) -> list[Row]:
    """Read rows of a data set by their numbers, in one call if possible, because a transform may be batched."""
    indices = [int(index) for index in indices]
    return dataset.__getitems__(indices) if isinstance(dataset, Dataset) else [dataset[index] for index in indices]


def without_completions(rows: Sequence[Row]) -> list[Row]:
    """Remove completions, which serve supervised steps only; TRL would take their format for the prompt's."""
    return [{name: value for name, value in row.items() if name != "completion"} for row in rows]


def with_images(rows: Sequence[Row]) -> list[list[JsonObject]]:
    """Build the rows' prompts as messages that hold their images."""
    images = [[row["image"]] if row.get("image") is not None else row.get("images") for row in rows]
    return [prepare_multimodal_messages(row["prompt"], images=shown) for row, shown in zip(rows, images, strict=True)]
