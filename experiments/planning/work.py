"""Find what a worker of a run does, from the run's config."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskgym import agents
from maskgym.agents.text.language import LanguageAgent
from maskgym.aliases import Config, Settings
from maskgym.envs.instructions import instruction, refer_instruction
from maskgym.errors import UserError
from maskgym.experiments.planning.models import Model
from maskgym.experiments.wiring.build import ALGO_KEYS
from maskgym.policies.text.mllm import LanguagePolicy

if TYPE_CHECKING:
    from trl import GRPOConfig

ANSWER = 400  # tokens of the longest answer of a batch: the figures of Saliency-R1 show 250 to 400
TEXT = 150  # tokens of an instruction in Qwen's vocabulary, with those of the conversation's form
PHOTO = (480, 640)  # (height, width) of a photo of unknown size, pixels: that of most photos of COCO
PHRASES = {"sod": 2.0, "sis": 3.0, "cosod": 1.0, "refer": 1.0}  # that an answer has for each image
TOGETHER = 64  # answers that `LanguagePolicy.generate` generates at once


@dataclass(frozen=True)
class Work:
    """Work of one worker in an update of one task.

    Attributes:
        answers: Sampled answers, or examples of a supervised update.
        images: Images per prompt.
        phrases: Phrases per image that the segmenter decodes.
        prompts: Prompts; None for one per answer.
        image: (height, width) of an image as the policy sees it, pixels.
        text: Tokens of the instruction.
        answer: Tokens of the longest answer, which all others wait for.
        longest: Tokens of the longest answer that is allowed, for memory; 0 for ``answer``.
        evaluated: Answers that an evaluation generates together; 0 without evaluations.
        in_pass: Answers per forward pass.
        adapters: Whether adapters are trained, and all other weights frozen.
        checkpointing: Whether activations of a layer are computed again.
        size: Bytes of a weight.
        values: Bytes of an activation, fewer where half precision is computed from weights in float32.
        pairs: Pairs of moments: one per optimizer.
        reference: Whether a copy of the weights is kept as reference.
        scorings: Forward passes over sampled answers before they are trained on: old and reference probabilities.
        reuses: Updates per batch of sampled answers.
        supervised: Share of updates that are supervised.
        segments: Whether the worker segments answers itself.
        workers: Workers that share the update.
        sharded: Whether they shard weights and states.
    """

    answers: int = 1
    images: int = 1
    phrases: float = 2.0
    prompts: int | None = None
    image: tuple[int, int] = (448, 448)
    text: int = TEXT
    answer: int = ANSWER
    longest: int = 0
    evaluated: int = 0
    in_pass: int = 1
    adapters: bool = True
    checkpointing: bool = True
    size: int = 2
    values: int = 2
    pairs: int = 1
    reference: bool = False
    scorings: int = 0
    reuses: int = 1
    supervised: float = 0.0
    segments: bool = True
    workers: int = 1
    sharded: bool = False

    @property
    def shown(self) -> int:
        """Number of images of all prompts."""
        return self.images * (self.answers if self.prompts is None else self.prompts)

    @property
    def together(self) -> int:
        """Most answers that are generated together."""
        return max(self.evaluated, self.answers if self.supervised < 1 else 0)

    def prompt(self, model: Model) -> int:
        """Count the tokens of a prompt."""
        return self.text + self.images * model.tokens(self.image)

    def tokens(self, model: Model) -> int:
        """Count the tokens of a prompt and the longest answer that is allowed."""
        return self.prompt(model) + max(self.longest, self.answer)


def of_run(config: Config, policy: LanguagePolicy, gpu: bool, answer: int | None) -> dict[str, Work]:
    """Find the work of each task of a run.

    Args:
        config: Config of the run.
        policy: Its policy.
        gpu: Whether it runs on GPUs.
        answer: Expected tokens of the longest answer of a batch; None for the smaller of `ANSWER` and the limit.

    Raises:
        UserError: If the run would be refused, or what it does is not planned.
    """
    agent = _agent(config, policy)
    settings, own = _trainer(agent)
    env, algo, workers = config["env"], config["algo"], workers_of(config)
    batch, limit = algo["batch_size"], algo["max_new_tokens"]
    share, rest = divmod(batch, workers)
    if rest:
        raise UserError(f"algo.batch_size={batch}: expected a multiple of the {workers} workers")
    asked = algo.get("micro_batch_size")
    if isinstance(asked, int) and (asked < 1 or share % asked):
        raise UserError(f"algo.micro_batch_size={asked}: expected a divisor of a worker's {share} answers")
    steps, period = getattr(settings, "isr_sft_steps", 0), getattr(settings, "isr_period", 1)
    separate = steps > 0 and not getattr(settings, "isr_shared_optimizer", False)
    scores_itself = algo["name"] == "rloo" or settings.num_iterations > 1  # its answers, before they are trained on
    adapters = policy.lora_rank is not None
    group = settings.num_generations or 1
    common = Work(
        answers=share,
        prompts=max(1, share // group),
        image=_image(config, policy),
        answer=min(answer or ANSWER, limit),
        longest=limit,
        evaluated=min(env["num_envs"], TOGETHER, config["evaluation"]["samples"]),
        in_pass=asked if isinstance(asked, int) else share,
        adapters=adapters,
        checkpointing=bool(own.get("gradient_checkpointing", gpu)),
        size=policy.dtype.itemsize,
        values=2 if own.get("bf16") or own.get("fp16") else policy.dtype.itemsize,
        pairs=(steps < period) + separate if steps else 1,
        reference=settings.beta != 0 and not adapters,
        scorings=(settings.beta != 0) + scores_itself,
        reuses=settings.num_iterations,
        supervised=steps / period,
        segments=not config["scale"].get("reward_actors"),
        workers=workers,
        sharded=bool(own.get("fsdp")),
    )
    found = {}
    for task in env["gym_ids"]:
        images = env.get("group_size", 1) if task == "cosod" else 1
        own_text = _text(config, policy, task, images)
        found[task] = replace(common, images=images, phrases=PHRASES[task], text=own_text)
    return found


def workers_of(config: Config) -> int:
    """Look up the number of workers of a run."""
    return int(config["scale"].get("num_workers", 1))


def check(config: Config) -> None:
    """Check that a run is planned.

    Raises:
        UserError: If its algorithm does not train on answers in text.
    """
    name = config["algo"]["name"]
    if not issubclass(agents.get(name), LanguageAgent):
        covered = "sft, cgpo, grpo, dr_grpo, dapo, gspo, cispo, sapo, rloo, spo"
        raise UserError(f"algo={name}: maskgym plan covers algorithms that train on answers in text: {covered}")


def _agent(config: Config, policy: LanguagePolicy) -> LanguageAgent:
    """Make the agent of a run, for its settings.

    Raises:
        UserError: If it refuses one.
    """
    # The share of a worker is checked here; in this process, the agent would take itself for the only worker.
    settings = {key: value for key, value in config["algo"].items() if key not in (*ALGO_KEYS, "micro_batch_size")}
    agent = agents.make(**settings, policy=policy, output="")
    assert isinstance(agent, LanguageAgent)  # `check` has refused others
    return agent


def _trainer(agent: LanguageAgent) -> tuple[GRPOConfig, Settings]:
    """Build the config of the trainer, with its real defaults, and collect the settings that a run gives it.

    Raises:
        UserError: If it refuses a setting, or answers are generated by vLLM.
    """
    from maskgym.agents.text.training import Training, check_masters

    training = Training(agent)
    config = training.config(updates=1)
    check_masters(agent.policy)
    if config.use_vllm:
        raise UserError("algo.use_vllm=true: maskgym plan knows the rates of transformers alone: expected false")
    return config, training.settings


def has_processor(policy: LanguagePolicy) -> bool:
    """Check whether a policy's folder holds its tokenizer and processor, which a plan can do without."""
    return (Path(policy.path).expanduser() / "tokenizer_config.json").is_file()


def _image(config: Config, policy: LanguagePolicy) -> tuple[int, int]:
    """Find the (height, width) at which the policy sees an image."""
    side = config["env"]["image_size"]
    height, width = PHOTO if side is None else (side, side)
    if has_processor(policy):
        return policy.seen_size((height, width))
    least, most = policy.pixels
    wanted = min(max(height * width, least or 0), most or math.inf)
    scale = math.sqrt(wanted / (height * width))
    return round(scale * height), round(scale * width)


def _text(config: Config, policy: LanguagePolicy, task: str, images: int) -> int:
    """Count the tokens of a prompt without those of its images; `TEXT` where there is no tokenizer."""
    if not has_processor(policy):
        return TEXT
    env = config["env"]
    if task == "refer":
        words = refer_instruction("find the object", env["form"], env["coordinates"], env["reasoning"], env["hint"])
    else:
        words = instruction(task, env["reasoning"], env["instruction"], env["hint"])
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": words}]
    messages, processor = [{"role": "user", "content": content}], policy.processor
    shown = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return len(processor.tokenizer(shown)["input_ids"]) - images
