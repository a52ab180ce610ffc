"""Small environments of each kind, random and degenerate actions, and transitions, which checks drive parts with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import gymnasium as gym
import numpy as np

from maskgym import data, segmenters
from maskgym.agents.base import Action
from maskgym.agents.random_agent import RandomAgent
from maskgym.aliases import Observations
from maskgym.data import Dataset
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.experiments.evaluation.rollout import first_rows
from maskgym.rewards import Reward, Transition
from maskgym.segmenters import ReferringSegmenter
from maskgym.segmenters.points.promptable import PromptableSegmenter

COUNT, SIDE = 3, 64  # sub-environments, and pixels along a side of their scenes
DEGENERATE = (  # answers that are malformed, empty, or name what no image has
    *("", "<think></think><answer></answer>", "<answer><rg>x", "<think>\ud800 \0</think><answer><rg>a</rg></answer>"),
    "<think>all</think><answer><ins>everything</ins><rg>everything</rg>[semantic] everything</answer>",
)


class Kind(NamedTuple):
    """A kind of episode: its environment, the kind of its actions, the task of its data, and more arguments."""

    gym_id: str
    acts: str
    shows: str
    settings: dict[str, Any]


CLICKS = {"image_size": SIDE, "patch_size": 16, "horizon": 2}
KINDS = {
    "sod": Kind("maskgym/SOD-v0", "text", "sod", {"image_size": SIDE}),
    "sis": Kind("maskgym/SIS-v0", "text", "sis", {"image_size": SIDE}),
    "cosod": Kind("maskgym/CoSOD-v0", "text", "cosod", {"image_size": SIDE, "group_size": 2}),
    "refer": Kind("maskgym/Refer-v0", "text", "refer", {"image_size": SIDE, "form": "boxes_points"}),
    "point_prompt": Kind("maskgym/PointPrompt-v0", "clicks", "sod", CLICKS),
    "user_need": Kind("maskgym/UserNeed-v0", "masks", "need", {"image_size": SIDE}),
    "user_need_point": Kind("maskgym/UserNeedPoint-v0", "clicks", "need", CLICKS),
    "ranking": Kind("maskgym/Ranking-v0", "masks", "ranking", {"image_size": SIDE, "steps": 3}),
}


class Bands:
    """Segment a band of rows, which the phrase chooses: a stand-in where another part is checked."""

    fingerprint = "bands"

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Compute one band per phrase, float32 (n, H, W)."""
        found = []
        for image, phrases in zip(images, expressions, strict=True):
            masks = np.zeros((len(phrases), *image.shape[:2]), np.float32)
            for mask, phrase in zip(masks, phrases, strict=True):
                number = crc32(phrase.encode("utf-8", "replace"))
                mask[number % len(mask) :: 1 + number % 3] = 1
            found.append(masks)
        return found


@cache
def bundled(name: str) -> ReferringSegmenter | PromptableSegmenter:
    """Make a bundled segmenter once."""
    return segmenters.make(name)


def scenes(kind: str, split: str = "test") -> Dataset:
    """Make the synthetic scenes that a kind of episode shows."""
    group = {"group_size": 2} if kind == "cosod" else {}
    return data.make("scenes", task=KINDS[kind].shows, split=split, size=2 * COUNT, image_size=SIDE, **group)


def make_env(kind: str, dataset: Dataset | None = None, **changes: Any) -> SampleVectorEnv:
    """Make the environment of a kind, with parts that answer at once; ``changes`` are further arguments."""
    gym_id, acts, _, settings = KINDS[kind]
    if acts in ("text", "clicks") and "segmenter" not in changes:
        changes["segmenter"] = bundled("sam_tiny") if acts == "clicks" or kind == "refer" else Bands()
    shown = scenes(kind) if dataset is None else dataset
    arguments = {"autoreset_mode": "Disabled", "dataset": shown, **settings, **changes}
    made = gym.make_vec(gym_id, COUNT, vectorization_mode="vector_entry_point", **arguments)
    return unwrap(made, SampleVectorEnv)


def random_actions(env: SampleVectorEnv, observations: Observations) -> list[Action]:
    """Draw the action of the random agent for each sub-environment."""
    return RandomAgent(env=env).act(first_rows(observations, env.num_envs))


def degenerate_actions(env: SampleVectorEnv) -> list[list[Action]]:
    """List legal actions at the edges of the space, one list per step of all sub-environments."""
    if env.action_kind == "text":
        return [[text] * env.num_envs for text in DEGENERATE]
    if env.action_kind == "masks":
        shape = env.single_action_space.shape or ()
        return [[np.full(shape, value, np.float32)] * env.num_envs for value in (0.0, 1.0)]
    return []


def play(env: SampleVectorEnv) -> None:
    """Play the first samples, once by random actions to the end, and once by each degenerate one."""
    indices = np.arange(env.num_envs) % env.num_samples
    observations, _ = env.reset(seed=0, options={"index": indices})
    for _ in range(env.horizon):
        observations, _, terminated, truncated, _ = env.step(random_actions(env, observations))
        if (terminated | truncated).any():
            break
    for actions in degenerate_actions(env):
        env.reset(options={"index": indices})
        env.step(actions)


class Recorder(Reward):
    """Keep the transitions that a reward scores."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.range = reward, reward.range
        self.seen: list[Transition] = []

    def __call__(self, transitions: Sequence[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Keep the transitions, and score them."""
        self.seen += transitions
        return self.reward(transitions)


@cache
def transitions(kind: str) -> tuple[Transition, ...]:
    """Play episodes of a kind, and collect every transition."""
    env = make_env(kind, reward="iou")
    env.reward = recorder = Recorder(env.reward)
    play(env)
    return tuple(recorder.seen)
