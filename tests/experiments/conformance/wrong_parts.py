"""Parts that break one rule each, on purpose."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from maskgym.agents import Agent, FrozenAgent
from maskgym.data import Dataset, Sample
from maskgym.envs.need import UserNeedEnv, UserNeedVectorEnv
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.rewards import Reward, Term

# Rewards.


class OneColumn(Reward):
    range = (0.0, 1.0)

    def __call__(self, transitions):
        return np.zeros((len(transitions), 1)), {}


class NoRange(Reward):
    def __call__(self, transitions):
        return np.zeros(len(transitions)), {}


class BeyondRange(Reward):
    range = (0.0, 1.0)

    def __call__(self, transitions):
        return np.full(len(transitions), 1.5), {}


class NotANumber(Term):
    name = "nan"

    def __call__(self, transition):
        return float("nan")


class InWords(Term):
    name = "words"

    def __call__(self, transition):
        return "good"


class OfTextOnly(Term):
    name = "length"

    def __call__(self, transition):
        return min(len(transition.action), 100) / 100


class Standardised(Reward):
    range = (0.0, 1.0)

    def __call__(self, transitions):
        return np.arange(len(transitions)) / len(transitions), {}


class Counting(Reward):
    range = (0.0, 1.0)

    def __init__(self):
        self.calls = 0

    def __call__(self, transitions):
        self.calls += 1
        return np.full(len(transitions), 1 / self.calls), {}


class Writing(Term):
    name = "writing"

    def __call__(self, transition):
        transition.sample.images[0][:] = 0
        return 0.0


def Unpicklable():
    term = type("Local", (Term,), {"name": "local", "__call__": lambda self, transition: 0.0})
    return term()


# Data sets.


class Grey(Dataset):
    """Twelve grey photos per split, whose left half is the object; this one keeps the contract."""

    def __init__(self, split="train"):
        self.task, self.split = "sod", split

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = np.full((16, 24, 3), 9 * index + len(self.split), np.uint8)
        mask = np.zeros((1, 16, 24), bool)
        mask[:, :, :12] = True
        return self.change(Sample(f"{self.split}-{index}", (image,), (mask,)))

    def change(self, sample):
        return sample


class FlatMask(Grey):
    def change(self, sample):
        return Sample(sample.key, sample.images, (sample.masks[0][0],))


class FloatImage(Grey):
    def change(self, sample):
        return Sample(sample.key, (sample.images[0] / 255,), sample.masks)


class NumberMask(Grey):
    def change(self, sample):
        return Sample(sample.key, sample.images, (sample.masks[0].astype(np.uint8),))


class SameKeys(Grey):
    def change(self, sample):
        return Sample("photo", sample.images, sample.masks)


class TooLong(Grey):
    keys = tuple(f"{number}" for number in range(12))

    def __getitem__(self, index):
        if index > 10:
            raise IndexError(index)
        sample = super().__getitem__(index)
        return Sample(str(index), sample.images, sample.masks)


class FewKeys(Grey):
    @property
    def keys(self):
        return tuple(f"{self.split}-{number}" for number in range(8))


class Noisy(Grey):
    def change(self, sample):
        noise = np.random.default_rng().integers(0, 255, sample.images[0].shape, np.uint8)
        return Sample(sample.key, (noise,), sample.masks)


class Leaking(Grey):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample(f"photo-{index}", (np.full_like(sample.images[0], index),), sample.masks)


class OtherSplit(Grey):
    def __init__(self, split="train"):
        super().__init__("train")


class NoDataset:
    task = "sod"

    def __init__(self, split="train"):
        self.split = split


# Segmenters.


class Empty:
    """Finds nothing; this one keeps the contract."""

    def segment(self, images, expressions):
        return [
            np.zeros((len(row), *image.shape[:2]), np.float32) for image, row in zip(images, expressions, strict=True)
        ]


class OneMore(Empty):
    def segment(self, images, expressions):
        return super().segment(images, [[*row, "more"] for row in expressions])


class NanMasks(Empty):
    def segment(self, images, expressions):
        return [masks * np.nan for masks in super().segment(images, expressions)]


class Logits(Empty):
    def segment(self, images, expressions):
        return [masks - 5 for masks in super().segment(images, expressions)]


class OfTheBatch(Empty):
    def segment(self, images, expressions):
        return [masks + 1 / len(images) for masks in super().segment(images, expressions)]


class OnlyWords(Empty):
    def segment(self, images, expressions):
        if not all(words.split() for row in expressions for words in row):
            raise ValueError("no words")
        return super().segment(images, expressions)


class NoSegmenter:
    pass


# Policies.


class NoTasks:
    pass


class Mute:
    tasks = ("sod",)

    def generate(self, observations):
        return ["" for _ in observations]


class WithoutGradient(PointActorCritic):
    def network(self, observation_space, action_space):
        network = super().network(observation_space, action_space)
        network.log_probabilities = torch.no_grad()(network.log_probabilities)
        return network


# Agents.


class Constant(FrozenAgent):
    """Answers nothing; this one keeps the contract."""

    tasks = ("sod",)

    def __init__(self, policy=None, env=None, seed=0, output="."):
        self.answer = ""

    def act(self, observations, greedy=True):
        return [self.answer] * len(observations)


class CannotAct(Agent):
    tasks = ("sod",)

    def train(self, envs, updates, on_log, resume=False):
        pass

    def save(self, path):
        pass

    def load(self, path):
        pass


class UnknownTask(Constant):
    tasks = ("chess",)


class ShortOfOne(Constant):
    def act(self, observations, greedy=True):
        return [self.answer] * (len(observations) - 1)


class Moody(Constant):
    calls = 0

    def act(self, observations, greedy=True):
        Moody.calls += 1
        return [str(Moody.calls)] * len(observations)


class Learner(Constant):
    """Counts its updates; saves and resumes nothing."""

    learns = True

    def train(self, envs, updates, on_log, resume=False):
        for number in range(1, updates + 1):
            self.answer += "a"
            on_log(number, {"reward": 0.0})


class Silent(Learner):
    def train(self, envs, updates, on_log, resume=False):
        pass


class Diverged(Learner):
    def train(self, envs, updates, on_log, resume=False):
        for number in range(1, updates + 1):
            on_log(number, {"reward": float("nan")})


# Environments.


class PeekingVectorEnv(UserNeedVectorEnv):
    def _observe_row(self, i):
        image = super()._observe_row(i)["image"]
        image[0, 0] = self._shown(i).masks[0].any()
        return {"image": image, "need": ""}


class PeekingEnv(UserNeedEnv):
    vector_class = PeekingVectorEnv


class EndlessVectorEnv(UserNeedVectorEnv):
    def _take(self, i, soft):
        transition, _, _ = super()._take(i, soft)
        return transition, False, False


class EndlessEnv(UserNeedEnv):
    vector_class = EndlessVectorEnv


class OtherScalarEnv(UserNeedEnv):
    def step(self, action):
        observations, reward, *rest = super().step(action)
        return observations, reward + 1, *rest


class PlainVectorEnv(gym.vector.VectorEnv):
    def __init__(self, num_envs=1, split="test", autoreset_mode=None, **settings):
        self.num_envs = num_envs


gym.register("wrong/Scalar-v0", f"{__name__}:PeekingEnv")
gym.register("wrong/Plain-v0", f"{__name__}:PeekingEnv", vector_entry_point=f"{__name__}:PlainVectorEnv")
for _name in ("Peeking", "Endless"):
    gym.register(f"wrong/{_name}-v0", f"{__name__}:{_name}Env", vector_entry_point=f"{__name__}:{_name}VectorEnv")
gym.register("wrong/Other-v0", f"{__name__}:OtherScalarEnv", vector_entry_point="maskgym.envs.need:UserNeedVectorEnv")
