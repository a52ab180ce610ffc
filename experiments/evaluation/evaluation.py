"""Evaluation of greedy answers, clicks or masks on held-out samples, with every measure of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from maskgym import rewards
from maskgym.envs.need_point import UserNeedPointVectorEnv
from maskgym.experiments.evaluation import mask_evaluation
from maskgym.experiments.evaluation.batches import chunks, filled, first_rows
from maskgym.experiments.evaluation.mask_evaluation import is_drawn
from maskgym.metrics import InstanceScores, ReferringScores, SaliencyScores
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks

MEASURES = {  # registered names of rewards
    "sod": ("s_measure", "iou", "format"),
    "sis": ("iasm", "iasm_published", "s_measure", "iou", "format"),
    "cosod": ("s_measure", "iou", "format"),
}
SET_MEASURES = (
    *("mae", "f_mean", "f_max", "f_adaptive", "e_mean", "e_max", "e_adaptive"),
    *("ber_mean", "ber_pooled", "weighted_f"),
)
AP_THRESHOLDS = (0.5, 0.7)
CLICKS_SHOWN = (1, 5, 10, 15, 20)  # numbers of clicks after which the IoU is reported
CLICKS_WANTED = {"noc85": 0.85, "noc90": 0.90}  # IoU thresholds of the number-of-clicks measures


@dataclass(frozen=True)
class Evaluation:
    """Scores and answers of an agent on a set of samples.

    Attributes:
        scores: Measures of the whole set: the means of `per_sample`, and measures that are defined on a set only.
        per_sample: ``key`` and named numbers of each sample: the reward, its terms, the task's measures,
            ``expressions`` (their number) and ``characters`` (length of the answer).
        answers: The answer to each sample. Clicks are text such as ``27+ 30-``, patch and label in order. Masks are
            JSON, one run-length code per step.
    """

    scores: dict[str, float]
    per_sample: list[dict[str, Any]]
    answers: list[str]


def evaluate(agent: Any, env: VectorEnv, indices: Sequence[int], label: str = "evaluate") -> Evaluation:
    """Evaluate the greedy answers of an agent on samples.

    Args:
        agent: Object with ``act(observations, greedy=True) -> answers``. An agent that searches with the ground truth
            has ``search(env)`` instead, which returns the final states of the episodes.
        env: Vector environment that resets by index, with ``autoreset_mode=DISABLED``. It receives ``num_envs``
            answers at a time.
        indices: Indices of the samples, at least one.
        label: Name of the progress bar.

    Raises:
        UserError: If a sample cannot be read or scored.
    """
    with tqdm(total=len(indices), desc=label, unit="sample", disable=None, leave=False) as bar:
        played = episodes(agent, env, indices)
        if is_clicked(env):
            return _score_clicks(env, played, bar)
        if is_drawn(env):
            return Evaluation(*mask_evaluation.score(env, played, bar))
        return _score_texts(env, played, bar)


def episodes(agent: Any, env: VectorEnv, indices: Sequence[int]) -> Iterator[tuple[Transition, dict[str, float]]]:
    """Yield the final transition and the numbers of the greedy episode of each sample; arguments as in `evaluate`."""
    if is_clicked(env):
        yield from _play_clicks(env, indices, partial(_decide, agent, env))
    elif is_drawn(env):
        yield from mask_evaluation.play(env, indices, mask_evaluation.decide(agent))
    else:
        for chunk in chunks(indices, env.num_envs):
            observations, _ = env.reset(options={"index": filled(chunk, env.num_envs)})
            yield from _play_texts(env, chunk, agent.act(first_rows(observations, len(chunk)), greedy=True))


def _score_texts(env: VectorEnv, played: Iterable[tuple[Transition, dict[str, float]]], bar: tqdm) -> Evaluation:
    task = env.unwrapped.task
    measures = [rewards.make(name) for name in MEASURES[task]]
    per_sample: list[dict[str, Any]] = []
    answers: list[str] = []
    pixels, instances = SaliencyScores(), InstanceScores(AP_THRESHOLDS)
    for transition, numbers in played:
        row = {"key": transition.sample.key, **numbers}
        for measure in measures:
            row |= {name: float(values[0]) for name, values in measure([transition])[1].items()}
        assert transition.answer is not None  # `episodes` parses one
        row |= {"expressions": len(transition.answer.expressions), "characters": len(transition.answer.text)}
        per_sample.append(row)
        answers.append(transition.action)
        for predictions, targets in scored_masks(transition):
            pixels.add(predictions.any(axis=0), targets.any(axis=0))
            if task == "sis":
                instances.add(predictions, targets)
        bar.update()
    scores = {name: float(np.mean([row[name] for row in per_sample])) for name in per_sample[0] if name != "key"}
    over_set = pixels.result()
    scores |= {name: over_set[name] for name in SET_MEASURES}
    if task == "sis":
        pooled = instances.result()
        scores |= {f"ap{100 * at:.0f}": pooled[f"ap{100 * at:.0f}"] for at in AP_THRESHOLDS}
    return Evaluation(scores, per_sample, answers)


def _score_clicks(env: VectorEnv, episodes: Iterable[tuple[Transition, dict[str, float]]], bar: tqdm) -> Evaluation:
    measure, per_sample, answers = rewards.make("s_measure"), [], []
    pixels, referring = SaliencyScores(), ReferringScores()
    for transition, numbers in episodes:
        row = {"key": transition.sample.key, **numbers, "s_measure": float(measure([transition])[0][0])}
        per_sample.append(row)
        answers.append(transition.action)
        for predictions, targets in scored_masks(transition):
            pixels.add(predictions.any(axis=0), targets.any(axis=0))
            referring.add(predictions.any(axis=0), targets.any(axis=0))
        bar.update()
    scores = {name: float(np.mean([row[name] for row in per_sample])) for name in per_sample[0] if name != "key"}
    over_set = pixels.result()
    scores |= {name: over_set[name] for name in SET_MEASURES}
    told = isinstance(env.unwrapped, UserNeedPointVectorEnv)  # a need makes it referring segmentation as well
    return Evaluation(scores | (referring.result() if told else {}), per_sample, answers)


def play(
    env: VectorEnv, indices: Sequence[int], answers: Sequence[str]
) -> Iterator[tuple[Transition, dict[str, float]]]:
    """Yield the final transition of each sample's answer, with the reward and its terms.

    For clicks, the transition has the mask after the last click. The numbers are the return, the IoU at the end and
    after `CLICKS_SHOWN` clicks, the number of clicks until `CLICKS_WANTED` (the horizon if it is never reached), and
    the share of repeated clicks. Masks are played by `mask_evaluation.play`. Stored masks are binary, so soft measures
    may differ from those of the original evaluation.
    """
    if is_drawn(env):
        yield from mask_evaluation.play(env, indices, mask_evaluation.repeat(env, answers))
    elif is_clicked(env):
        yield from _play_clicks(env, indices, partial(_repeat, env, answers))
    else:
        yield from _play_texts(env, indices, answers)


def _play_texts(
    env: VectorEnv, indices: Sequence[int], answers: Sequence[str]
) -> Iterator[tuple[Transition, dict[str, float]]]:
    base: Any = env.unwrapped
    for chunk, texts in zip(chunks(indices, env.num_envs), chunks(answers, env.num_envs), strict=True):
        env.reset(options={"index": filled(chunk, env.num_envs)})
        _, totals, _, _, infos = env.step((*texts, *[texts[-1]] * (env.num_envs - len(texts))))
        for i, (index, text) in enumerate(zip(chunk, texts, strict=True)):
            terms = {name: float(infos["reward_terms"][name][i]) for name in infos["reward_terms"] if name[0] != "_"}
            answer = rewards.parse(text, base.task, base.reasoning)
            transition = Transition(base.task, base.dataset[index], text, infos["masks"][i], answer=answer)
            yield transition, {"reward": float(totals[i]), **terms}


# A policy for one chunk of episodes: it maps the step and the observations to actions.
Chooser = Callable[[int, dict[str, np.ndarray]], np.ndarray]


def _play_clicks(
    env: VectorEnv, indices: Sequence[int], decide: Callable[[int, int], Chooser]
) -> Iterator[tuple[Transition, dict[str, float]]]:
    """Play each sample; ``decide`` maps the start and length of a chunk that was reset to its `Chooser`."""
    base: Any = env.unwrapped
    for number, chunk in enumerate(chunks(indices, env.num_envs)):
        observations, _ = env.reset(options={"index": filled(chunk, env.num_envs)})
        choose = decide(number * env.num_envs, len(chunk))
        totals, ious, repeats, words = np.zeros(env.num_envs), [], [], []
        for step in range(base.horizon):
            actions = np.asarray(choose(step, observations))
            observations, values, _, _, infos = env.step(actions)
            totals += values
            ious.append(infos["iou"])
            repeats.append(infos["repeated"])
            patches = actions.reshape(env.num_envs, -1)[:, 0]
            words.append([f"{p}{'+' if label else '-'}" for p, label in zip(patches, infos["label"], strict=True)])
        for i, index in enumerate(chunk):
            numbers = {"reward": float(totals[i]), "repeated": float(np.mean([step[i] for step in repeats]))}
            numbers |= _click_quality([float(step[i]) for step in ious])
            text = " ".join(step[i] for step in words)
            yield Transition(base.task, base.dataset[index], text, infos["masks"][i]), numbers


def _decide(agent: Any, env: VectorEnv, start: int, count: int) -> Chooser:
    """Build a chooser from an agent, which acts greedily or searches from the current states."""
    if not hasattr(agent, "search"):
        return lambda step, observations: agent.act(first_rows(observations, env.num_envs), greedy=True)
    base: Any = env.unwrapped
    found = [_actions(state.patches, state.labels[-base.horizon :], base.label) for state in agent.search(env)]
    return lambda step, observations: np.array([actions[step] for actions in found])


def _repeat(env: VectorEnv, answers: Sequence[str], start: int, count: int) -> Chooser:
    """Build a chooser that replays the clicks of stored texts."""
    base: Any = env.unwrapped
    texts = [answers[place] for place in filled(range(start, start + count), env.num_envs)]
    found = [_actions(*_read_clicks(text), base.label) for text in texts]
    return lambda step, observations: np.array([actions[step] for actions in found])


def _click_quality(ious: Sequence[float]) -> dict[str, float]:
    """Compute the click measures of one episode from its IoU after each click."""
    found = {"iou": ious[-1]}
    found |= {f"iou@{count}": ious[count - 1] for count in CLICKS_SHOWN if count <= len(ious)}
    for name, wanted in CLICKS_WANTED.items():
        found[name] = float(next((step for step, value in enumerate(ious, start=1) if value >= wanted), len(ious)))
    return found


def is_clicked(env: VectorEnv) -> bool:
    """Check whether an episode is a sequence of clicks, one per step, instead of one text."""
    return hasattr(env.unwrapped, "horizon")


def click_points(env: VectorEnv, transition: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Return the clicks of an episode from `play`: float (T, 2), (x, y) in pixels of its image, and their labels."""
    base: Any = env.unwrapped
    patches, labels = _read_clicks(transition.action)
    height, width = transition.sample.images[0].shape[:2]
    return base.centres()[patches] / base.image_size * (width, height), np.array(labels)


def _actions(patches: Iterable[int], labels: Iterable[int], label: str) -> list[Any]:
    """Convert clicks to actions of an environment with this ``label``."""
    return list(zip(patches, labels, strict=True)) if label == "policy" else list(patches)


def _read_clicks(text: str) -> tuple[list[int], list[int]]:
    """Parse a text of clicks into patches and labels."""
    words = text.split()
    return [int(word[:-1]) for word in words], [int(word[-1] == "+") for word in words]


def held_out(size: int, samples: int) -> list[int]:
    """Select the indices of at most ``samples`` samples, spread evenly over a data set of ``size``."""
    count = min(size, samples)
    return [position * size // count for position in range(count)]


def bootstrap_interval(values: Sequence[float], level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean of some values, with a fixed seed.

    Args:
        values: Values, at least one.
        level: Share of the resampled means inside the interval.
        resamples: Number of sets drawn with replacement.
    """
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(task: str, indices: Sequence[int], before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """Build one row per sample from two evaluations: ``task``, ``index``, ``key``, ``before``, ``after``.

    Both evaluations have the same samples in the same order. ``before`` and ``after`` hold the answer and the numbers.
    """
    rows = []
    for i, index in enumerate(indices):
        sides = {
            name: {"answer": found.answers[i], **{n: v for n, v in found.per_sample[i].items() if n != "key"}}
            for name, found in (("before", before), ("after", after))
        }
        rows.append({"task": task, "index": index, "key": before.per_sample[i]["key"], **sides})
    return rows
