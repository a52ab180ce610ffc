"""The run: ``python experiments/run.py env=sis algo=cgpo`` trains an agent and writes a run folder.

It wires one of each part from a config, evaluates on held-out samples before and after training, and leaves
``config.yaml``, ``results.json``, ``metrics.csv``, ``checkpoints/``, ``samples/`` and ``report.html``.
"""

from __future__ import annotations

import inspect
import math
import os
import platform
import random
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.process import keep_freed_memory, peak_mib

USAGE = """usage: python experiments/run.py [group=option ...] [key=value ...]
       python experiments/run.py -m [--jobs N] [--ray ADDRESS] [group=option,option ...] [key=value,value ...]
       python experiments/run.py resume=DIR

  -m          run every combination of listed values, as in: -m env=sod,sis algo=cgpo,sft seed=0,1,2
              runs lie in out=DIR, else in runs/multirun; the same command goes on after an interruption
  resume=DIR  continue the run in that folder; its config.yaml says what it is
  out=DIR     the run folder; else runs/<env>/<algo>/seed<k>-<time>
  +key=value  pass on an argument that the option's file does not list

groups (options in {conf}):
{groups}

defaults:
{defaults}"""
# Keys of algo and of env that are no arguments of them.
READ_OF_ALGO = ("updates", "rationales", "parts")
READ_HERE = ("ids", "answers", "parts", "forms", "task", "recalibration", "attention")
HELD_OUT = ("test", "validation")
FINITE = ("loss", "reward", "grad_norm")
SUMMARISED = ("reward", "iasm", "s_measure", "sa_sor")
LIBRARIES = ("maskgym", "torch", "transformers", "trl", "gymnasium", "numpy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status.

    Returns:
        0; 2 for a mistake in what was given, told in one line on standard error; 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(arguments):
            print(usage())
            return 0
        if {"-m", "--multirun"} & set(arguments):
            from maskgym.experiments.grids import sweep

            return sweep.multirun([argument for argument in arguments if argument not in ("-m", "--multirun")])
        return _run_one(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        where = f": continue with resume={stop.args[0]}" if stop.args else ""
        print(f"interrupted{where}", file=sys.stderr)
        return 130


def usage() -> str:
    """Return the text of ``--help``."""
    groups = "\n".join(f"  {name:<12}{', '.join(options)}" for name, options in composition.groups().items())
    defaults = composition.dump(composition.compose([])).rstrip().replace("\n", "\n  ")
    return USAGE.format(conf=composition.CONF, groups=groups, defaults=f"  {defaults}")


def run(
    config: dict[str, Any],
    folder: Path,
    resume: bool = False,
    scorer: Any = None,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
) -> dict[str, Any]:
    """Train, evaluate before and after, and write the run folder; of several workers the first does all but train.

    Args:
        config: As `composition.compose` returns it.
        folder: An existing folder.
        resume: Continue what lies there.
        scorer: What scores answers in text while training, in place of the environments: see
            `maskgym.experiments.on_ray.reward_pool.RewardPool`.
        report: Called in every worker after each update, with its number and named scalars.

    Returns:
        What ``results.json`` holds; nothing, of another worker than the first.

    Raises:
        UserError: If the config asks for what cannot be had.
    """
    from maskgym.agents.common import parallel
    from maskgym.experiments.evaluation import evaluation
    from maskgym.experiments.report import report as pages
    from maskgym.experiments.training import loggers

    keep_freed_memory()
    _seed(config["seed"])
    parts, tasks, updates = make_parts(config), list(config["env"]["ids"]), config["algo"]["updates"]
    train_envs = {task: make_env(config, task, "train", parts) for task in tasks}
    more = _make_supervised(config, train_envs, parts) | ({} if scorer is None else {"scorer": scorer})
    agent = _make_agent(config, folder, next(iter(train_envs.values())), parts)
    if parallel.rank():
        if updates:
            agent.train(list(train_envs.values()), updates, report, resume=resume, **more)
        return {}
    test_envs = {task: _make_held_out_env(config, task, parts) for task in tasks}
    run_folder.write(folder / run_folder.CONFIG, composition.dump(config))
    metrics = run_folder.Metrics(folder / run_folder.METRICS)
    every = config["evaluation"]["every"] or updates
    indices = {
        task: evaluation.held_out(env.unwrapped.num_samples, config["evaluation"]["samples"])
        for task, env in test_envs.items()
    }

    with loggers.open_logger(config, folder, _versions()) as logger:

        def log(step: int, values: Mapping[str, float]) -> None:
            metrics.add(step, values)
            logger.log(step, values)

        def evaluate(label: str, step: int) -> dict[str, evaluation.Evaluation]:
            found = {
                task: evaluation.evaluate(agent, env, indices[task], f"{label}, {task}")
                for task, env in test_envs.items()
            }
            log(step, {f"held_out/{name}": value for name, value in scores(found).items()})
            return found

        before_file = folder / run_folder.BEFORE
        if resume and before_file.exists():
            stored = run_folder.read_json(before_file)
            before = {task: evaluation.Evaluation(**values) for task, values in stored.items()}
        else:
            before = evaluate("before", 0)
            run_folder.write_json(before_file, {task: asdict(found) for task, found in before.items()})
        if updates:
            with _progress(updates, f"{config['env']['name']} {config['algo']['name']}") as bar:

                def on_log(step: int, values: Mapping[str, float]) -> None:
                    log(step, {**values, "peak_memory_mib": round(peak_mib(), 1)})
                    _check_finite(step, values, folder)
                    report(step, values)
                    bar.update(step - bar.n)
                    bar.set_postfix({"reward": f"{values['reward']:.3f}"} if "reward" in values else {})
                    if step % every == 0 and step < updates:
                        evaluate(f"after {step}", step)

                agent.train(list(train_envs.values()), updates, on_log, resume=resume, **more)
        agent.save(folder / run_folder.POLICY)
        after = evaluate("after", updates) if updates else before
        _write_samples(config, folder, test_envs, indices, before, after)
        logger.show(folder)
    results = {
        "env": config["env"]["name"],
        "algo": config["algo"]["name"],
        "seed": config["seed"],
        "device": _device(),
        "wall_s": round(metrics.wall_s, 1),
        "steps": updates,
        "split": ", ".join(sorted({env.unwrapped.dataset.split for env in test_envs.values()})),
        "before": scores(before),
        "after": scores(after),
        "versions": _versions(),
    }
    run_folder.write_json(folder / run_folder.RESULTS, results)
    pages.write(folder)
    return results


def evaluate_again(folder: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the evaluation of the trained agent of a finished run on held-out samples, by task.

    Arguments and errors are those of `trained`.
    """
    from maskgym.experiments.evaluation import evaluation

    config, agent, envs = trained(folder, changes)
    return {
        task: evaluation.evaluate(
            agent, env, evaluation.held_out(env.unwrapped.num_samples, config["evaluation"]["samples"])
        )
        for task, env in envs.items()
    }


def trained(folder: Path, changes: Sequence[str] = ()) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return the config of a finished run, its trained agent, and its environments of held-out samples by task.

    Args:
        folder: Of the run.
        changes: ``key=value``: what is to be different from the run, such as ``env.horizon=20``. ``algo=random`` lets
            another agent act beside the modules that the run trained.

    Raises:
        UserError: If the folder holds no run that is finished, or a change cannot be made.
    """
    own = composition.load(folder / run_folder.CONFIG)
    if not (folder / run_folder.RESULTS).exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    config = composition.change(own, changes)
    _seed(config["seed"])
    parts = make_parts(config)
    envs = {task: _make_held_out_env(config, task, parts) for task in config["env"]["ids"]}
    agent = _make_agent(config | {"algo": own["algo"]}, folder, next(iter(envs.values())), parts)
    agent.load(folder / run_folder.POLICY)
    if config["algo"] != own["algo"]:
        _check(config)
        agent = _make_agent(config, folder, next(iter(envs.values())), parts)
    return config, agent, envs


def untrained(config: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the agent of a config as it is before training, and its training environments by task.

    Args:
        config: As `composition.compose` returns it.
        folder: Of what the agent would write.

    Raises:
        UserError: If the config asks for what cannot be had.
    """
    _check(config)
    _seed(config["seed"])
    parts = make_parts(config)
    envs = {task: make_env(config, task, "train", parts) for task in config["env"]["ids"]}
    return _make_agent(config, folder, next(iter(envs.values())), parts), envs


def _run_one(arguments: Sequence[str]) -> int:
    """Run what ``key=value`` arguments ask for."""
    asked = {argument.partition("=")[0]: argument for argument in arguments}
    if "resume" in asked:
        folder = Path(asked["resume"].partition("=")[2]).expanduser().absolute()
        config = composition.load(folder / run_folder.CONFIG)
        _check_same(config, [argument for name, argument in asked.items() if name != "resume"], folder)
    else:
        config = composition.compose(arguments)
        _check(config)
        folder = run_folder.create(config)
    config["out"] = str(folder)
    resume = "resume" in asked
    try:
        if config["scale"]["name"] == "ray":
            from maskgym.experiments.on_ray import workers as ray_run

            results = ray_run.run(config, folder, resume)
        else:
            results = run(config, folder, resume)
    except UserError:
        if not resume:
            run_folder.discard_unstarted(folder)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(folder) from None
    except Exception as error:
        if run_folder.is_full(folder):  # what libraries make of it differs
            raise UserError(f"{folder}: the disk is full: make room, and continue with resume={folder}") from error
        raise
    print(_summary(results, folder))
    return 0


def _check(config: Mapping[str, Any]) -> None:
    """Raise a UserError if a number is out of range or the algorithm does not support the environment."""
    from maskgym import agents

    numbers = {"seed": 0, "evaluation.samples": 1, "evaluation.pictures": 0}
    numbers |= {"algo.updates": 0, "env.num_envs": 1, "train_samples": 1, "evaluation.every": 1}
    for key, least in numbers.items():
        value: Any = config
        for name in key.split("."):
            value = value[name]
        if value is None and key in ("train_samples", "evaluation.every"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{key}={value}: expected a whole number, at least {least}")
    if config["evaluation"]["split"] not in HELD_OUT:
        raise UserError(f"evaluation.split={config['evaluation']['split']}: expected one of {', '.join(HELD_OUT)}")
    env, algo = config["env"], config["algo"]

    def takes(name: str) -> bool:
        agent: Any = agents.get(name)  # a UserError where what it needs is not installed
        return set(env["ids"]) <= set(agent.tasks) and scale in getattr(agent, "scales", ("local",))

    scale = config["scale"]["name"]
    if not takes(algo["name"]):  # the others are imported for the message alone: that takes seconds
        supported = []
        for name in agents.names():
            with suppress(UserError):
                supported += [name] * takes(name)
        where = f"env={env['name']}" + f" scale={scale}" * (scale != "local")
        offer = ", ".join(supported) or "no agent"
        raise UserError(f"env={env['name']} algo={algo['name']}: not a pair: {where} takes {offer}")


def _check_same(config: Mapping[str, Any], arguments: Sequence[str], folder: Path) -> None:
    """Raise a UserError if arguments beside ``resume`` ask for another run than the one that is there."""
    named = [] if any(argument.startswith("env=") for argument in arguments) else [f"env={config['env']['name']}"]
    asked = composition.compose([*named, *arguments])
    for argument in arguments:
        path = composition.parse(argument).key_or_group.split(".")
        if path == ["out"]:
            continue
        stored: Any = config
        wanted: Any = asked
        for name in path:
            stored, wanted = stored.get(name), wanted[name]
        if isinstance(wanted, dict):
            stored, wanted = stored["name"], wanted["name"]
        if stored != wanted:
            raise UserError(f"resume={folder}: its run has {'.'.join(path)}={stored}, not {wanted}")


def make_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the environments share: segmenter, reward, and the module that labels clicks where one does."""
    from maskgym import rewards, segmenters

    segmenter = _make(segmenters.make, "segmenter", config["segmenter"])
    parts = {"segmenter": segmenter, "reward": _make(rewards.make, "reward", config["reward"])}
    if config["env"].get("text") is not None:
        parts["attention"] = _make(segmenters.make_attention, "env.attention", config["env"]["attention"])
    if config["env"].get("label_source") == "srm":
        if config["env"]["recalibration"]["branch"] == "explicit" and config["env"]["text"] is None:
            raise UserError("env.recalibration.branch=explicit: attends to a text: expected env.text=… too")
        from maskgym.policies.clicks.recalibration import SemanticRecalibration

        module = {"name": "recalibration", **config["env"]["recalibration"]}
        channels = getattr(segmenter, "embedding_shape", (0,))[0]
        parts["recalibration"] = _make(
            lambda name, **settings: SemanticRecalibration(**settings),
            "env.recalibration",
            module,
            in_channels=channels,
            seed=config["seed"],
        )
    return parts


def make_env(config: Mapping[str, Any], task: str, split: str, parts: Mapping[str, Any], data_name: str = "") -> Any:
    """Return the vector environment of a task and a split; it resets by index.

    Args:
        config: Of the run.
        task: A key of ``env.ids``.
        split: ``train`` or ``test``.
        parts: The segmenter and the reward.
        data_name: Another data set than the run's, with its defaults.
    """
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator
    from gymnasium.vector import AutoresetMode

    from maskgym import agents, data

    settings = {key: value for key, value in config["env"].items() if key not in READ_HERE}
    group = {"group_size": settings["group_size"]} if task == "cosod" else {}
    source = {"name": data_name} if data_name else dict(config["data"])
    rationales = source.pop("rationales", None)
    dataset = _make(data.make, "data", source, task=config["env"].get("task", task), split=split, **group)
    if rationales is not None and split == "train":
        dataset = data.WithRationales(dataset, rationales)
    if not len(dataset):
        raise UserError(f"data={source['name']}: the {split} split is empty: expected at least one sample")
    if split == "train" and config["train_samples"] is not None and not data_name:
        dataset = data.few_shot(dataset, config["train_samples"], config["seed"])
    # Evaluation resets by index; some agents train in environments that restart by themselves.
    mode = getattr(agents.get(config["algo"]["name"]), "autoreset_mode", AutoresetMode.DISABLED)
    mode = mode if split == "train" else AutoresetMode.DISABLED
    creator = gym.spec(config["env"]["ids"][task]).vector_entry_point
    kind = load_env_creator(creator) if isinstance(creator, str) else creator
    return _make(
        lambda name, **arguments: gym.make_vec(config["env"]["ids"][task], **arguments),
        "env",
        settings,
        dataset=dataset,
        autoreset_mode=mode,
        **{name: part for name, part in parts.items() if _takes(kind, name)},
    )


def make_worker_env(config: Mapping[str, Any], directory: str, num_envs: int) -> Any:
    """Return the training environment of a run with one task, for another process, with parts of its own.

    Args:
        config: Of the run.
        directory: Where the command was given, which paths in the config are relative to.
        num_envs: Sub-environments.
    """
    os.chdir(directory)
    config = {**config, "env": {**config["env"], "num_envs": num_envs}}
    return make_env(config, next(iter(config["env"]["ids"])), "train", make_parts(config))


def _takes(kind: Any, argument: str) -> bool:
    """Return whether a class has such an argument, or hands it on to one that has: masks need no segmenter."""
    return any(argument in inspect.signature(owner.__init__).parameters for owner in kind.__mro__)


def _make_held_out_env(config: Mapping[str, Any], task: str, parts: Mapping[str, Any]) -> Any:
    """Return the environment of held-out samples: of validation, too, where a small data set has no test sample.

    A hash deals out the samples of folders without lists, so that a dozen of them may leave a split empty. The train
    split was read before with the same arguments: what fails here and not there is the split.
    """
    try:
        return make_env(config, task, config["evaluation"]["split"], parts)
    except UserError:
        if config["evaluation"]["split"] == "validation":
            raise
        env = make_env(config, task, "validation", parts)
        print(f"{task}: the data has no test split: held-out samples are those of validation")
        return env


def _make_agent(config: Mapping[str, Any], folder: Path, env: Any, parts: Mapping[str, Any]) -> Any:
    """Return the agent with its policy, for the spaces of an environment; the segmenter too, if it acts by one.

    Raises:
        UserError: If the policy is none for this environment.
    """
    from maskgym import agents, policies

    _silence_transformers()
    settings = {key: value for key, value in config["algo"].items() if key not in READ_OF_ALGO}
    policy = _make(policies.make, "policy", config["policy"])
    if not set(config["env"]["ids"]) <= set(policy.tasks):
        raise UserError(f"env={config['env']['name']} policy={config['policy']['name']}: not a pair")
    kind = agents.get(config["algo"]["name"])
    given: dict[str, Any] = {"output": folder / run_folder.CHECKPOINTS}
    if config["policy"]["name"] == "none" and getattr(kind, "learns", True):
        raise UserError(f"algo={config['algo']['name']} policy=none: expected a network to train")
    if _takes(kind, "segmenter"):
        given["segmenter"] = parts["segmenter"]
    if _takes(kind, "make_env"):  # plays in processes of its own
        scale = config["scale"]
        given["make_env"] = partial(make_worker_env, config, os.getcwd())
        given |= {name: scale[name] for name in ("num_workers", "cpus_per_worker", "use_gpu")}
    return _make(agents.make, "algo", settings, policy=policy, env=env, seed=config["seed"], **given)


def _make_supervised(config: Mapping[str, Any], envs: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of ``train`` that says whose rationales supervised steps imitate, if it is to be given.

    Photographs carry no rationales: with ``algo.rationales=auto`` those of scenes stand in.
    """
    choice = config["algo"].get("rationales")
    if choice is None:  # nothing supervised
        return {}
    if choice not in ("auto", "own", "scenes"):
        raise UserError(f"algo.rationales={choice}: expected auto, own or scenes")
    has_own = all(env.unwrapped.dataset[0].rationale is not None for env in envs.values())
    if choice == "own" or (choice == "auto" and has_own):
        return {}
    print("rationales to imitate: those of scenes", *([] if has_own else ["(the data has none)"]))
    return {"supervised": [make_env(config, task, "train", parts, "scenes") for task in envs]}


def _make(make: Any, group: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """Return the part that a group's settings ask for.

    Raises:
        UserError: If it does not take one of them.
    """
    name = settings["name"]
    arguments = {key: value for key, value in settings.items() if key != "name"}
    for key in arguments.keys() & given.keys():
        raise UserError(f"{group}.{key}: is set by the run")
    try:
        return make(name, **arguments, **given)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in arguments:
            raise UserError(f"unknown key '{group}.{unknown[1]}': {group}={name} does not take it") from error
        raise
    except UserError:
        raise
    except ValueError as error:  # a value that the part refuses, or that a library below it does
        raise UserError(f"{group}={name}: {error}") from error


def _write_samples(
    config: Mapping[str, Any],
    folder: Path,
    envs: Mapping[str, Any],
    indices: Mapping[str, Sequence[int]],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    """Write every held-out answer with its scores, before and after, and pictures of those that moved most."""
    from maskgym.experiments.evaluation import evaluation

    answers = []
    for task, env in envs.items():
        rows = evaluation.compare(task, indices[task], before[task], after[task])
        by_index = {row["index"]: row for row in rows}
        shown = _most_moved(rows, config["evaluation"]["pictures"])
        for number, index in enumerate(shown):
            by_index[index]["picture"] = f"{task}-{number:02d}.png"
        _write_pictures(folder / run_folder.SAMPLES, task, env, by_index, shown)
        answers += rows
    run_folder.write(folder / run_folder.ANSWERS, "".join(f"{run_folder.to_json(row)}\n" for row in answers))


def _most_moved(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the indices of the samples whose reward fell most, and then as many of those where it rose most."""
    ordered = sorted(rows, key=lambda row: row["after"]["reward"] - row["before"]["reward"])
    fell = ordered[: -(-min(count, len(ordered)) // 2)]
    rose = ordered[len(fell) :][::-1][: count - len(fell)]
    return [row["index"] for row in (*fell, *rose)]


def _write_pictures(
    folder: Path, task: str, env: Any, rows: Mapping[int, Mapping[str, Any]], indices: Sequence[int]
) -> None:
    """Draw image, truth, and what the answers before and after led to, for each of some samples."""
    from PIL import Image

    from maskgym.envs.rendering import clicks_picture, picture
    from maskgym.experiments.evaluation import evaluation

    before, after = (
        [
            transition
            for transition, _ in evaluation.play(env, indices, [rows[index][when]["answer"] for index in indices])
        ]
        for when in ("before", "after")
    )
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if evaluation.is_clicked(env):
            sides = {"before": old, "after": new}
            episodes = {t: (side.masks[0], *evaluation.click_points(env, side)) for t, side in sides.items()}
            image = clicks_picture(old.sample, episodes)
        elif evaluation.is_drawn(env):
            drawn = {title: (side.masks[0] > 0.5,) for title, side in (("before", old), ("after", new))}
            image = picture(old.sample, drawn, old.sample.need)
        else:
            panels = {"before": old.masks, "after": new.masks}
            image = picture(old.sample, panels, f"before: {old.action}\nafter: {new.action}")
        stream = BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        run_folder.write(folder / rows[indices[number]]["picture"], stream.getvalue())


def scores(evaluations: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of every task in one dictionary, with the task's name in front where there are several."""
    if len(evaluations) == 1:
        return next(iter(evaluations.values())).scores
    return {f"{task}/{name}": value for task, found in evaluations.items() for name, value in found.scores.items()}


def _check_finite(step: int, values: Mapping[str, float], folder: Path) -> None:
    """Stop a training that has come to nothing, before it writes a checkpoint of it.

    Raises:
        UserError: If a loss, the reward or the gradient is no finite number.
    """
    for name, value in values.items():
        if name.rpartition("/")[2] in FINITE and not math.isfinite(value):
            kept = folder / run_folder.CHECKPOINTS
            raise UserError(f"update {step}: {name} is {value}: stopped; the last good checkpoint is in {kept}")


def _summary(results: Mapping[str, Any], folder: Path) -> str:
    """Return a few lines for the end of a run."""
    before, after = results["before"], results["after"]
    names = [name for name in after if name.rpartition("/")[2] in SUMMARISED and name in before]
    lines = [f"{name:<16}{before[name]:.3f} -> {after[name]:.3f}" for name in names]
    return "\n".join([*lines, f"{results['wall_s']:.0f} s, {folder / run_folder.REPORT}"])


def _progress(updates: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=updates, desc=name, unit="update", disable=None)


def _seed(seed: int) -> None:
    """Seed every source of chance that the library, or what it uses, draws from without being told."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _silence_transformers() -> None:
    """Leave progress and faults to us: what a checkpoint lacks is one line of our own."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if "transformers" in sys.modules:  # has read them; and many a run does without it, and the seconds that it takes
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
