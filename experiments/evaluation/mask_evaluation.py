"""Outcomes and scores of episodes of masks: saliency, referring segmentation and ranking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym.aliases import JsonObject
from maskgym.data import Sample
from maskgym.envs.base import unwrap
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.experiments.evaluation.rollout import Episode
from maskgym.experiments.evaluation.scored import Evaluation, Scored, numbers_of
from maskgym.metrics import RankingScores, ReferringScores, SaliencyScores, mae, s_measure
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks, union


def outcome(env: VectorEnv, episode: Episode, text: str) -> tuple[Transition, dict[str, float]]:
    """Compute the final transition and the numbers of an episode.

    The masks of the transition are the soft map or, for ranking, the detected objects in order. For one mask, the
    numbers are the reward, its terms and the IoU. For ranking, they are the return, the ``steps``, the objects
    ``found`` (at IoU 0.5), and the mean IoU of the steps.

    Args:
        env: Vector environment of masks.
        episode: Episode that was played in it.
        text: Its actions as text.
    """
    base = unwrap(env, MaskVectorEnv)
    sample, infos = base.dataset[episode.index], [step.info for step in episode.steps]
    numbers: dict[str, float] = {"reward": episode.reward}
    if not isinstance(base, RankingVectorEnv):
        (info,) = infos
        numbers |= {name: float(value) for name, value in info["reward_terms"].items()}
        return Transition("sod", sample, text, (info["soft"][0],)), numbers | {"iou": float(info["iou"])}
    masks = [info["masks"][0] for info in infos]
    detected = np.concatenate([mask for mask in masks if mask.any()] or [masks[0][:0]])
    numbers |= {
        "steps": float(len(infos)),
        "found": float(infos[-1]["found"]),
        "iou": float(np.mean([float(info["iou"]) for info in infos])),
    }
    return Transition("ranking", sample, text, (detected,)), numbers


class Masks:
    """Scores of episodes of masks.

    One mask has the measures of saliency (soft) and of referring segmentation (above 0.5). Ranking has SOR, SA-SOR and
    the MAE of rank maps. Measures that are undefined on every sample are left out.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.ranking = isinstance(env.unwrapped, RankingVectorEnv)

    def measure(self, transition: Transition, numbers: Mapping[str, float]) -> Scored:
        """Compute what one episode adds."""
        row, answer = {"key": transition.sample.key, **numbers}, str(transition.action)
        if self.ranking:
            ranks = _measure_ranked(transition.sample, transition.masks[0])
            return Scored({**row, "mae": ranks["mae"]}, answer, [], ranks)
        ((predictions, targets),) = scored_masks(transition)
        pair = union(predictions), targets.any(axis=0)
        row |= {"s_measure": float(s_measure(*pair)), "mae": float(mae(*pair))}
        return Scored(row, answer, [numbers_of(predictions, targets)])

    def collect(self, scored: Iterable[Scored]) -> Evaluation:
        """Compute the scores of the set."""
        pixels, referring, ranks = SaliencyScores(), ReferringScores(), RankingScores()
        per_sample: list[JsonObject] = []
        answers: list[str] = []
        for one in scored:
            per_sample.append(one.row)
            answers.append(one.answer)
            if self.ranking:
                ranks.add_values(one.ranks)
            for image in one.images:
                pixels.add_measures(image.pixels)
                referring.add_areas(*image.areas)
        scores = {name: float(np.mean([row[name] for row in per_sample])) for name in per_sample[0] if name != "key"}
        over_set = ranks.result() if self.ranking else pixels.result() | referring.result()
        finite = {name: float(value) for name, value in over_set.items() if np.isfinite(value)}
        return Evaluation(scores | finite, per_sample, answers)


def _measure_ranked(sample: Sample, detected: np.ndarray) -> dict[str, float]:
    """Compute the values of a ranking episode; void pixels are excluded and the first detection is the most salient."""
    assert sample.ranks is not None  # the environment checks that samples have ranks
    kept = np.ones(detected.shape[1:], bool) if sample.void is None else ~sample.void[0]
    targets = sample.masks[0] & kept
    left = targets.any(axis=(1, 2))
    return RankingScores.measure(detected & kept, -np.arange(len(detected)), targets[left], sample.ranks[0][left])
