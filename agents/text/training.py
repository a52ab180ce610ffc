"""Training of language agents on TRL's trainers: settings, data sets, callbacks and checkpoints.

TRL takes a data set of prompts and a reward function, and `maskgym.agents.text.reward_function` builds both from
environments. This module imports TRL, which takes seconds; agents import it when they train.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from gymnasium.vector import VectorEnv
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, RLOOConfig

from maskgym import manifest
from maskgym.agents.base import BudgetSpent, OnLog, Scorer
from maskgym.agents.common import parallel
from maskgym.agents.text.cgpo import CGPOConfig, CGPOTrainer
from maskgym.agents.text.cgpo_ablations import ABLATIONS, AblatedCGPOConfig, AblatedCGPOTrainer
from maskgym.agents.text.dapo import DAPOConfig, DAPOTrainer
from maskgym.agents.text.forward_size import available_bytes, bytes_per_answer, head_bytes, largest_fitting, state_bytes
from maskgym.agents.text.group_methods import GroupConfig, GroupTrainer, LeaveOneOutConfig, LeaveOneOutTrainer
from maskgym.agents.text.reward_function import EnvReward, Episodes
from maskgym.agents.text.spo import SPOConfig, SPOTrainer
from maskgym.agents.text.trainer import ResumableTrainer, checkpoint_step, with_images
from maskgym.aliases import Settings
from maskgym.envs.base import unwrap
from maskgym.envs.text.base import TextVectorEnv
from maskgym.errors import UserError, one_line

if TYPE_CHECKING:
    from maskgym.agents.text.language import LanguageAgent
    from maskgym.policies.text.mllm import LanguagePolicy

Data = dict[str, Dataset | None]


@dataclass(frozen=True)
class Method:
    """A trainer with its config, and a function that builds the further data sets that it takes."""

    config: type[GRPOConfig | RLOOConfig]
    trainer: type[ResumableTrainer]
    data: Callable[[GRPOConfig, Episodes, Episodes], Data] = lambda config, episodes, supervised: {}


def _isr_data(config: CGPOConfig, episodes: Episodes, supervised: Episodes) -> Data:
    return {"isr_dataset": supervised.rationale_rows() if config.isr_sft_steps else None}


METHODS = {
    "cgpo": Method(CGPOConfig, CGPOTrainer, _isr_data),
    "ablated_cgpo": Method(AblatedCGPOConfig, AblatedCGPOTrainer, _isr_data),
    "grpo": Method(GroupConfig, GroupTrainer),
    "rloo": Method(LeaveOneOutConfig, LeaveOneOutTrainer),
    "dapo": Method(DAPOConfig, DAPOTrainer, lambda config, episodes, _: {"refill_dataset": episodes.every_row()}),
    "spo": Method(SPOConfig, SPOTrainer),
}


class Training:
    """Training of one agent.

    Args:
        agent: The agent.

    Raises:
        UserError: If a setting is unknown, or the group size does not fit.
    """

    def __init__(self, agent: LanguageAgent) -> None:
        self.agent = agent
        self.method, self.settings = _select(agent.method, agent.settings)
        fields = self.method.config.__dataclass_fields__
        batch_size, default = agent.batch_size, fields["num_generations"].default
        self.group_size = default if agent.group_size is None else agent.group_size
        if self.group_size < 1 or batch_size % self.group_size:
            raise UserError(f"algo.group_size={self.group_size}: expected a divisor of batch_size={batch_size}")
        unknown = sorted((set(self.settings) - set(fields)) | (set(self.settings) & {"num_generations"}))
        if unknown:
            kind = self.method.config.__name__
            raise UserError(f"unknown setting algo.{unknown[0]}: expected one of this agent's or of {kind}'s")

    def check(self, tasks: int) -> None:
        """Check the values of the settings, and that this machine can use them.

        Args:
            tasks: Number of tasks, which take turns.

        Raises:
            UserError: If a value is out of range, or a library or a device is missing.
        """
        config = self.config(updates=1)
        if isinstance(config, CGPOConfig):
            check_turns(config, tasks)
        if config.use_vllm and find_spec("vllm") is None:
            raise UserError("algo.use_vllm=true: vLLM is not installed: pip install 'trl[vllm]'")
        if config.fsdp and config.use_cpu:
            raise UserError("algo.fsdp: accelerate shards on GPUs only")
        check_gpus(config.n_gpu)
        check_masters(self.agent.policy)

    def config(self, updates: int) -> GRPOConfig:
        """Build the config of the trainer.

        Raises:
            UserError: If a setting is out of range; the message names the key of the run.
        """
        agent = self.agent
        on_gpu = agent.policy.device.type == "cuda"
        half = on_gpu and agent.policy.dtype is torch.bfloat16
        settings = {
            "output_dir": str(agent.output),
            "max_steps": updates,
            "per_device_train_batch_size": agent.micro_batch_size,
            "gradient_accumulation_steps": agent.batch_size // (agent.micro_batch_size * parallel.size()),
            "num_generations": self.group_size,
            "max_completion_length": agent.max_new_tokens,
            "shuffle_dataset": False,  # The rows are in order already, with one task per batch.
            "seed": agent.seed,
            "save_steps": agent.save_every,
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
        try:
            return self.method.config(**settings)
        except UserError as error:  # it begins with the name of a setting
            raise UserError(f"algo.{error}") from error

    def run(
        self,
        envs: Sequence[VectorEnv],
        updates: int,
        on_log: OnLog,
        resume: bool,
        supervised: Sequence[VectorEnv],
        scorer: Scorer | None,
    ) -> None:
        """Train; the arguments are those of `maskgym.agents.text.language.LanguageAgent.train`."""
        agent, episodes = self.agent, Episodes(envs)
        prefilled = agent.policy.prefilled
        parsers = [unwrap(env, TextVectorEnv).parser for env in envs]
        reward = EnvReward(episodes if scorer is None else scorer, prefilled, parsers)
        rows = episodes.rows(updates, agent.batch_size // self.group_size, agent.seed)
        checkpoint = last_checkpoint(agent.output) if resume else None
        if agent.sizes_itself:
            self._choose_micro_batch_size(rows, checkpoint)
        config = self.config(updates)
        trainer = self.method.trainer(
            model=agent.policy.model,
            reward_funcs=reward,
            args=config,
            train_dataset=rows,
            processing_class=agent.policy.processor,
            callbacks=[_Logs(on_log, reward.cost, Watch(agent.patience, agent.max_new_tokens, agent.output))],
            **self.method.data(config, episodes, Episodes(supervised)),
        )
        if scorer is not None:
            trainer.on_answer = lambda row, answer: scorer.expect(row["task"], row["index"], prefilled + answer)
        trainer.remove_callback(PrinterCallback)  # `on_log` decides what is shown.
        with suppress(BudgetSpent):  # the caller has raised it, and knows
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.is_fsdp_enabled:
            self._gather(trainer)
        else:
            # accelerate's forward pass in half precision would stay, so that this process evaluates other scores than
            # one that loads the policy.
            trainer.accelerator.unwrap_model(agent.policy.model, keep_fp32_wrapper=False)

    def _choose_micro_batch_size(self, rows: Dataset, checkpoint: Path | None) -> None:
        """Set the answers per forward pass from the free memory, or as in the checkpoint that is resumed."""
        agent = self.agent
        share = agent.batch_size // parallel.size()
        if checkpoint is not None:
            stored = json.loads((checkpoint / "trainer_state.json").read_bytes()).get("train_batch_size")
            if isinstance(stored, int) and stored > 0 and share % stored == 0:
                agent.micro_batch_size = stored
                return
        model, text = agent.policy.model, agent.policy.model.config.get_text_config()
        tokens = self._longest_prompt(rows) + agent.max_new_tokens
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        config = self.config(updates=1)
        separate = isinstance(config, CGPOConfig) and config.isr_sft_steps > 0 and not config.isr_shared_optimizer
        pairs = 2 if separate else 1  # optimizers: supervised steps have one of their own
        needed = bytes_per_answer(
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            tokens=tokens,
            size=model.dtype.itemsize,
            checkpointing=config.gradient_checkpointing,
            adapters=agent.policy.lora_rank is not None,
        )
        fixed = state_bytes(trained, pairs) + head_bytes(text.vocab_size, agent.policy.device.type == "cuda")
        free = available_bytes(agent.policy.device, parallel.size())
        own = largest_fitting(share, needed, fixed, free)
        # All workers take the same number, so that they make the same number of passes.
        each = parallel.total([own * (number == parallel.rank()) for number in range(parallel.size())])
        agent.micro_batch_size = int(min(each))
        if not parallel.rank():
            print(
                f"algo.micro_batch_size=auto: {agent.micro_batch_size} of {share} answers per forward pass, of about "
                f"{needed / 2**20:.0f} MiB each ({tokens} tokens), with {free / 2**30:.1f} GiB of memory"
            )

    def _longest_prompt(self, rows: Dataset, looked_at: int = 16) -> int:
        """Count the tokens of the longest of some prompts, spread over the rows, with those of its images."""
        processor, places = self.agent.policy.processor, np.linspace(0, len(rows) - 1, looked_at).astype(int)
        prompts = with_images(rows.__getitems__(sorted({*places.tolist()})))
        shown = processor.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
        return max(len(tokens) for tokens in shown["input_ids"])

    def _gather(self, trainer: ResumableTrainer) -> None:
        """Give rank 0 a policy with all weights, because sharded weights answer only on all workers together."""
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        del self.agent.policy.model
        if not parallel.rank():
            self.agent.policy.model.load_state_dict(state)


def check_turns(config: CGPOConfig, tasks: int) -> None:
    """Check that every task has policy updates, if any has, where batches of tasks and kinds of steps take turns.

    Raises:
        UserError: If a task has supervised steps only.
    """
    steps = math.lcm(config.isr_period, tasks * config.num_iterations)
    reinforced = {step // config.num_iterations % tasks for step in range(steps) if not config.is_sft_step(step)}
    if 0 < len(reinforced) < tasks:
        turns = f"{tasks} tasks take turns, and {tasks - len(reinforced)} of them would have supervised steps only"
        raise UserError(
            f"algo.isr_period={config.isr_period}: {turns}: expected a period that shares no divisor with {tasks}"
        )


def check_masters(policy: LanguagePolicy) -> None:
    """Check that weights which are trained themselves have the precision for small updates.

    AdamW moves a weight by about the learning rate. Half precision rounds that to zero where it is less than a 256th
    (bfloat16) or a 2048th (float16) of the weight, which holds for most weights at 1e-6.

    Raises:
        UserError: If all weights are to be trained in half precision; adapters are float32 in any case.
    """
    if policy.lora_rank is None and policy.dtype is not torch.float32:
        name = str(policy.dtype).removeprefix("torch.")
        raise UserError(
            f"policy.dtype={name} with policy.lora_rank=null: most updates of weights in half precision round to zero: "
            "expected policy.dtype=float32 (+algo.bf16=true computes in bfloat16), or adapters, policy.lora_rank=16"
        )


def check_gpus(count: int) -> None:
    """Check the number of GPUs that this process would use: TRL trains on one per process.

    Raises:
        UserError: If there are several, which the Trainer would join in ``nn.DataParallel``.
    """
    if count > 1:
        raise UserError(
            f"scale=local: {count} GPUs are visible, and one process trains on one: expected CUDA_VISIBLE_DEVICES=0 "
            "before the command, or scale=ray, which gives each GPU a worker"
        )


def _select(name: str, settings: Settings) -> tuple[Method, Settings]:
    """Find the method of a name, and the settings that it takes; an ablation's setting selects the ablated CGPO."""
    if name != "cgpo":
        return METHODS[name], settings
    if any(settings.get(key, off) != off for key, off in ABLATIONS.items()):
        return METHODS["ablated_cgpo"], settings
    return METHODS[name], {key: value for key, value in settings.items() if key not in ABLATIONS}


class Watch:
    """Stop training that can teach nothing, because answers are cut off or cannot be read, update after update.

    An answer that is cut off earns nothing. CGPO learns from it nevertheless: its advantage is minus its confidence, so
    every token of every answer becomes less likely.

    Args:
        patience: Number of such updates in a row after which training stops; None never stops.
        max_new_tokens: Maximum length of an answer in tokens.
        output: Folder of the checkpoints.
    """

    def __init__(self, patience: int | None, max_new_tokens: int, output: Path) -> None:
        self.patience, self.max_new_tokens, self.output = patience, max_new_tokens, output
        self.streak = 0

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the log of an update; the first of a row of useless updates is told. Supervised ones do not count.

        Raises:
            UserError: If there have been ``patience`` useless updates in a row.
        """
        cut = values.get("completions/clipped_ratio")
        if cut is None:
            return
        problem = self._problem(cut, values.get("readable_share", 1.0))
        self.streak = self.streak + 1 if problem else 0
        if self.streak == 1 and not parallel.rank():
            print(one_line(f"update {step}: {problem}"))
        if problem and self.streak == self.patience:
            last = max((number for file in self.output.glob("*") if (number := checkpoint_step(file))), default=None)
            kept = "before the first checkpoint" if last is None else f"the last checkpoint is of update {last}"
            raise UserError(
                f"update {step}: {problem}: stopped after {self.streak} such updates in a row (algo.patience; null "
                f"never stops); {kept}, in {self.output}"
            )

    def _problem(self, cut: float, readable: float) -> str:
        """Tell what is wrong with an update's answers, by the share that is cut off and that is readable."""
        if cut > 0.5:
            more = f"algo.max_new_tokens={self.max_new_tokens}: expected a larger number"
            return f"{cut:.0%} of the answers are cut off at {more}"
        if readable == 0:
            return (
                "no answer has the form that is asked for, and none earns a reward for its masks: expected a policy "
                f"after supervised fine-tuning (algo=sft), or more than algo.max_new_tokens={self.max_new_tokens}"
            )
        return ""


class _Logs(TrainerCallback):
    """Pass the numbers in the trainer's log of each step on, together with the cost of its answers."""

    def __init__(self, receive: OnLog, cost: Callable[[], dict[str, float]], watch: Watch) -> None:
        self.receive, self.cost, self.watch = receive, cost, watch

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Store the answers per forward pass in checkpoints, for a run that chose them itself."""
        state.train_batch_size = args.per_device_train_batch_size

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
            numbers |= self.cost()
            self.receive(state.global_step, numbers)
            self.watch.look(state.global_step, numbers)


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest finished checkpoint in a folder, if any; unfinished ones are removed, and other entries stay.

    The trainer writes the manifest last, so a checkpoint without one was interrupted.
    """
    found = {step: path for path in folder.glob("*") if path.is_dir() and (step := checkpoint_step(path)) is not None}
    for _, path in sorted(found.items(), reverse=True):
        if (path / manifest.NAME).exists():
            return path
        if not parallel.rank():
            print(one_line(f"{path}: no {manifest.NAME}, so it was not finished: removed"))
            shutil.rmtree(path)
    return None
