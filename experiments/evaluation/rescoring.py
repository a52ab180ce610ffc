"""Hold the stored answers of a run against what they score now, and name the first sample that differs.

Answers may come from strangers: `read_answers` refuses what an environment cannot play before it is played, such as a
mask of a size that fills the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gymnasium.vector import VectorEnv

from maskgym.aliases import JsonObject
from maskgym.data import run_lengths
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.envs.text.base import MAX_TEXT
from maskgym.errors import UserError, brief
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.evaluation.evaluation import Evaluation

# Numbers are stored with all their digits: on the same kind of machine the difference is 0.
TOLERANCE = 1e-6
# Measures of a map above 0.5; the others are of the soft map, which a stored answer, a binary mask, lacks.
OF_BINARY = re.compile(r"iou|miou|oiou|n_acc|t_acc|p@0\.\d")
OF_BINARY_RANKED = re.compile(r"iou|mae|found|steps|(sa_)?sor(_mean|_photos)?")
CLICK = re.compile(r"[0-9]{1,6}[+-]")


@dataclass(frozen=True)
class Place:
    """A held-out sample of a run.

    Attributes:
        task: Its task.
        index: Its index in the data set of the task.
        key: Its key.
    """

    task: str
    index: int
    key: str

    def __str__(self) -> str:
        return f"sample '{self.key}' ({self.task}, index {self.index})"


def places(envs: Mapping[str, VectorEnv], most: int) -> list[Place]:
    """List the held-out samples of environments by task, at most so many of each."""
    found = []
    for task, env in envs.items():
        dataset = unwrap(env, SampleVectorEnv).dataset
        found += [Place(task, index, dataset[index].key) for index in evaluation.held_out(len(dataset), most)]
    return found


def check_samples(file: Path, rows: Sequence[JsonObject], expected: Sequence[Place]) -> None:
    """Check that the rows of ``answers.jsonl`` are of the expected samples, each once and in order.

    Raises:
        UserError: If one is missing, repeated, foreign or at another place; it names the line and the sample.
    """
    known, seen, found = set(expected), set[Place](), list[Place]()
    for number, row in enumerate(rows, start=1):
        place = Place(row["task"], row["index"], row["key"])
        if [type(part) for part in (place.task, place.index, place.key)] != [str, int, str]:
            raise UserError(f"{file}: line {number}: expected texts as task and key, and a whole number as index")
        if place not in known:
            raise UserError(f"{file}: line {number}: {place} is none of the level's held-out samples")
        if place in seen:
            raise UserError(f"{file}: line {number}: {place} is repeated: expected it once")
        seen.add(place)
        found.append(place)
    if missing := [place for place in expected if place not in seen]:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise UserError(f"{file}: {missing[0]}{more} is missing: expected {len(expected)} samples")
    for number, (place, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        if place != wanted:
            raise UserError(f"{file}: line {number}: {place}: expected {wanted}, in the order of the data")


def read_answers(file: Path, env: VectorEnv, rows: Sequence[JsonObject]) -> list[str]:
    """Read the answers after training of the rows of one task.

    Raises:
        UserError: If one is nothing that the environment can play; it names the sample.
    """
    return [_playable(f"{file}: sample '{row['key']}'", env, row["after"]["answer"]) for row in rows]


def _playable(where: str, env: VectorEnv, answer: object) -> str:
    """Check an answer; return it."""
    base = unwrap(env, SampleVectorEnv)
    if not isinstance(answer, str):
        raise UserError(f"{where}: answer: {brief(answer)}: expected a text")
    if isinstance(base, PointPromptVectorEnv):
        clicks, most = answer.split(" "), base.grid**2 - 1
        fits = all(CLICK.fullmatch(click) and int(click[:-1]) <= most for click in clicks)
        if not fits or len(clicks) != base.horizon:
            told = f"{base.horizon} clicks, patches from 0 to {most} with + or -"
            raise UserError(f"{where}: answer: {brief(answer)}: expected {told}")
    elif isinstance(base, MaskVectorEnv):
        if not _are_masks(answer, base):
            told = f"at most {base.horizon} run-length codes of {base.image_size}x{base.image_size} pixels"
            raise UserError(f"{where}: answer: {brief(answer)}: expected {told}")
    elif len(answer) > MAX_TEXT:
        raise UserError(f"{where}: answer: {len(answer):,} characters: expected at most {MAX_TEXT:,}")
    return answer


def _are_masks(answer: str, base: MaskVectorEnv) -> bool:
    """Check an answer of masks, without making them."""
    try:
        codes = json.loads(answer)
        size = [base.image_size, base.image_size]
        return (
            isinstance(codes, list)
            and 1 <= len(codes) <= base.horizon
            and all(run_lengths.is_code(code) and code["size"] == size for code in codes)
        )
    except (ValueError, RecursionError):
        return False


def is_binary(env: VectorEnv, name: str) -> bool:
    """Check whether a measure can be computed from stored answers, which hold binary masks."""
    if not isinstance(env.unwrapped, MaskVectorEnv):
        return True
    known = OF_BINARY_RANKED if isinstance(env.unwrapped, RankingVectorEnv) else OF_BINARY
    return known.fullmatch(name.rpartition("/")[2]) is not None


def compare(
    file: Path, env: VectorEnv, rows: Sequence[JsonObject], found: Evaluation, told: str, soft: bool = False
) -> None:
    """Compare the rows of one task with an evaluation of the same samples.

    Args:
        file: File of the rows, for errors.
        env: Environment of the evaluation.
        rows: Rows of ``answers.jsonl``.
        found: The evaluation.
        told: Words before the answer of the evaluation, for errors.
        soft: Whether the evaluation had the policy's own maps, so that measures of soft maps can be compared.

    Raises:
        UserError: If an answer or a number differs by more than `TOLERANCE`; it names the first sample.
    """
    for row, answer, now in zip(rows, found.answers, found.per_sample, strict=True):
        then, where = dict(row["after"]), f"{file}: sample '{row['key']}'"
        if then.pop("answer") != answer:
            raise UserError(f"{where}: {told} {brief(answer)}: stored is {brief(row['after']['answer'])}")
        numbers = {name: value for name, value in now.items() if name != "key"}
        if line := difference(env, then, numbers, soft):
            raise UserError(f"{where}: {line}")


def difference(env: VectorEnv, then: Mapping[str, object], now: Mapping[str, float], soft: bool = False) -> str | None:
    """Tell in one line which stored number is not what it is now; None if all are; arguments as of `compare`."""
    for name in dict.fromkeys([*now, *then]):
        if name not in now or name not in then:
            missing = "stored" if name not in then else "computed"
            return f"{name if name in now else brief(name)}: is not {missing}: expected {', '.join(now)}"
        if (soft or is_binary(env, name)) and not _equal(then[name], now[name]):
            value = "null" if then[name] is None else then[name] if _is_number(then[name]) else brief(then[name])
            return f"{name}: stored is {value}, scored again it is {now[name]}"
    return None


def _equal(then: object, now: float) -> bool:
    """Compare a stored number with one of now; what is not finite is null in a file."""
    if then is None or not math.isfinite(now):
        return then is None and not math.isfinite(now)
    return _is_number(then) and abs(float(then) - now) <= TOLERANCE  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    """Check for a number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
