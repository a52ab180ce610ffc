"""Trajectories: episodes of a run's trained agent as JSON lines, for training in other frameworks.

    maskgym export RUN_DIR OUT --split train --samples 500

OUT/episodes.jsonl has one line per episode. OUT/images holds its photos. Every line has ``key``, ``task``, ``split``,
``images`` (paths under OUT) and ``reward``, the return. Masks are COCO run-length codes at the size of their image.
The other keys depend on the kind of action:

text    ``messages``, a conversation for chat templates and TRL's SFTTrainer, whose image parts stand for ``images``
        in order; ``reward_terms``; ``expressions``; ``masks``: for each image, one mask per expression.
clicks  ``prompts``, the initial clicks of the episode (``point``, ``label``), and ``steps``, each with ``patch``
        (row-major index), ``point`` ([x, y] in pixels of the image), ``label`` (1 foreground), ``reward``,
        ``reward_terms``, ``iou`` and ``mask``; ``grid``, the number of patches per side.
masks   ``steps``, each with ``action`` (the mask over the observed square, thresholded at 0.5), ``mask``, ``reward``,
        ``reward_terms`` and ``iou``.

Lines of tasks with needs have the key ``need``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from maskgym.data.run_lengths import encode
from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.command import Parser

EPISODES, IMAGES = "episodes.jsonl", "images"
PARTS = ("segmenter", "reward", "attention", "recalibration")  # components that the environments of a run share

# A policy for one chunk of episodes: it maps the step and the observations to one action per episode.
Chooser = Callable[[int, Any], Sequence[Any]]
# A function from the start and the length of a chunk that was reset to its `Chooser`.
Player = Callable[[int, int], Chooser]


@dataclass(frozen=True)
class Step:
    """One step of an episode: the action, the reward and the info."""

    action: Any
    reward: float
    info: dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """One episode from its reset to its end.

    Attributes:
        index: Index of the sample.
        observation: Initial observation.
        prompts: Initial clicks of a click episode: (x, y) in pixels of the observed square, and the label.
        steps: Steps in order, at least one.
    """

    index: int
    observation: dict[str, Any]
    prompts: tuple[tuple[float, float, int], ...]
    steps: tuple[Step, ...]


def main(arguments: Sequence[str]) -> int:
    """Run ``maskgym export``: write the episodes of a run's trained agent as JSON lines."""
    parser = Parser(prog="maskgym export", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--split", help="train, validation or test (default: what the run was evaluated on)")
    parser.add_argument("--samples", type=int, help="at most so many, spread evenly (default: all)")
    parser.add_argument(
        "--stored", action="store_true", help="take the answers that the run's last evaluation stored, and no policy"
    )
    given = parser.parse_args(arguments)
    count = export(given.folder, given.out, given.split, given.samples, given.stored)
    print(f"{given.out / EPISODES}: {count} episodes")
    return 0


def export(folder: Path, out: Path, split: str | None = None, samples: int | None = None, stored: bool = False) -> int:
    """Write greedy episodes of the trained agent of a finished run; return their number.

    The episode file is written atomically. An existing file is replaced.

    Args:
        folder: Folder of the run.
        out: Output folder, created if it does not exist.
        split: ``train``, ``validation`` or ``test``; None selects the split that the run was evaluated on. ``train``
            is the training set of the run, limited to its ``train_samples``.
        samples: Maximum number of samples per task, spread evenly over the split; None for all.
        stored: Whether to replay the stored answers of the run's last evaluation, on the split of that evaluation.
            Stored masks are binary, so soft rewards may differ from those of the run.

    Raises:
        UserError: If the folder holds no finished run, or an argument is invalid.
    """
    from tqdm import tqdm

    from maskgym.data import SPLITS
    from maskgym.experiments.evaluation import evaluation

    config = composition.load(folder / run_folder.CONFIG)
    if not (folder / run_folder.RESULTS).exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    evaluated = run_folder.read_json(folder / run_folder.RESULTS)["split"]
    split = split or evaluated
    if split not in SPLITS:
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    if samples is not None and samples < 1:
        raise UserError(f"--samples {samples}: expected at least 1")
    if stored and split != evaluated:
        raise UserError(f"--split {split} --stored: the answers stored are of {evaluated}")
    agent, envs = _open(config, folder, split, with_weights=not stored)
    answers = _stored(folder, envs) if stored else {}
    plans = {}
    for task, env in envs.items():
        indices = list(answers[task]) if stored else list(range(env.unwrapped.num_samples))
        plans[task] = [indices[place] for place in evaluation.held_out(len(indices), samples or len(indices))]
    with tqdm(total=sum(map(len, plans.values())), desc="export", unit="episode", disable=None) as bar:
        run_folder.write(out / EPISODES, b"".join(_lines(out, agent, envs, plans, answers, bar)))
    return bar.total


def read(out: str | Path) -> Any:
    """Load exported episodes as a `datasets.Dataset` with decodable ``images``; SFTTrainer trains on text episodes.

    Args:
        out: Folder that `export` wrote.

    Raises:
        UserError: If the folder holds no episodes.
    """
    import datasets

    out = Path(out)
    if not (out / EPISODES).is_file():
        raise UserError(f"{out}: no {EPISODES} there: expected the folder that `maskgym export` wrote")
    rows = datasets.load_dataset("json", data_files=str(out / EPISODES), split="train")
    rows = rows.map(lambda row: {"images": [str(out / name) for name in row["images"]]})
    return rows.cast_column("images", datasets.List(datasets.Image()))


def play(env: Any, indices: Sequence[int], begin: Player) -> Iterator[Episode]:
    """Play each sample to the end of its episode.

    Args:
        env: Vector environment that resets by index, with ``autoreset_mode=DISABLED``.
        indices: Indices of the samples.
        begin: Player of each chunk.
    """
    from maskgym.experiments.evaluation.batches import chunks, filled, first_rows

    for number, chunk in enumerate(chunks(indices, env.num_envs)):
        wanted, count = filled(chunk, env.num_envs), len(chunk)
        observations, _ = env.reset(options={"index": wanted})
        shown, prompts = first_rows(observations, count), _prompts(env)
        choose = begin(number * env.num_envs, count)
        steps: list[list[Step]] = [[] for _ in chunk]
        over = np.zeros(env.num_envs, bool)
        for step in itertools.count():
            actions = list(choose(step, observations))
            padded = [*actions, *[actions[-1]] * (env.num_envs - count)]
            observations, values, terminated, truncated, infos = env.step(padded)
            for i in np.flatnonzero(~over[:count]):
                steps[i].append(Step(actions[i], float(values[i]), _row(infos, i)))
            done = terminated | truncated
            over |= done
            if over[:count].all():
                break
            if done.any():
                # Finished episodes must be reset before the next step; their later results are ignored.
                observations, _ = env.reset(options={"index": wanted, "reset_mask": done})
        for i, index in enumerate(chunk):
            yield Episode(index, shown[i], prompts[i], tuple(steps[i]))


def _open(config: dict[str, Any], folder: Path, split: str, with_weights: bool) -> tuple[Any, dict[str, Any]]:
    """Load the trained agent of a run, and its environments of a split by task."""
    agent, training = run.untrained(config, folder)
    base = next(iter(training.values())).unwrapped
    parts = {name: getattr(base, name) for name in PARTS if getattr(base, name, None) is not None}
    if with_weights or "recalibration" in parts:  # it labels clicks, and is trained with the policy
        agent.load(folder / run_folder.POLICY)
    # Some agents train in environments that reset themselves; environments of the random agent do not.
    resting = {**config, "algo": {"name": "random"}}
    return agent, {task: run.make_env(resting, task, split, parts) for task in training}


def _stored(folder: Path, envs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Read the stored answers after training, by task and index.

    Raises:
        UserError: If the answers cannot be read, or their samples differ from those of the data set.
    """
    file, found = folder / run_folder.ANSWERS, {task: dict[int, str]() for task in envs}
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    for row in rows:
        task, index = row["task"], row["index"]
        dataset = envs[task].unwrapped.dataset
        if index >= len(dataset) or dataset[index].key != row["key"]:
            raise UserError(f"{file}: sample {index} of {task} is no longer '{row['key']}': the data has changed")
        found[task][index] = row["after"]["answer"]
    return found


def _lines(
    out: Path,
    agent: Any,
    envs: Mapping[str, Any],
    plans: Mapping[str, Sequence[int]],
    answers: Mapping[str, Mapping[int, str]],
    bar: Any,
) -> Iterator[bytes]:
    """Play the episodes; yield each as a line of JSON, and write its images."""
    for task, env in envs.items():
        texts = [answers[task][index] for index in plans[task]] if answers else None
        for episode in play(env, plans[task], _player(agent, env, texts)):
            sample = env.unwrapped.dataset[episode.index]
            names = [f"{IMAGES}/{task}-{episode.index:05d}-{number}.png" for number in range(len(sample.images))]
            for name, image in zip(names, sample.images, strict=True):
                _write_image(out / name, image)
            row = {"key": sample.key, "task": task, "split": env.unwrapped.dataset.split, "images": names}
            row["reward"] = sum(step.reward for step in episode.steps)
            yield f"{run_folder.to_json(row | _describe(env, episode, sample))}\n".encode()
            bar.update()


def _player(agent: Any, env: Any, answers: Sequence[str] | None) -> Player:
    """Build the player of stored answers if there are any, else of the agent, which may search."""
    from maskgym.experiments.evaluation import evaluation, mask_evaluation
    from maskgym.experiments.evaluation.batches import first_rows

    base = env.unwrapped
    if answers is not None:
        if mask_evaluation.is_drawn(env):
            return mask_evaluation.repeat(env, answers)
        if not evaluation.is_clicked(env):
            return lambda start, count: lambda step, observations: answers[start : start + count]
        found = [_read_clicks(text, base.label_source) for text in answers]
        return lambda start, count: lambda step, observations: [a[step] for a in found[start : start + count]]
    if hasattr(agent, "search"):
        return lambda start, count: _search(agent, env, count)
    return lambda start, count: lambda step, observations: agent.act(first_rows(observations, count), greedy=True)


def _search(agent: Any, env: Any, count: int) -> Chooser:
    """Build a chooser from an agent's search from the current states."""
    base = env.unwrapped
    found = [
        _actions(state.patches, state.labels[-base.horizon :], base.label_source) for state in agent.search(env)[:count]
    ]
    return lambda step, observations: [actions[step] for actions in found]


def _read_clicks(text: str, label: str) -> list[Any]:
    """Convert a text of clicks, such as ``27+ 30-``, to actions."""
    words = text.split()
    return _actions([int(word[:-1]) for word in words], [int(word[-1] == "+") for word in words], label)


def _actions(patches: Sequence[int], labels: Sequence[int], label: str) -> list[Any]:
    """Convert clicks to actions of an environment with this ``label``."""
    return list(zip(patches, labels, strict=True)) if label == "policy" else list(patches)


def _describe(env: Any, episode: Episode, sample: Any) -> dict[str, Any]:
    """Build the keys of an episode's line that depend on its kind of action."""
    from maskgym.experiments.evaluation import evaluation, mask_evaluation

    if mask_evaluation.is_drawn(env):
        return {"need": episode.observation["need"], "steps": [_drawn(step) for step in episode.steps]}
    if evaluation.is_clicked(env):
        return _describe_clicks(env.unwrapped, episode, sample.images[0].shape[1::-1])
    (step,) = episode.steps
    content = [
        *({"type": "image"} for _ in sample.images),
        {"type": "text", "text": episode.observation["instruction"]},
    ]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": step.action}],
        "reward_terms": step.info["reward_terms"],
        "expressions": list(step.info["expressions"]),
        "masks": [[encode(mask) for mask in masks] for masks in step.info["masks"]],
    }


def _describe_clicks(base: Any, episode: Episode, size: Sequence[int]) -> dict[str, Any]:
    """Build the keys of a click episode's line, for an image of this (width, height)."""
    need = {"need": episode.steps[0].info["need"]} if "need" in episode.steps[0].info else {}
    prompts = [
        {"point": [float(v) for v in np.array([x, y]) / base.image_size * size], "label": label}
        for x, y, label in episode.prompts
    ]
    steps = [
        {
            "patch": int(np.ravel(step.action)[0]),
            "point": [float(value) for value in step.info["point"]],
            "label": int(step.info["label"]),
            **_outcome(step),
        }
        for step in episode.steps
    ]
    return {**need, "grid": base.grid, "prompts": prompts, "steps": steps}


def _drawn(step: Step) -> dict[str, Any]:
    return {"action": encode(step.action > 0.5), **_outcome(step)}


def _outcome(step: Step) -> dict[str, Any]:
    """Build the reward, its terms, the IoU and the mask of a step with one mask."""
    return {
        "reward": step.reward,
        "reward_terms": step.info["reward_terms"],
        "iou": float(step.info["iou"]),
        "mask": encode(step.info["masks"][0][0]),
    }


def _prompts(env: Any) -> list[tuple[tuple[float, float, int], ...]]:
    """Return the initial clicks of each sub-environment's episode; none if the environment takes no clicks."""
    if not hasattr(env.unwrapped, "get_state"):
        return [()] * env.num_envs
    return [
        tuple((float(x), float(y), int(label)) for (x, y), label in zip(state.points, state.labels, strict=True))
        for state in env.unwrapped.get_state()
    ]


def _row(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Return the info of one sub-environment."""
    return {
        name: _row(value, i) if isinstance(value, dict) else value[i]
        for name, value in infos.items()
        if not name.startswith("_") and infos[f"_{name}"][i]
    }


def _write_image(file: Path, image: np.ndarray) -> None:
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    run_folder.write(file, stream.getvalue())
