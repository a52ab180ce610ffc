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

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image
from tqdm import tqdm

from maskgym.agents.base import Agent
from maskgym.aliases import Config, JsonObject
from maskgym.data import SPLITS, Sample
from maskgym.data.run_lengths import encode
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluation, rollout
from maskgym.experiments.evaluation.rollout import Episode, Step
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.experiments.wiring.command import Parser

if TYPE_CHECKING:
    import datasets

EPISODES, IMAGES = "episodes.jsonl", "images"


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
        indices = list(answers[task]) if stored else list(range(unwrap(env, SampleVectorEnv).num_samples))
        plans[task] = [indices[place] for place in evaluation.held_out(len(indices), samples or len(indices))]
    with tqdm(total=sum(map(len, plans.values())), desc="export", unit="episode", disable=None) as bar:
        run_folder.write(out / EPISODES, b"".join(_lines(out, agent, envs, plans, answers, bar)))
    return bar.total


def read(out: str | Path) -> datasets.Dataset:
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


def _open(config: Config, folder: Path, split: str, with_weights: bool) -> tuple[Agent, dict[str, VectorEnv]]:
    """Load the trained agent of a run, and its environments of a split by task."""
    built = build.untrained(config, folder)
    if with_weights or "recalibration" in built.parts:  # it labels clicks, and is trained with the policy
        built.agent.load(folder / run_folder.POLICY)
    return built.agent, {task: build.make_env(config, task, split, built.parts) for task in built.envs}


def _stored(folder: Path, envs: Mapping[str, VectorEnv]) -> dict[str, dict[int, str]]:
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
        dataset = unwrap(envs[task], SampleVectorEnv).dataset
        if index >= len(dataset) or dataset[index].key != row["key"]:
            raise UserError(f"{file}: sample {index} of {task} is no longer '{row['key']}': the data has changed")
        found[task][index] = row["after"]["answer"]
    return found


def _lines(
    out: Path,
    agent: Agent,
    envs: Mapping[str, VectorEnv],
    plans: Mapping[str, Sequence[int]],
    answers: Mapping[str, Mapping[int, str]],
    bar: tqdm,
) -> Iterator[bytes]:
    """Play the episodes; yield each as a line of JSON, and write its images."""
    for task, env in envs.items():
        dataset = unwrap(env, SampleVectorEnv).dataset
        player = rollout.greedy(agent, env)
        if answers:
            player = rollout.replay(env, [answers[task][index] for index in plans[task]])
        for episode in rollout.play(env, plans[task], player):
            sample = dataset[episode.index]
            names = [f"{IMAGES}/{task}-{episode.index:05d}-{number}.png" for number in range(len(sample.images))]
            for name, image in zip(names, sample.images, strict=True):
                _write_image(out / name, image)
            row = {"key": sample.key, "task": task, "split": dataset.split, "images": names, "reward": episode.reward}
            yield f"{run_folder.to_json({**row, **_describe(env, episode, sample)})}\n".encode()
            bar.update()


def _describe(env: VectorEnv, episode: Episode, sample: Sample) -> JsonObject:
    """Build the keys of an episode's line that depend on its kind of action."""
    kind = unwrap(env, SampleVectorEnv).action_kind
    if kind == "masks":
        return {"need": episode.observation["need"], "steps": [_drawn(step) for step in episode.steps]}
    if kind == "clicks":
        return _describe_clicks(unwrap(env, PointPromptVectorEnv), episode, sample.images[0].shape[1::-1])
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


def _describe_clicks(base: PointPromptVectorEnv, episode: Episode, size: Sequence[int]) -> JsonObject:
    """Build the keys of a click episode's line, for an image of this (width, height)."""
    need = {"need": episode.steps[0].info["need"]} if "need" in episode.steps[0].info else {}
    prompts = [
        {"point": [float(v) for v in np.array([x, y]) / base.image_size * size], "label": label}
        for x, y, label in episode.prompts
    ]
    steps = [
        {
            "patch": rollout.patch_of(step),
            "point": [float(value) for value in step.info["point"]],
            "label": int(step.info["label"]),
            **_outcome(step),
        }
        for step in episode.steps
    ]
    return {**need, "grid": base.grid, "prompts": prompts, "steps": steps}


def _drawn(step: Step) -> JsonObject:
    return {"action": encode(np.asarray(step.action) > 0.5), **_outcome(step)}


def _outcome(step: Step) -> JsonObject:
    """Build the reward, its terms, the IoU and the mask of a step with one mask."""
    return {
        "reward": step.reward,
        "reward_terms": step.info["reward_terms"],
        "iou": float(step.info["iou"]),
        "mask": encode(step.info["masks"][0][0]),
    }


def _write_image(file: Path, image: np.ndarray) -> None:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    run_folder.write(file, stream.getvalue())
