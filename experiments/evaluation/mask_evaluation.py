"""Evaluation of agents that act with masks: measures of saliency, referring segmentation and ranking."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from pycocotools import mask as coco_mask
from tqdm import tqdm

from maskgym.data.readers.coco import decode_run_lengths
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.experiments.evaluation.batches import chunks, filled, first_rows
from maskgym.metrics import RankingScores, ReferringScores, SaliencyScores, mae, s_measure
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks, union

# A policy for one chunk of episodes: it maps the step and the observations to one map per episode.
Chooser = Callable[[int, Any], Sequence[np.ndarray]]
# The final transition of an episode, whose action is all actions as text, and the numbers of the episode.
Played = tuple[Transition, dict[str, float]]


def is_drawn(env: VectorEnv) -> bool:
    """Check whether actions are masks."""
    return isinstance(env.unwrapped, MaskVectorEnv)


def decide(agent: Any) -> Callable[[int, int], Chooser]:
    """Build the greedy choosers of an agent, which sees the samples of a chunk without the padding."""
    return lambda start, count: lambda step, observations: agent.act(first_rows(observations, count), greedy=True)


def repeat(env: VectorEnv, answers: Sequence[str]) -> Callable[[int, int], Chooser]:
    """Build choosers that replay the texts of `play` as binary masks."""
    base: Any = env.unwrapped
    blank = np.zeros((base.image_size, base.image_size), np.float32)

    def begin(start: int, count: int) -> Chooser:
        episodes = [decode_masks(text) for text in answers[start : start + count]]
        return lambda step, observations: [masks[step] if step < len(masks) else blank for masks in episodes]

    return begin


def play(env: VectorEnv, indices: Sequence[int], begin: Callable[[int, int], Chooser]) -> Iterator[Played]:
    """Play each sample to the end; yield the final transition and the numbers.

    The masks of the transition are the soft map or, for ranking, the detected objects in order. Its action is the text
    of all actions from `encode_masks`. For one mask, the numbers are the reward, its terms and the IoU. For ranking,
    they are the return, the ``steps``, the objects ``found`` (at IoU 0.5), and the mean IoU of the steps.

    Args:
        env: Vector environment of masks with ``autoreset_mode=DISABLED``.
        indices: Indices of the samples.
        begin: Function from the start and length of a chunk that was reset to its `Chooser`.
    """
    base: Any = env.unwrapped
    steps = getattr(base, "steps", 1)
    for number, chunk in enumerate(chunks(indices, env.num_envs)):
        wanted = filled(chunk, env.num_envs)
        observations, _ = env.reset(options={"index": wanted})
        choose = begin(number * env.num_envs, len(chunk))
        episodes: list[list[dict[str, Any]]] = [[] for _ in chunk]
        over = np.zeros(env.num_envs, bool)
        for step in range(steps):
            actions = np.asarray(choose(step, observations), np.float32)
            padded = np.concatenate([actions, np.repeat(actions[-1:], env.num_envs - len(actions), axis=0)])
            observations, values, terminated, truncated, infos = env.step(padded)
            for i in np.flatnonzero(~over[: len(chunk)]):
                episodes[i].append(_step(infos, i) | {"action": actions[i], "reward": float(values[i])})
            over |= terminated | truncated
            if over[: len(chunk)].all():
                break
            # Finished episodes must be reset before the next step; their later results are ignored.
            done = terminated | truncated
            if done.any():
                observations, _ = env.reset(options={"index": wanted, "reset_mask": done})
        for index, episode in zip(chunk, episodes, strict=True):
            yield _whole(base, base.dataset[index], episode)


def score(env: VectorEnv, episodes: Iterable[Played], bar: tqdm) -> tuple[dict[str, float], list[dict], list[str]]:
    """Compute the scores of the whole set, the numbers of each sample and the answers from `play`.

    One mask has the measures of saliency (soft) and of referring segmentation (above 0.5). Ranking has SOR, SA-SOR and
    the MAE of rank maps. Measures that are undefined on every sample are left out.
    """
    ranking = isinstance(env.unwrapped, RankingVectorEnv)
    pixels, referring, ranks = SaliencyScores(), ReferringScores(), RankingScores()
    per_sample: list[dict[str, Any]] = []
    answers: list[str] = []
    for transition, numbers in episodes:
        row: dict[str, Any] = {"key": transition.sample.key, **numbers}
        if ranking:
            row["mae"] = _add_ranked(ranks, transition)["mae"]
        else:
            ((predictions, targets),) = scored_masks(transition)
            pair = union(predictions), targets.any(axis=0)
            pixels.add(*pair)
            referring.add(*pair)
            row |= {"s_measure": float(s_measure(*pair)), "mae": float(mae(*pair))}
        per_sample.append(row)
        answers.append(transition.action)
        bar.update()
    scores = {name: float(np.mean([row[name] for row in per_sample])) for name in per_sample[0] if name != "key"}
    over_set = ranks.result() if ranking else pixels.result() | referring.result()
    return scores | {n: float(v) for n, v in over_set.items() if np.isfinite(v)}, per_sample, answers


def encode_masks(masks: Sequence[np.ndarray]) -> str:
    """Encode maps (S, S), thresholded at 0.5, as JSON: a list of COCO run-length codes.

    Example:
        >>> text = encode_masks([np.eye(4), np.zeros((4, 4))])
        >>> [int(mask.sum()) for mask in decode_masks(text)]
        [4, 0]
    """
    codes = [coco_mask.encode(np.asfortranarray((mask > 0.5).astype(np.uint8))) for mask in masks]
    return json.dumps([{"size": code["size"], "counts": code["counts"].decode()} for code in codes])


def decode_masks(text: str) -> list[np.ndarray]:
    """Decode the masks of `encode_masks`, float32 (S, S), 0 or 1."""
    return [decode_run_lengths(c["counts"], tuple(c["size"])).astype(np.float32) for c in json.loads(text)]


def _step(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Extract the reward terms, the masks and the numbers of a step of one sub-environment."""
    terms = {name: float(values[i]) for name, values in infos["reward_terms"].items() if name[0] != "_"}
    kept: dict[str, Any] = {name: float(infos[name][i]) for name in ("iou", "found") if name in infos}
    return {"terms": terms, "mask": infos["masks"][i][0], "soft": infos["soft"][i][0], **kept}


def _whole(base: Any, sample: Any, episode: Sequence[dict[str, Any]]) -> Played:
    """Build the final transition and the numbers of an episode from its steps."""
    text = encode_masks([step["action"] for step in episode])
    numbers: dict[str, float] = {"reward": sum(step["reward"] for step in episode)}
    if not isinstance(base, RankingVectorEnv):
        (step,) = episode
        return Transition("sod", sample, text, (step["soft"],)), numbers | step["terms"] | {"iou": step["iou"]}
    detected = np.concatenate([step["mask"] for step in episode if step["mask"].any()] or [episode[0]["mask"][:0]])
    numbers |= {
        "steps": float(len(episode)),
        "found": episode[-1]["found"],
        "iou": float(np.mean([step["iou"] for step in episode])),
    }
    return Transition("ranking", sample, text, (detected,)), numbers


def _add_ranked(ranks: RankingScores, transition: Transition) -> dict[str, float]:
    """Add a ranking episode to the scores; void pixels are excluded and the first detection is the most salient."""
    sample, detected = transition.sample, transition.masks[0]
    assert sample.ranks is not None  # the environment checks that samples have ranks
    kept = np.ones(detected.shape[1:], bool) if sample.void is None else ~sample.void[0]
    targets = sample.masks[0] & kept
    left = targets.any(axis=(1, 2))
    return ranks.add(detected & kept, -np.arange(len(detected)), targets[left], sample.ranks[0][left])
