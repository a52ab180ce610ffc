"""Rollouts: play samples to the end of their episodes, by an agent or by stored answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym.agents.base import Action, Agent, Chooser
from maskgym.aliases import Infos, Observation, Observations
from maskgym.data import run_lengths
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.infos import info_of
from maskgym.envs.point import PointPromptVectorEnv

# Function from the start and the length of a chunk of samples, whose episodes were reset, to its policy.
Player = Callable[[int, int], Chooser]
Prompt = tuple[float, float, int]  # (x, y) in pixels of the observed square, and the label


@dataclass(frozen=True)
class Step:
    """One step of an episode: the action, the reward and the info."""

    action: Action
    reward: float
    info: Infos


@dataclass(frozen=True)
class Episode:
    """One episode from its reset to its end.

    Attributes:
        index: Index of the sample.
        observation: Initial observation.
        prompts: Initial clicks of a click episode.
        steps: Steps in order, at least one.
    """

    index: int
    observation: Observation
    prompts: tuple[Prompt, ...]
    steps: tuple[Step, ...]

    @property
    def reward(self) -> float:
        """Return of the episode, undiscounted."""
        return sum(step.reward for step in self.steps)


def play(env: VectorEnv, indices: Sequence[int], begin: Player) -> Iterator[Episode]:
    """Play each sample to the end of its episode, ``num_envs`` at a time.

    Args:
        env: Vector environment that resets by index, with ``autoreset_mode=DISABLED``.
        indices: Indices of the samples.
        begin: Player of each chunk.
    """
    for start in range(0, len(indices), env.num_envs):
        chunk = indices[start : start + env.num_envs]
        count = len(chunk)
        wanted = np.asarray([*chunk, *[chunk[-1]] * (env.num_envs - count)])  # padded by the last sample
        observations, _ = env.reset(options={"index": wanted})
        shown, prompts = first_rows(observations, count), _prompts(env)
        choose = begin(start, count)
        steps: list[list[Step]] = [[] for _ in chunk]
        over = np.zeros(env.num_envs, bool)
        for number in itertools.count():
            actions = list(choose(number, observations))
            observations, values, terminated, truncated, infos = env.step(
                [*actions, *[actions[-1]] * (env.num_envs - len(actions))]
            )
            for i in np.flatnonzero(~over[:count]):
                steps[i].append(Step(actions[i], float(values[i]), info_of(infos, i)))
            done = terminated | truncated
            over |= done
            if over[:count].all():
                break
            if done.any():
                # Finished episodes must be reset before the next step; their later results are ignored.
                observations, _ = env.reset(options={"index": wanted, "reset_mask": done})
        for i, index in enumerate(chunk):
            yield Episode(index, shown[i], prompts[i], tuple(steps[i]))


def greedy(agent: Agent, env: VectorEnv) -> Player:
    """Build the player of an agent's greedy actions."""
    return lambda start, count: agent.begin(env, count)


def replay(env: VectorEnv, answers: Sequence[str]) -> Player:
    """Build the player of stored answers, as `maskgym.experiments.evaluation.evaluation.Evaluation` holds them."""
    actions = [read_actions(env, text) for text in answers]

    def begin(start: int, count: int) -> Chooser:
        episodes = actions[start : start + count]
        return lambda step, observations: [_at(episode, step) for episode in episodes]

    return begin


def _at(episode: Sequence[Action], step: int) -> Action:
    """Return the action of a step; after the stored ones an empty mask, or the last action, whose result is ignored."""
    if step < len(episode):
        return episode[step]
    return np.zeros_like(episode[-1]) if isinstance(episode[-1], np.ndarray) else episode[-1]


def write_actions(env: VectorEnv, episode: Episode) -> str:
    """Format the actions of an episode as text that `read_actions` parses.

    Clicks are text such as ``27+ 30-``, patch and label in order. Masks, thresholded at 0.5, are JSON, one COCO
    run-length code per step.
    """
    kind = unwrap(env, SampleVectorEnv).action_kind
    if kind == "clicks":
        return " ".join(f"{patch_of(step)}{'+' if step.info['label'] else '-'}" for step in episode.steps)
    if kind == "masks":
        return encode_masks([np.asarray(step.action) for step in episode.steps])
    (step,) = episode.steps
    return str(step.action)


def patch_of(step: Step) -> int:
    """Return the patch of a click, row-major."""
    return int(np.ravel(step.action)[0])


def encode_masks(masks: Sequence[np.ndarray]) -> str:
    """Encode maps (S, S), thresholded at 0.5, as JSON: a list of COCO run-length codes.

    Example:
        >>> text = encode_masks([np.eye(4), np.zeros((4, 4))])
        >>> [int(mask.sum()) for mask in decode_masks(text)]
        [4, 0]
    """
    return json.dumps([run_lengths.encode(mask > 0.5) for mask in masks])


def decode_masks(text: str) -> list[np.ndarray]:
    """Decode the masks of `encode_masks`, float32 (S, S), 0 or 1."""
    return [run_lengths.decode(code).astype(np.float32) for code in json.loads(text)]


def read_actions(env: VectorEnv, answer: str) -> Sequence[Action]:
    """Parse a stored answer into the actions of its episode."""
    base = unwrap(env, SampleVectorEnv)
    if base.action_kind == "clicks":
        return unwrap(env, PointPromptVectorEnv).actions(*read_clicks(answer))
    return decode_masks(answer) if base.action_kind == "masks" else [answer]


def read_clicks(text: str) -> tuple[list[int], list[int]]:
    """Parse a text of clicks, such as ``27+ 30-``, into patches and labels."""
    words = text.split()
    return [int(word[:-1]) for word in words], [int(word[-1] == "+") for word in words]


def first_rows(observations: Observations, count: int) -> list[Observation]:
    """Split the first ``count`` observations of a batch."""
    return [{name: value[i] for name, value in observations.items()} for i in range(count)]


def _prompts(env: VectorEnv) -> Sequence[tuple[Prompt, ...]]:
    """Read the initial clicks of each sub-environment's episode; none if the environment takes no clicks."""
    base = env.unwrapped
    if not isinstance(base, PointPromptVectorEnv):
        return [()] * env.num_envs
    return [
        tuple((float(x), float(y), int(label)) for (x, y), label in zip(state.points, state.labels, strict=True))
        for state in base.get_state()
    ]
