"""Samples of a run: every held-out answer before and after training, and pictures of those that changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image

from maskgym.aliases import JsonObject
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.envs.rendering import clicks_picture, picture
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.evaluation.evaluation import Evaluation
from maskgym.experiments.wiring import run_folder
from maskgym.rewards import Transition


def write(
    folder: Path,
    envs: Mapping[str, VectorEnv],
    indices: Mapping[str, Sequence[int]],
    before: Mapping[str, Evaluation],
    after: Mapping[str, Evaluation],
    pictures: int,
) -> None:
    """Write ``samples/answers.jsonl`` and pictures into a run folder.

    Args:
        folder: Folder of the run.
        envs: Held-out environments by task.
        indices: Indices of the evaluated samples by task.
        before: Evaluation before training by task.
        after: Evaluation after training by task.
        pictures: Number of pictures per task.
    """
    answers = []
    for task, env in envs.items():
        rows = evaluation.compare(task, indices[task], before[task], after[task])
        by_index = {row["index"]: row for row in rows}
        shown = most_moved(rows, pictures)
        for number, index in enumerate(shown):
            by_index[index]["picture"] = f"{task}-{number:02d}.png"
        _write_pictures(folder / run_folder.SAMPLES, env, [by_index[index] for index in shown])
        answers += rows
    run_folder.write(folder / run_folder.ANSWERS, "".join(f"{run_folder.to_json(row)}\n" for row in answers))


def most_moved(rows: Sequence[JsonObject], count: int) -> list[int]:
    """Select the indices of the samples whose reward fell most, then as many of those where it rose most."""
    ordered = sorted(rows, key=lambda row: row["after"]["reward"] - row["before"]["reward"])
    fell = ordered[: -(-min(count, len(ordered)) // 2)]
    rose = ordered[len(fell) :][::-1][: count - len(fell)]
    return [row["index"] for row in (*fell, *rose)]


def _write_pictures(folder: Path, env: VectorEnv, rows: Sequence[JsonObject]) -> None:
    """Draw the image, the ground truth and the masks before and after training of some samples."""
    before, after = (
        [
            transition
            for transition, _ in evaluation.play(env, [row["index"] for row in rows], [r[when]["answer"] for r in rows])
        ]
        for when in ("before", "after")
    )
    for row, *sides in zip(rows, before, after, strict=True):
        stream = BytesIO()
        Image.fromarray(_draw(env, *sides)).save(stream, "PNG")
        run_folder.write(folder / row["picture"], stream.getvalue())


def _draw(env: VectorEnv, before: Transition, after: Transition) -> np.ndarray:
    sides, kind = {"before": before, "after": after}, unwrap(env, SampleVectorEnv).action_kind
    if kind == "clicks":
        base = unwrap(env, PointPromptVectorEnv)
        episodes = {when: (side.masks[0], *evaluation.click_points(base, side)) for when, side in sides.items()}
        return clicks_picture(before.sample, episodes)
    if kind == "masks":
        drawn = {when: (side.masks[0] > 0.5,) for when, side in sides.items()}
        return picture(before.sample, drawn, before.sample.need)
    panels = {when: side.masks for when, side in sides.items()}
    asked = f"query: {before.sample.need}\n" if before.task == "refer" else ""
    text = f"{asked}before: {before.action}\nafter: {after.action}"
    return picture(before.sample, panels, text, {when: side.objects for when, side in sides.items()})
