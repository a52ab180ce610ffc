"""Statistics of episodes in the mode that begins the next episode in the same step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from maskgym.envs import statistics
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.envs.statistics import RecordEpisodeStatistics
from maskgym.errors import UserError

SIDE = 32


def episodes(env: RecordEpisodeStatistics, steps: int) -> tuple[list[float], list[int]]:
    """Play and return what the rewards say: the return and the length of each ended episode."""
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
    ended: tuple[list[float], list[int]] = ([], [])
    rng = np.random.default_rng(0)
    resting = np.zeros(env.num_envs, bool)
    for _ in range(steps):
        _, rewards, terminated, truncated, infos = env.step(rng.random((env.num_envs, SIDE, SIDE), dtype=np.float32))
        returns[~resting] += rewards[~resting]
        lengths[~resting] += 1
        over = terminated | truncated
        if over.any():
            np.testing.assert_allclose(infos["episode"]["r"][over], returns[over])
            assert (infos["episode"]["l"][over] == lengths[over]).all() and (infos["_episode"] == over).all()
        ended[0].extend(returns[over])
        ended[1].extend(lengths[over])
        returns[over] = lengths[over] = 0
        if env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP:
            resting = over
    return ended


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_returns_and_lengths_are_those_of_the_rewards(mode: str, horizon: int) -> None:
    kind = {"image_size": SIDE, "autoreset_mode": mode}
    inner = UserNeedVectorEnv(3, **kind) if horizon == 1 else RankingVectorEnv(3, steps=horizon, **kind)
    env = RecordEpisodeStatistics(inner)
    env.reset(seed=0)
    returns, lengths = episodes(env, 8)
    assert len(returns) >= 6 and np.ptp(returns) > 0
    np.testing.assert_allclose(env.return_queue, returns)
    assert list(env.length_queue) == lengths


@pytest.mark.skipif(
    tuple(map(int, gymnasium.__version__.split(".")[:2])) >= statistics.FIXED, reason="this Gymnasium is right itself"
)
def test_the_wrapper_that_is_wrong_is_refused_at_reset() -> None:
    wrong = wrappers.RecordEpisodeStatistics(UserNeedVectorEnv(2, image_size=SIDE))
    with pytest.raises(UserError, match="expected maskgym.envs.statistics.RecordEpisodeStatistics, or gymnasium 1.4"):
        wrong.reset(seed=0)
    with pytest.raises(UserError, match="reports wrong returns"):
        wrappers.TransformReward(wrong, lambda reward: reward).reset(seed=0)
    wrappers.RecordEpisodeStatistics(UserNeedVectorEnv(2, autoreset_mode="NextStep")).reset(seed=0)  # right there
    wrappers.TransformReward(UserNeedVectorEnv(2), lambda reward: reward).reset(seed=0)


@pytest.mark.skipif(
    tuple(map(int, gymnasium.__version__.split(".")[:2])) >= statistics.FIXED, reason="this Gymnasium is right itself"
)
def test_the_wrong_wrapper_is_refused_around_scalar_environments_too() -> None:
    def make() -> gymnasium.Env:
        return gymnasium.make("maskgym/UserNeed-v0", image_size=SIDE)

    same = SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(UserError, match="reports wrong returns"):
        wrappers.RecordEpisodeStatistics(same).reset(seed=0)
    env = RecordEpisodeStatistics(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    env.reset(seed=0)
    rewards = [env.step(np.ones((2, SIDE, SIDE), np.float32))[1] for _ in range(3)]
    np.testing.assert_allclose(env.return_queue, np.concatenate(rewards))
    wrappers.RecordEpisodeStatistics(SyncVectorEnv([make] * 2)).reset(seed=0)  # right there


def test_a_gymnasium_that_is_right_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "__version__", "1.4.0")
    wrappers.RecordEpisodeStatistics(UserNeedVectorEnv(2, image_size=SIDE)).reset(seed=0)
