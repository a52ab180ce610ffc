"""Build the components of a run from its config: segmenter, reward, environments, policy and agent."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

from maskgym.aliases import Config, JsonObject, Settings
from maskgym.errors import EmptySplit, UserError
from maskgym.experiments.wiring import cluster, composition, run_folder, sources
from maskgym.experiments.wiring.process import seed_everything, silence_transformers
from maskgym.registry import check_arguments

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from maskgym.agents.base import Agent
    from maskgym.data import Dataset
    from maskgym.envs.base import SampleVectorEnv
    from maskgym.policies import Policy
    from maskgym.policies.clicks.recalibration import SemanticRecalibration
    from maskgym.rewards import Reward
    from maskgym.segmenters import AttentionSegmenter, ReferringSegmenter
    from maskgym.segmenters.points.promptable import PromptableSegmenter

# Keys of a config group that are no arguments of its component.
ALGO_KEYS = ("updates", "rationales", "default_parts", "default_hint")
ENV_KEYS = (
    *("gym_ids", "default_batch_size", "default_parts", "algo_aliases", "task", "recalibration", "attention"),
    "held_out_group_size",
    "train_samples_per",
    "level",
)
HELD_OUT = ("test", "validation")
LEAST = {  # least value of each whole number
    "seed": 0,
    "evaluation.samples": 0,
    "evaluation.pictures": 0,
    "algo.updates": 0,
    "data.workers": 0,
    "env.num_envs": 1,
    "train_samples": 1,
    "evaluation.every": 1,
    "env.held_out_group_size": 1,
}
LOOKED_AT = 32  # samples whose needs are looked at for unknown words
BUNDLED_CLIP, PUBLISHED_SAMS = "clip_tiny", ("sam", "sam_hf", "sam2")
EACH = "expected a set that serves the task, or one for each task, as data.sod=duts data.sis=ilso data.cosod=cocoseg"
# What a budget may limit: logged names of what an update costs, and their names in words.
UNITS = {"generated_tokens": "generated tokens", "env_steps": "clicks", "reward_calls": "scored masks"}
OPTIONAL = ("train_samples", "evaluation.every", "env.held_out_group_size")  # numbers that may be null

_Part = TypeVar("_Part")


class Parts(TypedDict):
    """Components that the environments of a run share, by the name of their argument."""

    segmenter: ReferringSegmenter | PromptableSegmenter
    reward: Reward
    attention: NotRequired[AttentionSegmenter]
    recalibration: NotRequired[SemanticRecalibration]


@dataclass(frozen=True)
class Built:
    """An agent with its environments.

    Attributes:
        config: Config that they were built from.
        parts: Components that the environments share.
        agent: The agent.
        envs: Vector environments by task.
    """

    config: Config
    parts: Parts
    agent: Agent
    envs: dict[str, VectorEnv]


def check_numbers(config: Config) -> None:
    """Check the numbers that no part checks.

    Raises:
        UserError: If a number is out of range, or the split is not one of held-out samples.
    """
    for key, least in LEAST.items():
        group, _, name = key.partition(".")
        if group in ("env", "data") and name not in config[group]:
            continue
        value = composition.look_up(config, key.split("."))
        if value is None and key in OPTIONAL:
            continue
        if type(value) is not int or value < least:
            raise UserError(f"{key}={value}: expected a whole number, at least {least}")
    shots_per(config)
    check_budget(config)
    if config["evaluation"]["split"] not in HELD_OUT:
        raise UserError(f"evaluation.split={config['evaluation']['split']}: expected one of {', '.join(HELD_OUT)}")


def check_budget(config: Config) -> None:
    """Check that a budget is one number of something that updates log, and of one process.

    Raises:
        UserError: If it is not.
    """
    budget = config.get("budget")  # runs of older versions have none
    if budget is None:
        return
    if len(budget) != 1 or budget.keys() - UNITS or not all(type(n) is int and n > 0 for n in budget.values()):
        raise UserError(f"budget={budget}: expected one of {', '.join(UNITS)} and a whole number, at least 1")
    if config["scale"]["name"] != "local":
        raise UserError(
            f"budget={budget}: scale={config['scale']['name']}: expected scale=local, whose log has all that is spent"
        )


def shots_per(config: Config) -> str:
    """Look up what ``train_samples`` counts in: ``task``, or ``category`` where samples are asked for by category.

    Raises:
        UserError: If it is another word, or the task has no categories.
    """
    given, task = config["env"].get("train_samples_per", "task"), config["env"].get("task")
    if given not in ("task", "category"):
        raise UserError(f"env.train_samples_per={given}: expected task or category")
    if given == "category" and task != "semantic":
        raise UserError(f"env.train_samples_per={given}: env.task={task} has no categories: expected env.task=semantic")
    return str(given)


def check(config: Config) -> None:
    """Check numbers, and that the algorithm supports the environment.

    Raises:
        UserError: If a number is out of range, or the algorithm does not support the environment or the scale.
    """
    from maskgym import agents

    check_numbers(config)
    env, algo, scale = config["env"]["name"], config["algo"]["name"], config["scale"]["name"]
    if not _supports(config, algo):
        where = f"env={env}" + f" scale={scale}" * (scale != "local")
        offer = ", ".join(_supporting(config)) or "no agent"
        raise UserError(f"env={env} algo={algo}: not a pair: {where} takes {offer}")
    if (workers := config["data"].get("workers", 0)) and "workers" not in agents.get(algo).takes:
        raise UserError(f"data.workers={workers}: algo={algo} loads its samples itself: expected 0")


def set_updates(config: Config) -> None:
    """Set the number of updates of a training whose length is given in epochs.

    Raises:
        UserError: If the data cannot be read.
    """
    from maskgym import agents

    algo, tasks = config["algo"], config["env"]["gym_ids"]
    if not agents.get(algo["name"]).counts_epochs or algo.get("epochs") is None:
        return
    if algo["epochs"] < 1:
        raise UserError(f"algo.epochs={algo['epochs']}: expected at least 1")
    samples = max(len(make_dataset(config, task, "train")) for task in tasks)
    algo["updates"] = len(tasks) * math.ceil(algo["epochs"] * samples / algo["batch_size"])


def _check_bundled(config: Config) -> None:
    """Refuse the bundled CLIP, whose vocabulary is that of synthetic scenes, beside a published SAM.

    Raises:
        UserError: If it would attend to texts, or encode needs, beside one.
    """
    env, segmenter = config["env"], config["segmenter"]["name"]
    used = {"env.encoder": env.get("encoder") if env.get("need") else None}
    if env.get("text") is not None:
        used["env.attention.name"] = env["attention"]["name"]
    for key, name in used.items():
        if name == BUNDLED_CLIP and segmenter in PUBLISHED_SAMS:
            raise UserError(
                f"{key}={name}: the bundled CLIP knows the words of synthetic scenes alone, segmenter={segmenter} is "
                f"for photographs: expected {key}=clip_surgery, or segmenter=sam_tiny"
            )


def _supports(config: Config, name: str) -> bool:
    """Check whether an agent supports the tasks and the scale of a config; it is imported for this."""
    from maskgym import agents

    agent = agents.get(name)
    return set(config["env"]["gym_ids"]) <= set(agent.tasks) and config["scale"]["name"] in agent.scales


def _supporting(config: Config) -> list[str]:
    """List the installed agents that support the tasks and the scale of a config."""
    from maskgym import agents

    found = []
    for name in agents.names():
        with suppress(UserError):  # a library of the agent is not installed
            found += [name] * _supports(config, name)
    return found


def make_segmenter(config: Config) -> ReferringSegmenter | PromptableSegmenter:
    """Make the segmenter of a run."""
    from maskgym import segmenters

    return _make("segmenter", config["segmenter"], segmenters.get, segmenters.make)


def make_parts(config: Config) -> Parts:
    """Make the components that environments share: segmenter, reward, attention, recalibration module.

    Raises:
        UserError: If a part is unknown or a setting is invalid, or a bundled CLIP reads texts beside a published SAM.
    """
    from maskgym import rewards, segmenters

    env = config["env"]
    _check_bundled(config)
    segmenter = make_segmenter(config)
    parts: Parts = {
        "segmenter": segmenter,
        "reward": _make("reward", config["reward"], rewards.get, rewards.make),
    }
    if env.get("text") is not None:
        parts["attention"] = _make(
            "env.attention", env["attention"], segmenters.get_attention, segmenters.make_attention
        )
    if env.get("label_source") == "srm":
        if env["recalibration"]["branch"] == "explicit" and env["text"] is None:
            raise UserError("env.recalibration.branch=explicit: attends to a text: expected env.text=… too")
        from maskgym.policies.clicks.recalibration import SemanticRecalibration
        from maskgym.segmenters.points.promptable import PromptableSegmenter

        channels, device = 0, "cpu"  # Environments of clicks refuse other segmenters.
        if isinstance(segmenter, PromptableSegmenter):
            channels, device = segmenter.embedding_shape[0], str(segmenter.device)
        parts["recalibration"] = _make(
            "env.recalibration",
            {"name": "srm", **env["recalibration"]},
            lambda name: SemanticRecalibration,
            lambda name, **settings: SemanticRecalibration(**settings),
            in_channels=channels,
            device=device,
            seed=config["seed"],
        )
    return parts


def make_env(
    config: Config,
    task: str,
    split: str,
    parts: Parts,
    data_name: str = "",
    autoreset: bool = False,
    part: str = "rl",
) -> VectorEnv:
    """Make the vector environment of a task and a split; it resets by index.

    Args:
        config: Config of the run.
        task: A key of ``env.gym_ids``.
        split: ``train``, ``validation`` or ``test``.
        parts: Components from `make_parts`.
        data_name: Name of another data set than the config's, with its default settings.
        autoreset: Whether the environment restarts episodes as the agent requires; else it never does.
        part: Part of the training split, see `make_dataset`.

    Raises:
        UserError: If the data cannot be read, the split is empty, or a setting is unknown or out of range.
    """
    return _env_of(config, task, make_dataset(config, task, split, data_name, part), parts, autoreset)


def _env_of(config: Config, task: str, dataset: Dataset, parts: Parts, autoreset: bool = False) -> VectorEnv:
    """Make the vector environment of a task on a data set; arguments as of `make_env`."""
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode

    from maskgym import agents

    gym_id = config["env"]["gym_ids"][task]
    kind = _env_class(gym_id)
    settings = {key: value for key, value in config["env"].items() if key not in ENV_KEYS}
    if (size := _whole_groups(config, task, dataset.split)) is not None:
        settings |= {"group_size": size, "whole_groups": True}
    return _make(
        "env",
        settings,
        lambda name: kind,
        lambda name, **arguments: gym.make_vec(gym_id, **arguments),
        dataset=dataset,
        autoreset_mode=agents.get(config["algo"]["name"]).autoreset_mode if autoreset else AutoresetMode.DISABLED,
        **{name: part for name, part in parts.items() if name in kind.takes},
    )


def _whole_groups(config: Config, task: str, split: str) -> int | None:
    """Return the largest number of images of a held-out group, which is shown without repeats; None for training's."""
    return config["env"].get("held_out_group_size") if task == "cosod" and split != "train" else None


def _env_class(gym_id: str) -> type[SampleVectorEnv]:
    """Import the vector environment of a Gymnasium id.

    Raises:
        UserError: If the id is unknown, its module cannot be imported, or it has no `SampleVectorEnv`.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    from maskgym.envs.base import SampleVectorEnv

    try:
        creator = gym.spec(gym_id).vector_entry_point
        kind = load_env_creator(creator) if isinstance(creator, str) else creator
    except Exception as error:  # Gymnasium has its own, and a module may raise anything when it is imported.
        raise UserError(f"env.gym_ids: {gym_id}: {type(error).__name__}: {error}") from error
    expected = "expected register(…, vector_entry_point=…) with a subclass of maskgym.envs.base.SampleVectorEnv"
    if isinstance(kind, type) and issubclass(kind, SampleVectorEnv):
        return kind
    found = "is registered without a vector_entry_point" if kind is None else f"its vector_entry_point is {kind}"
    raise UserError(f"env.gym_ids: {gym_id}: {found}: {expected}")


def make_dataset(config: Config, task: str, split: str, data_name: str = "", part: str = "rl") -> Dataset:
    """Make the data set of a task and a split; arguments as of `make_env`.

    Args:
        config: Config of the run.
        task: A key of ``env.gym_ids``.
        split: ``train``, ``validation`` or ``test``.
        data_name: Name of another data set than the config's, with its default settings.
        part: Part of the training split: ``rl``, the environment's samples; ``sft`` or ``isr``, those to imitate. With
            ``data.rationales``, the last two are the samples that the file has a rationale for.

    Raises:
        EmptySplit: If the split has no sample.
        UserError: If the data cannot be read, or a setting is unknown or out of range.
    """
    from maskgym import data

    source = {"name": data_name} if data_name else dict(config["data"])
    rationales, _ = source.pop("rationales", None), source.pop("workers", None)
    if sources.given({"data": source}):
        sources.check_task(config, task)
    if split == "train" and sources.given({"data": source}):
        dataset = sources.training(config, task, part)
    else:
        shown_as = _shown_as(config, source, task, split)
        try:
            dataset = _make("data", _arguments(source), data.get, data.make, split=split, **shown_as)
        except UserError as error:
            if str(error).startswith("task=") and len(config["env"]["gym_ids"]) > 1:
                raise UserError(f"{error}: {EACH}") from error
            raise
    if not len(dataset):
        raise EmptySplit(f"data={source['name']}: the {split} split is empty: expected at least one sample")
    if split == "train" and config["train_samples"] is not None and not data_name:
        draw = data.few_shot_per_category if shots_per(config) == "category" else data.few_shot
        dataset = draw(dataset, config["train_samples"], config["seed"])
    if split == "train" and rationales is not None and part != "rl":
        dataset = data.WithRationales(dataset, rationales)
    return dataset


def _arguments(source: Settings) -> Config:
    """Select the settings of a data set that its reader takes."""
    return {key: value for key, value in source.items() if key != "parts" or not sources.given({"data": source})}


def _shown_as(config: Config, source: Settings, task: str, split: str) -> Config:
    """Build the arguments of a reader that the environment sets: the task, and of groups their size.

    Raises:
        UserError: If the data set has no groups, and the task needs them.
    """
    from maskgym.data.tasks import takes_groups

    if task != "cosod":
        return {"task": config["env"].get("task", task)}
    if not takes_groups(source["name"]):
        raise UserError(f"data={source['name']}: holds single photos, and cosod shows groups: {EACH}")
    return {"task": task, "group_size": _whole_groups(config, task, split) or config["env"]["group_size"]}


def make_train_envs(config: Config, parts: Parts) -> dict[str, VectorEnv]:
    """Make the training environments by task, with the autoreset mode that the agent requires."""
    for task in config["env"]["gym_ids"] if sources.given(config) else ():
        sources.check_set(config, task)  # of all tasks, before photos of one are read
    return {task: make_env(config, task, "train", parts, autoreset=True) for task in config["env"]["gym_ids"]}


def make_worker_env(config: Config, directory: str, num_envs: int) -> VectorEnv:
    """Make the training environment of a run with one task, in another process, with components of its own.

    Args:
        config: Config of the run.
        directory: Working directory of the command, which paths in the config are relative to.
        num_envs: Number of sub-environments.
    """
    os.chdir(directory)
    config = {**config, "env": {**config["env"], "num_envs": num_envs}}
    return next(iter(make_train_envs(config, make_parts(config)).values()))


def make_held_out_env(config: Config, task: str, parts: Parts) -> VectorEnv:
    """Make the environment of the samples of `make_held_out_dataset`."""
    return _env_of(config, task, make_held_out_dataset(config, task), parts)


def make_held_out_dataset(config: Config, task: str) -> Dataset:
    """Make the data set of held-out samples: of validation if a small data set has no test samples.

    Folders without lists split by a hash, so a dozen samples may leave a split empty.
    """
    asked = config["evaluation"]["split"]
    try:
        return make_dataset(config, task, asked)
    except EmptySplit as error:
        try:
            if asked == "validation":
                raise
            dataset = make_dataset(config, task, "validation")
        except EmptySplit:
            raise EmptySplit(
                f"{error}; to train without held-out samples: evaluation.samples=0; to evaluate on other sets: "
                f"data.{task}=… data.held_out.{task}=… data.root=DIR"
            ) from error
        told = f"{task}: the data has no test split: held-out samples are those of validation"
        print(told, file=sys.stderr)  # standard output may hold the scores alone
        return dataset


def make_policy(config: Config) -> Policy:
    """Make the policy of a run; a language model is not loaded yet.

    Raises:
        UserError: If it is unknown, or a setting is invalid.
    """
    from maskgym import policies

    return _make("policy", config["policy"], policies.get, policies.make)


def make_agent(config: Config, folder: Path, env: VectorEnv, parts: Parts) -> Agent:
    """Make the agent with its policy, for the spaces of an environment.

    Raises:
        UserError: If the policy does not suit the environment or the agent.
    """
    from maskgym import agents

    silence_transformers()
    policy = make_policy(config)
    kind = agents.get(config["algo"]["name"])
    held = {*dir(type(policy)), *getattr(policy, "__dict__", ())}  # without loading a model, as asking for a member may
    if missing := [name for name in ("tasks", *kind.members) if name not in held]:
        uses = f"algo={config['algo']['name']} uses {', '.join(('tasks', *kind.members))}"
        raise UserError(f"policy={config['policy']['name']}: a {type(policy).__name__} without {missing[0]}: {uses}")
    if not set(config["env"]["gym_ids"]) <= set(policy.tasks):
        raise UserError(f"env={config['env']['name']} policy={config['policy']['name']}: not a pair")
    if config["policy"]["name"] == "none" and kind.learns:
        raise UserError(f"algo={config['algo']['name']} policy=none: expected a network to train")
    _tell_unknown_words(config, env)
    _tell_random_backbone(config, policy)
    if kind.learns:
        _check_coordinates(config, policy, env)
    given: dict[str, Any] = {"output": folder / run_folder.CHECKPOINTS}
    if "segmenter" in kind.takes:
        given["segmenter"] = parts["segmenter"]
    if "workers" in kind.takes:
        given["workers"] = config["data"].get("workers", 0)
    if "make_env" in kind.takes:
        given["make_env"] = partial(make_worker_env, config, os.getcwd())
        given |= {name: config["scale"][name] for name in ("num_workers", "use_gpu")}
        given["cpus_per_worker"] = cluster.cpus_per_worker(config)
    settings = {key: value for key, value in config["algo"].items() if key not in ALGO_KEYS}
    return _make("algo", settings, agents.get, agents.make, policy=policy, env=env, seed=config["seed"], **given)


def _check_coordinates(config: Config, policy: Policy, env: VectorEnv) -> None:
    """Say that a language model uses other coordinates, and refuse images that it would see at another size.

    Raises:
        UserError: If answers are in pixels, and the model's processor resizes the observed square.
    """
    if config["env"].get("coordinates") is None or config["env"].get("form") == "phrases":
        return
    from maskgym.policies.text.mllm import LanguagePolicy

    if not isinstance(policy, LanguagePolicy):
        return
    own, asked = policy.coordinates, config["env"]["coordinates"]
    if own is None:
        told = f"what policy={config['policy']['name']} ({policy.family}) was trained to answer in is not known"
        print(f"env.coordinates={asked}: {told}: expected pixels, thousandths or shares", file=sys.stderr)
    elif own != asked:
        told = f"policy={config['policy']['name']} was trained to answer in {own}"
        print(f"env.coordinates={asked}: {told}: expected env.coordinates={own}", file=sys.stderr)
    if asked != "pixels":
        return
    if (side := config["env"]["image_size"]) is not None:
        size, key = (side, side), f"env.image_size={side}"
    else:
        from maskgym.envs.base import unwrap
        from maskgym.envs.text.refer import ReferVectorEnv

        base = unwrap(env, ReferVectorEnv)
        size, key = base.frame(base.dataset[0]).observed, f"env.multiple={base.multiple}"
    if (seen := policy.seen_size(size)) != size:
        came, fits = (f"{width} x {height}" for height, width in (size, seen))
        shown = f"the processor of policy={config['policy']['name']} resizes {came} pixels to {fits}"
        more = f"expected env.image_size={max(seen)}" if side is not None else "expected a multiple and sizes that fit"
        raise UserError(f"{key}: {shown}, so pixels of the two differ: {more}, or another env.coordinates")


def _tell_random_backbone(config: Config, policy: Policy) -> None:
    """Say that the frozen backbone of a policy has random weights, or a part of it."""
    if "backbone" not in config["policy"]:
        return
    from maskgym.policies.needs.usersal import UserSal

    if isinstance(policy, UserSal) and (part := policy.backbone.random_part):
        name = config["policy"]["backbone"]["name"]
        told = f"{part} has random weights, and is frozen: expected +policy.backbone.checkpoint=DIR"
        print(f"policy.backbone.name={name}: {told}, of maskgym pretrain saliency or published", file=sys.stderr)


def _tell_unknown_words(config: Config, env: VectorEnv) -> None:
    """Say which words of the needs a bundled encoder does not know: needs of such words are all alike to it."""
    own, shown = config["policy"].get("encoder"), config["env"].get("need")
    used = {"policy.encoder.name": own["name"]} if own and not own.keys() & {"vocabulary", "checkpoint"} else {}
    used["env.encoder"] = config["env"].get("encoder")
    bundled = {key: name for key, name in used.items() if name in (BUNDLED_CLIP, "bag_of_words")}
    if not bundled or not shown or config["data"]["name"] == "scenes":
        return
    from maskgym.envs.base import SampleVectorEnv, unwrap
    from maskgym.policies.needs.bag_of_words import scene_words, split

    dataset = unwrap(env, SampleVectorEnv).dataset
    step = max(1, len(dataset) // LOOKED_AT)
    words = {word for index in range(0, len(dataset), step) for word in split(dataset[index].need or "")}
    words.discard("find")  # the first word of every need of scenes, which says nothing
    if unknown := sorted(words - scene_words()):
        for key, name in bundled.items():
            told = f"knows the words of synthetic scenes alone: {len(unknown)} of {len(words)} words are unknown to it"
            print(f"{key}={name}: {told}, such as {', '.join(unknown[:5])}: expected a published one", file=sys.stderr)


def make_supervised(config: Config, envs: Mapping[str, VectorEnv], parts: Parts) -> list[VectorEnv] | None:
    """Make the environments whose rationales supervised steps imitate; None for the training environments.

    With ``data.rationales`` these are the samples that the file has a rationale for; with sizes in ``data.parts``, they
    are the part ``isr``, or ``sft`` if every step is supervised. ``algo.rationales`` chooses: ``auto`` imitates those
    of the data and skips samples without one; ``own`` refuses data with such samples; ``scenes`` imitates those of
    synthetic scenes.

    Raises:
        UserError: If the choice is unknown, or a task has no rationale to imitate or, with ``own``, lacks some.
    """
    from maskgym.envs.base import SampleVectorEnv, unwrap

    if not _is_supervised(config):
        return None
    choice, name = config["algo"]["rationales"], config["data"]["name"]
    if choice not in ("auto", "own", "scenes"):
        raise UserError(f"algo.rationales={choice}: expected auto, own or scenes")
    if choice == "scenes":
        print("rationales to imitate: those of scenes")
        return [make_env(config, task, "train", parts, "scenes") for task in envs]
    if _has_own_part(config):
        part = "isr" if "isr_sft_steps" in config["algo"] else "sft"
        envs = {task: make_env(config, task, "train", parts, part=part) for task in envs}
    for task, env in envs.items():
        dataset = unwrap(env, SampleVectorEnv).dataset
        without = len(dataset) - len(dataset.with_rationale)
        told = f"{without} of the {len(dataset)} training samples of data={name} have no rationale to imitate"
        if without == len(dataset) or (without and choice == "own"):
            more = ", or no supervised steps (algo.isr_sft_steps=0)" * ("isr_sft_steps" in config["algo"])
            raise UserError(
                f"algo.rationales={choice}: {task}: {told}: expected data.rationales=FILE, as maskgym data reason "
                f"writes it, algo.rationales=scenes{more}"
            )
        if without:
            print(f"{task}: {told}: supervised steps skip them")
    return list(envs.values()) if _has_own_part(config) else None


def _has_own_part(config: Config) -> bool:
    """Check whether the samples to imitate are other ones than those of the training environments."""
    named = sources.given(config) and any(sources.counts(config, task).asked for task in config["env"]["gym_ids"])
    return named or config["data"].get("rationales") is not None


def describe_rationales(config: Config, envs: Mapping[str, VectorEnv]) -> dict[str, JsonObject]:
    """Describe the rationales that supervised steps imitate, by task; empty if there are no such steps.

    Args:
        config: Config of the run.
        envs: Environments by task whose rationales are imitated.
    """
    from maskgym.envs.base import SampleVectorEnv, unwrap

    if not _is_supervised(config):
        return {}
    scenes = config["algo"]["rationales"] == "scenes"
    data = {"name": "scenes"} if scenes else config["data"]
    found = {}
    for task, env in envs.items():
        dataset = unwrap(env, SampleVectorEnv).dataset
        used = len(dataset.with_rationale)
        found[task] = {
            "data": data["name"],
            "file": data.get("rationales"),
            "used": used,
            "skipped": len(dataset) - used,
        }
    return found


def _is_supervised(config: Config) -> bool:
    """Check whether a run has supervised steps, which imitate rationales."""
    algo = config["algo"]
    return algo.get("rationales") is not None and algo["updates"] > 0 and algo.get("isr_sft_steps", 1) != 0


def trained(folder: Path, changes: Sequence[str] = (), task: str | None = None) -> Built:
    """Build the trained agent of a finished run, with its environments of held-out samples.

    Args:
        folder: Folder of the run.
        changes: ``key=value`` settings that differ from the run, such as ``env.horizon=20``. ``algo=random`` lets
            another agent act beside the modules that the run trained.
        task: The only task to make the environment of; None for all tasks, or those that have a set in the changes.

    Raises:
        UserError: If the folder holds no finished run, a change is invalid, or its policy does not fit the weights.
    """
    own = composition.load(folder / run_folder.CONFIG)
    if not (folder / run_folder.RESULTS).exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    config = composition.change(own, changes)
    seed_everything(config["seed"])
    parts = make_parts(config)
    wanted = sources.tasks(config) if task is None or task not in config["env"]["gym_ids"] else [task]
    envs = {each: make_held_out_env(config, each, parts) for each in wanted}
    first = next(iter(envs.values()))
    another = config["algo"]["name"] != own["algo"]["name"]
    if config["algo"] != own["algo"]:
        check(config)
    agent = make_agent(config | {"algo": own["algo"]} if another else config, folder, first, parts)
    try:
        agent.load(folder / run_folder.POLICY)
    except UserError as error:
        if config["policy"] == own["policy"]:
            raise
        told = " ".join(change for change in changes if change.lstrip("+").startswith("policy"))
        own_keys = f"see its {run_folder.CONFIG}: expected a key that leaves their shapes, or a new run"
        raise UserError(f"{told}: does not fit the weights of {folder}, {own_keys}") from error
    if another:
        agent = make_agent(config, folder, first, parts)
    return Built(config, parts, agent, envs)


def untrained(config: Config, folder: Path) -> Built:
    """Build the agent of a config before training, with its training environments.

    Args:
        config: Config from `composition.compose`.
        folder: Folder for the agent's output.

    Raises:
        UserError: If the config is invalid.
    """
    check(config)
    seed_everything(config["seed"])
    parts = make_parts(config)
    envs = make_train_envs(config, parts)
    return Built(config, parts, make_agent(config, folder, next(iter(envs.values())), parts), envs)


def _make(
    group: str,
    settings: Settings,
    target: Callable[[str], Callable],
    make: Callable[..., _Part],
    **given: Any,
) -> _Part:
    """Make the component that a config group names.

    Args:
        group: Name of the group, for errors.
        settings: Settings of the group, ``name`` among them.
        target: Function from a name to the class or function whose arguments the settings are.
        make: Function from a name and arguments to the component.
        **given: Arguments that the run sets.

    Raises:
        UserError: If the component does not take a setting, or refuses its value.
    """
    name = settings["name"]
    arguments = {key: value for key, value in settings.items() if key != "name"}
    for key in arguments.keys() & given.keys():
        raise UserError(f"{group}.{key}: is set by the run")
    check_arguments(target(name), {**arguments, **given}, f"{group}={name}", f"{group}.")
    try:
        return make(name, **arguments, **given)
    except UserError as error:
        if str(error).partition("=")[0] in arguments:  # it begins with the name of a setting
            raise UserError(f"{group}.{error}") from error
        raise
    except ValueError as error:  # a library below the component refuses a value
        raise UserError(f"{group}={name}: {error}") from error
