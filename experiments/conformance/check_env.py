"""Check an environment: seeds, indices, spaces, autoreset, its scalar form, and that it hides the ground truth."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv

from maskgym.agents.base import Action
from maskgym.aliases import Infos, Observations, Settings
from maskgym.data import Dataset, Sample
from maskgym.envs.base import SampleVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings

RULES = {
    "class": "a vector_entry_point that is a maskgym.envs.base.SampleVectorEnv, and its scalar form as entry_point",
    "declared": "action_kind text, clicks or masks, takes, and horizon, the most steps of an episode",
    "reset": "the sample of options={'index': i}, infos with sample_key and index, a UserError for one out of range",
    "spaces": "observations inside observation_space",
    "step": "finite rewards float64 (num_envs,), terminated and truncated bool, infos with reward_terms, iou and masks",
    "end": "an end within horizon steps; a step after it, with autoreset disabled, is refused",
    "autoreset": "with SAME_STEP the last observation and info under final_obs and final_info",
    "seeds": "the same episodes from the same seed",
    "scalar": "the same rewards and observations from the scalar and the vector form",
    "hidden": "the same observation whatever the ground truth, and no target or rationale outside the training split",
    "gymnasium": "what gymnasium's own checker asks of the scalar form",
    "render": "with render_mode rgb_array one picture uint8 (H, W, 3) per sub-environment",
    "pickle": "an environment that survives pickling, because workers receive copies",
}
# What reset and each step gave, and the actions of that step.
Rollout = list[tuple[Observations, np.ndarray, np.ndarray, np.ndarray, Infos, Sequence[Action]]]
CLOSE = 1e-2  # largest difference between observations of one and of several sub-environments: sums in another order


class Blinded(Dataset):
    """A data set without ground truth: every mask is empty."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.task, self.split = dataset, dataset.task, dataset.split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return replace(sample, masks=tuple(map(np.zeros_like, sample.masks)))


def check(gym_id: str, given: Settings, found: Findings) -> None:
    """Check the environment of a Gymnasium id, made with the arguments of the user.

    Raises:
        UserError: If the environment refuses the arguments.
    """
    held_out = {"split": "test", **given}

    def make(**changes: Any) -> VectorEnv:
        arguments = {"autoreset_mode": AutoresetMode.DISABLED, **held_out, **changes}
        return gym.make_vec(gym_id, probes.COUNT, vectorization_mode="vector_entry_point", **arguments)

    spec = gym.spec(gym_id)
    for point in ("entry_point", "vector_entry_point"):
        if not found.expect(getattr(spec, point) is not None, "class", f"{gym_id} has no {point}"):
            return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make()
        env = made.unwrapped
        name = f"{type(env).__module__}.{type(env).__qualname__}"
        if not found.expect(isinstance(env, SampleVectorEnv), "class", name):
            return
        assert isinstance(env, SampleVectorEnv)
        declared = getattr(env, "action_kind", None) in ("text", "clicks", "masks") and int(env.horizon) >= 1
        if not found.expect(declared, "declared", f"action_kind={getattr(env, 'action_kind', None)!r}, {env.horizon}"):
            return
        first = found.attempt("step", "", partial(_rollout, env, found))
        if first is None:
            return
        _check_resets(env, held_out["split"], found)
        second = found.attempt("seeds", "", lambda: _rollout(make().unwrapped, found))
        found.expect(second is not None and _same(first, second), "seeds", "two rollouts of seed 0 differ")
        with found.guard("scalar"):
            _check_scalar(gym_id, held_out, first, found)
        with found.guard("hidden"):
            blinded = make(dataset=Blinded(env.dataset))
            seen, hidden = (one.reset(seed=0)[0] for one in (make(), blinded))
            found.expect(_equal(seen, hidden), "hidden", "with empty masks the first observation is another one")
        with found.guard("autoreset"):
            _check_autoreset(make(autoreset_mode=AutoresetMode.SAME_STEP).unwrapped, found)
        with found.guard("gymnasium"):
            check_env(gym.make(gym_id, **held_out).unwrapped, skip_render_check=True)
        with found.guard("render"):
            _check_pictures(make(render_mode="rgb_array"), found)
        with found.guard("pickle"):
            pickle.loads(pickle.dumps(env))


def _rollout(env: VectorEnv, found: Findings) -> Rollout:
    """Play one episode per sub-environment by random actions, and check what each step gives."""
    assert isinstance(env, SampleVectorEnv)
    observations, infos = env.reset(seed=0)
    found.expect(observations in env.observation_space, "spaces", f"reset: {_summary(observations)}")
    for name in ("sample_key", "index"):
        found.expect(name in infos, "reset", f"infos of reset without {name}")
    zeros = np.zeros(env.num_envs)
    rows: Rollout = [(observations, zeros, zeros > 0, zeros > 0, infos, ())]
    over = zeros > 0
    for number in range(1, env.horizon + 1):
        actions = probes.random_actions(env, observations)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        rows.append((observations, rewards, terminated, truncated, infos, actions))
        found.expect(observations in env.observation_space, "spaces", f"step {number}: {_summary(observations)}")
        fits = rewards.shape == over.shape and rewards.dtype == np.float64 and bool(np.isfinite(rewards).all())
        found.expect(fits, "step", f"rewards {rewards.dtype} {rewards.shape}: {rewards}")
        for name, ends in (("terminated", terminated), ("truncated", truncated)):
            found.expect(ends.dtype == bool and ends.shape == over.shape, "step", f"{name} {ends.dtype} {ends.shape}")
        for name in ("reward_terms", "iou", "masks", "sample_key", "index"):
            found.expect(name in infos, "step", f"infos without {name}")
        over = np.asarray(terminated | truncated)
        if over.any():
            break
    found.expect(bool(over.any()), "end", f"no episode has ended after {env.horizon} steps")
    if over.any():
        try:
            env.step(probes.random_actions(env, observations))
            found.add("end", "a step after the end was taken")
        except (gym.error.ResetNeeded, UserError):
            pass
    return rows


def _check_resets(env: SampleVectorEnv, split: str, found: Findings) -> None:
    last = env.num_samples - 1
    with found.guard("reset", f"index {last}"):
        _, infos = env.reset(options={"index": last})
        found.expect(set(np.asarray(infos["index"]).tolist()) == {last}, "reset", f"index {last} gave {infos['index']}")
        if split != "train":
            for name in ("target", "rationale"):
                found.expect(name not in infos, "hidden", f"infos of the {split} split hold {name}")
    for index in (last + 1, -1):
        try:
            env.reset(options={"index": index})
            found.add("reset", f"index {index} of {last + 1} samples was accepted")
        except UserError:
            pass
        except Exception as error:  # an environment of one's own may raise anything
            found.add("reset", f"index {index} of {last + 1} samples raised {type(error).__name__}: {error}")


def _check_scalar(gym_id: str, given: Mapping[str, Any], rows: Rollout, found: Findings) -> None:
    """Play the first sub-environment's actions in the scalar form."""
    env = gym.make(gym_id, **given).unwrapped
    observation, info = env.reset(seed=0)
    vector = rows[0][0]
    same = _close(observation, {name: value[0] for name, value in vector.items()})
    found.expect(same, "scalar", "after reset(seed=0) the observations differ")
    found.expect(info["index"] == rows[0][4]["index"][0], "scalar", "seed 0 begins with another sample")
    for row in rows[1:]:
        observation, reward, terminated, truncated, _ = env.step(row[5][0])
        same = _close(observation, {name: value[0] for name, value in row[0].items()})
        found.expect(same, "scalar", "after a step the observations differ")
        found.expect(float(reward) == float(row[1][0]), "scalar", f"rewards {reward} and {row[1][0]}")
        ends = (terminated, truncated) == (bool(row[2][0]), bool(row[3][0]))
        found.expect(ends, "scalar", "the ends of the episode differ")


def _check_autoreset(env: VectorEnv, found: Findings) -> None:
    assert isinstance(env, SampleVectorEnv)
    observations, _ = env.reset(seed=0)
    for _ in range(env.horizon):
        observations, _, terminated, truncated, infos = env.step(probes.random_actions(env, observations))
        if (terminated | truncated).any():
            for name in ("final_obs", "final_info"):
                found.expect(name in infos, "autoreset", f"infos of an end without {name}")
            found.expect(observations in env.observation_space, "spaces", "the first observation after an end")
            return


def _check_pictures(env: VectorEnv, found: Findings) -> None:
    env.reset(seed=0)
    pictures: tuple[np.ndarray, ...] | None = env.render()
    found.expect(pictures is not None and len(pictures) == env.num_envs, "render", f"{type(pictures).__name__}")
    for picture in pictures or ():
        fits = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        found.expect(fits, "render", f"{picture.dtype} {picture.shape}")


def _same(one: Rollout, other: Rollout) -> bool:
    pairs = zip(one, other, strict=False)
    same = all(_equal(a[0], b[0]) and all(map(np.array_equal, a[1:4], b[1:4])) for a, b in pairs)
    return len(one) == len(other) and same


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _close(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compare two observations; numbers with a fraction may differ a little."""
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], atol=CLOSE)
        if isinstance(one[name], np.ndarray) and one[name].dtype.kind == "f"
        else np.array_equal(one[name], other[name])
        for name in one
    )


def _summary(observations: Observations) -> str:
    return ", ".join(f"{name} {getattr(value, 'dtype', '')} {np.shape(value)}" for name, value in observations.items())
