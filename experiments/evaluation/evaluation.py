"""Evaluation of greedy answers, clicks or masks on held-out samples, with every measure of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from maskgym import rewards
from maskgym.agents.base import Agent
from maskgym.agents.common import parallel
from maskgym.aliases import JsonObject
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.need_point import UserNeedPointVectorEnv
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.envs.text.base import TextVectorEnv
from maskgym.experiments.evaluation import mask_evaluation, rollout
from maskgym.experiments.evaluation.measures import CLICKS_SHOWN
from maskgym.experiments.evaluation.rollout import Episode
from maskgym.experiments.evaluation.scored import Evaluation, Played, Scored, Scorer, numbers_of
from maskgym.metrics import ClassScores, InstanceScores, ReferringScores, SaliencyScores
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks

MEASURES = {  # registered names of rewards
    "sod": ("s_measure", "iou", "format"),
    "sis": ("iasm", "iasm_published", "s_measure", "iou", "format"),
    "cosod": ("s_measure", "iou", "format"),
    "refer": ("instance_iou", "s_measure", "iou", "format"),
}
SET_MEASURES = (
    *("mae", "f_mean", "f_max", "f_adaptive", "e_mean", "e_max", "e_adaptive"),
    *("ber_mean", "ber_pooled", "weighted_f"),
)
AP_THRESHOLDS = (0.5, 0.7)
LOOKED_AT = 32  # samples whose needs are looked at before a run
CLICKS_WANTED = {"noc85": 0.85, "noc90": 0.90}  # IoU thresholds of the number-of-clicks measures


def evaluate(agent: Agent, env: VectorEnv, indices: Sequence[int], label: str = "evaluate") -> Evaluation:
    """Evaluate the greedy answers of an agent on samples.

    Args:
        agent: The agent; see `maskgym.agents.base.Agent.begin`.
        env: Vector environment that resets by index, with ``autoreset_mode=DISABLED``. It receives ``num_envs``
            answers at a time.
        indices: Indices of the samples, at least one.
        label: Name of the progress bar.

    Raises:
        UserError: If a sample cannot be read or scored.
    """
    scorer = _scorer(env)
    with tqdm(total=len(indices), desc=label, unit="sample", disable=None, leave=False) as bar:
        return scorer.collect(scorer.measure(*one) for one in _counted(episodes(agent, env, indices), bar))


def evaluate_together(
    agent: Agent, env: VectorEnv, indices: Sequence[int], label: str = "evaluate"
) -> Evaluation | None:
    """Evaluate with all workers of `maskgym.agents.common.parallel`, each of which must call this with equal weights.

    Whole batches are shared out, and their numbers put together in order, so that the result is that of `evaluate` to
    the last digit. Arguments and errors are those of `evaluate`.

    Returns:
        The evaluation on rank 0, None on the others.
    """
    scorer, own = _scorer(env), [indices[place] for place in parallel.share(len(indices), env.num_envs)]
    with tqdm(total=len(own), desc=label, unit="sample", disable=None, leave=False) as bar:
        scored = [scorer.measure(*one) for one in _counted(episodes(agent, env, own), bar)]
    together = parallel.gather(scored)
    return None if together is None else scorer.collect(together)


def episodes(agent: Agent, env: VectorEnv, indices: Sequence[int]) -> Iterator[Played]:
    """Yield the final transition and the numbers of the greedy episode of each sample; arguments as in `evaluate`."""
    for episode in rollout.play(env, indices, rollout.greedy(agent, env)):
        yield outcome(env, episode)


def play(env: VectorEnv, indices: Sequence[int], answers: Sequence[str]) -> Iterator[Played]:
    """Yield the final transition and the numbers of each sample's stored answer.

    Stored masks are binary, so soft measures may differ from those of the original evaluation.
    """
    for episode in rollout.play(env, indices, rollout.replay(env, answers)):
        yield outcome(env, episode)


def score_again(env: VectorEnv, indices: Sequence[int], answers: Sequence[str], label: str = "score") -> Evaluation:
    """Evaluate stored answers to samples, of which `play` says what differs; other arguments as of `evaluate`."""
    scorer = _scorer(env)
    with tqdm(total=len(indices), desc=label, unit="sample", disable=None, leave=False) as bar:
        return scorer.collect(scorer.measure(*one) for one in _counted(play(env, indices, answers), bar))


def outcome(env: VectorEnv, episode: Episode) -> Played:
    """Compute the final transition and the numbers of an episode.

    The numbers of a text are the reward and its terms. Those of clicks are the return, the IoU at the end and after
    `CLICKS_SHOWN` clicks, the number of clicks until `CLICKS_WANTED` (the horizon if it is never reached), and the
    share of repeated clicks; the transition has the mask after the last click. For masks, see `mask_evaluation`.
    """
    kind = unwrap(env, SampleVectorEnv).action_kind
    text = rollout.write_actions(env, episode)
    if kind == "masks":
        return mask_evaluation.outcome(env, episode, text)
    return _click_outcome(env, episode, text) if kind == "clicks" else _text_outcome(env, episode, text)


def _text_outcome(env: VectorEnv, episode: Episode, text: str) -> Played:
    base = unwrap(env, TextVectorEnv)
    (step,) = episode.steps
    terms = {name: float(value) for name, value in step.info["reward_terms"].items()}
    return base.rebuild(base.dataset[episode.index], text, step.info), {"reward": step.reward, **terms}


def _click_outcome(env: VectorEnv, episode: Episode, text: str) -> Played:
    base = unwrap(env, PointPromptVectorEnv)
    infos = [step.info for step in episode.steps]
    numbers = {"reward": episode.reward, "repeated": float(np.mean([info["repeated"] for info in infos]))}
    numbers |= _click_quality([float(info["iou"]) for info in infos])
    return Transition(base.task, base.dataset[episode.index], text, infos[-1]["masks"]), numbers


def _counted(played: Iterable[Played], bar: tqdm) -> Iterator[Played]:
    """Yield the episodes; advance the progress bar after each was scored."""
    for one in played:
        yield one
        bar.update()


def _scorer(env: VectorEnv) -> Scorer:
    kinds: dict[str, Callable[[VectorEnv], Scorer]] = {
        "text": _Texts,
        "clicks": _Clicks,
        "masks": mask_evaluation.Masks,
    }
    return kinds[unwrap(env, SampleVectorEnv).action_kind](env)


class _TextScores:
    """Measures of answers in text over a set of samples."""

    def __init__(self, task: str) -> None:
        self.task, self.rows = task, list[JsonObject]()
        self.pixels, self.instances = SaliencyScores(), InstanceScores(AP_THRESHOLDS)
        self.referring = ReferringScores()

    def add(self, scored: Scored) -> None:
        """Add one answer; a malformed one has no mask, as has one that says that the query refers to nothing."""
        self.rows.append(scored.row)
        for image in scored.images:
            self.pixels.add_measures(image.pixels)
            if self.task == "sis":
                self.instances.add_measures(image.instances)
            if self.task == "refer" and scored.malformed:
                self.referring.add_malformed(image.areas[2])
            elif self.task == "refer":
                self.referring.add_areas(*image.areas)

    def result(self) -> dict[str, float]:
        """Compute the measures."""
        over_set = self.pixels.result()
        scores = means(self.rows) | {name: over_set[name] for name in SET_MEASURES}
        if self.task == "refer":
            scores |= self.referring.result()
        if self.task == "sis":
            pooled = self.instances.result()
            scores |= {f"ap{100 * at:.0f}": pooled[f"ap{100 * at:.0f}"] for at in AP_THRESHOLDS}
        return scores


class _Texts:
    """Scores of answers in text."""

    def __init__(self, env: VectorEnv) -> None:
        self.base = unwrap(env, TextVectorEnv)
        self.measures = [rewards.make(name) for name in MEASURES[self.base.task]]

    def measure(self, transition: Transition, numbers: Mapping[str, float]) -> Scored:
        """Compute what one answer adds."""
        row = {"key": transition.sample.key, **numbers}
        for measure in self.measures:
            row |= {name: float(values[0]) for name, values in measure([transition])[1].items()}
        assert transition.answer is not None  # `_text_outcome` parses one
        count = len(transition.answer.objects or transition.answer.expressions)
        row |= {"expressions": count, "characters": len(transition.answer.text)}
        images = [numbers_of(*pair, instances=self.base.task == "sis") for pair in scored_masks(transition)]
        return Scored(row, str(transition.action), images, malformed=not transition.answer.tagged)

    def collect(self, scored: Iterable[Scored]) -> Evaluation:
        """Compute the measures of the set, and of each of its parts if it has several."""
        answers: list[str] = []
        whole, sets = _TextScores(self.base.task), dict[str, _TextScores]()
        for one in scored:
            answers.append(one.answer)
            whole.add(one)
            if self.base.dataset.sets:
                sets.setdefault(one.row["key"].partition("/")[0], _TextScores(self.base.task)).add(one)
        several = len(set(self.base.dataset.sets)) > 1
        each = {name: found.result() for name, found in sets.items()} if several else {}
        return Evaluation(whole.result(), whole.rows, answers, each)


class _Clicks:
    """Scores of episodes of clicks."""

    def __init__(self, env: VectorEnv) -> None:
        # A need makes it referring segmentation as well.
        self.told = isinstance(env.unwrapped, UserNeedPointVectorEnv)
        self.of_classes = unwrap(env, SampleVectorEnv).dataset.shown == "semantic"
        self.s_measure = rewards.make("s_measure")

    def measure(self, transition: Transition, numbers: Mapping[str, float]) -> Scored:
        """Compute what one episode adds."""
        s_measure = float(self.s_measure([transition])[0][0])
        row = {"key": transition.sample.key, **numbers, "s_measure": s_measure}
        images = [numbers_of(*pair) for pair in scored_masks(transition)]
        return Scored(row, str(transition.action), images, category=transition.sample.category)

    def collect(self, scored: Iterable[Scored]) -> Evaluation:
        """Compute the measures of the set."""
        per_sample: list[JsonObject] = []
        answers: list[str] = []
        pixels, referring, classes = SaliencyScores(), ReferringScores(), ClassScores()
        for one in scored:
            per_sample.append(one.row)
            answers.append(one.answer)
            for image in one.images:
                pixels.add_measures(image.pixels)
                referring.add_areas(*image.areas)
                if self.of_classes:
                    classes.add_areas(*image.areas[:2], str(one.category))
        over_set = pixels.result()
        scores = means(per_sample) | {name: over_set[name] for name in SET_MEASURES}
        scores |= (referring.result() if self.told else {}) | (classes.result() if self.of_classes else {})
        return Evaluation(scores, per_sample, answers)


def means(per_sample: Sequence[JsonObject]) -> dict[str, float]:
    """Compute the mean of each number over the samples."""
    return {name: float(np.mean([row[name] for row in per_sample])) for name in per_sample[0] if name != "key"}


def _click_quality(ious: Sequence[float]) -> dict[str, float]:
    """Compute the click measures of one episode from its IoU after each click."""
    found = {"iou": ious[-1]}
    found |= {f"iou@{count}": ious[count - 1] for count in CLICKS_SHOWN if count <= len(ious)}
    for name, wanted in CLICKS_WANTED.items():
        found[name] = float(next((step for step, value in enumerate(ious, start=1) if value >= wanted), len(ious)))
    return found


def click_points(env: PointPromptVectorEnv, transition: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Return the clicks of an episode: float (T, 2), (x, y) in pixels of its image, and their labels."""
    patches, labels = rollout.read_clicks(str(transition.action))
    height, width = transition.sample.images[0].shape[:2]
    return env.centres()[patches] / env.image_size * (width, height), np.array(labels)


def held_out(size: int, samples: int) -> list[int]:
    """Select the indices of at most ``samples`` samples, spread evenly over a data set of ``size``."""
    count = min(size, samples)
    return [position * size // count for position in range(count)]


def notes(env: VectorEnv, indices: Sequence[int]) -> list[str]:
    """List what is unusual about the data of an environment, one line each, from a look at some samples.

    These are the notes of the data set, and needs that are empty although needs are the task: without one, UserSal's
    answer is that of the plain detector.

    Args:
        env: Environment of the samples.
        indices: Indices of the samples that are used.
    """
    base = unwrap(env, SampleVectorEnv)
    found = base.dataset.describe()
    if isinstance(base, UserNeedVectorEnv | UserNeedPointVectorEnv | RankingVectorEnv) and base.need:
        looked = [indices[place] for place in held_out(len(indices), LOOKED_AT)]
        without = sum(not (base.dataset[index].need or "").strip() for index in looked)
        if without:
            found.append(
                f"{without} of {len(looked)} {base.dataset.split} samples have no need in words: a score of these is "
                "that of plain salient-object detection, not of needs"
            )
    return found


def scores(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Merge the scores of all tasks, prefixed by the task's name if there are several."""
    if len(evaluations) == 1:
        return next(iter(evaluations.values())).scores
    return {f"{task}/{name}": value for task, found in evaluations.items() for name, value in found.scores.items()}


def scores_of_sets(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, dict[str, float]]]:
    """Collect the scores of each set by task and set; tasks with one set have none."""
    return {task: found.sets for task, found in evaluations.items() if found.sets}


def compare(task: str, indices: Sequence[int], before: Evaluation, after: Evaluation) -> list[JsonObject]:
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
