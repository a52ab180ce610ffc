"""Reward actors: the scores of the environments, many requests at once, and a run whose actor is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskgym.agents.text.reward_function import Episodes
from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.on_ray import reward_pool
from maskgym.experiments.on_ray import workers as ray_run
from maskgym.experiments.wiring import build, composition
from maskgym.experiments.wiring.run_folder import read_metrics

ray = pytest.importorskip("ray")

GIVEN = ("env=saliency", "env.num_envs=4")
ANSWERS = {0: "<rg>a red star</rg>", 1: "<ins>a red star</ins>", 2: "<rg>a blue ring</rg>"}


@pytest.fixture(scope="session")  # not of the module, whose tests are dealt out one by one
def config():
    return composition.compose([*GIVEN, "algo=cgpo", "reward=saliency_strict"])


@pytest.fixture
def scorer(config, monkeypatch):
    return reward_pool.Scorer(config, os.getcwd())


def requests():
    words = [f"<think>x</think><answer>{ANSWERS[task]}</answer>" for task in range(3)]
    return [
        (task, indices, [words[task], "nothing", words[task], words[task]][: len(indices)])
        for task, indices in ((1, [3, 4, 5]), (0, [0, 1]), (1, [3, 9]), (2, [0]))
    ]


def test_scores_are_those_of_the_environments_and_masks_are_found_again(config, scorer):
    parts = build.make_parts(config)
    episodes = Episodes([build.make_env(config, task, "train", parts) for task in config["env"]["gym_ids"]])
    for round_ in range(2):
        before = scorer.cache.misses
        for (values, terms), request in zip(scorer.score_all(requests()), requests(), strict=True):
            expected, named = episodes.step(*request)
            np.testing.assert_allclose(values, expected, atol=1e-3)  # a pixel at an edge may round otherwise
            assert set(terms) == set(named)
            for name, term in named.items():
                np.testing.assert_allclose(terms[name], term, atol=1e-3)
        assert (scorer.cache.misses == before) == bool(round_)
    assert values.max() > 0


def test_requests_that_wait_are_scored_together(scorer):
    calls, score_all = [], scorer.score_all
    scorer.score_all = lambda asked: calls.append(len(asked)) or score_all(asked)

    async def ask():
        return await asyncio.gather(*(scorer.score(*request) for request in requests()))

    found = asyncio.run(ask())
    assert calls == [1, 3]
    for ((values, _), _), request in zip(found, requests(), strict=True):
        assert len(values) == len(request[1])


def test_an_error_reaches_all_that_asked(scorer):
    async def ask():
        return await asyncio.gather(
            *(scorer.score(1, [10**9], ["x"]), scorer.score(1, [0], ["x"])), return_exceptions=True
        )

    found = asyncio.run(ask())
    assert "index" in str(found[0])
    assert len(found[1][0][0]) == 1  # asked for while the first was at work


@pytest.mark.e2e(seconds=40)
def test_what_is_expected_is_asked_for_once_and_before(config):
    given = [(task, indices, list(answers)) for task, indices, answers in requests()]
    scaled = {**config, "scale": {"reward_actors": 2, "use_gpu": False}}
    with ray_run.connected(None), reward_pool.started(scaled) as actors:
        asked = reward_pool.RewardPool(actors, 600)
        expected = [asked.step(*request) for request in given]
        early = reward_pool.RewardPool(actors, 600)
        for task, indices, answers in given[:3]:
            for index, answer in [*zip(indices, answers, strict=True)] * 2:
                early.expect(task, index, answer)
        early.expect(0, 9, "which nobody gave")
        refs = list(early._expected.values())
        assert len(refs) == 6 + 1  # one answer is in two requests
        assert early.step(*given[3])[0] == pytest.approx(expected[3][0])  # not expected
        ray.get(refs)
        for actor in actors:
            ray.kill(actor)
        for request, (values, terms) in zip(given[:2], expected, strict=False):
            found, named = early.step(*request)
            assert found == pytest.approx(values, abs=1e-3) and set(named) == set(terms)
        assert early._expected == {}


GOOD = (np.array([0.5, 1.0]), {"format": np.array([1.0, 1.0])}), (3, 1)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (None, "replied NoneType None: expected rewards, terms and counts of its cache"),
        ((GOOD[0], None), "expected rewards, terms and counts"),
        (((GOOD[0][0], [1.0]), (3, 1)), "expected rewards, terms and counts"),
        (((GOOD[0][0][:1], GOOD[0][1]), (3, 1)), r"float64 \(1,\).* as rewards: expected 2 finite numbers"),
        (((np.float64(1), GOOD[0][1]), (3, 1)), r"as rewards: expected 2 finite numbers"),
        (((np.array([0.5, np.nan]), GOOD[0][1]), (3, 1)), "replied nan as one of the rewards"),
        (((np.array(["a", "b"]), GOOD[0][1]), (3, 1)), "as rewards: expected 2 finite numbers"),
        (((GOOD[0][0], {"format": np.array([1.0, np.inf])}), (3, 1)), "replied inf as one of the term 'format'"),
        (((GOOD[0][0], {"format": np.ones((2, 1))}), (3, 1)), r"\(2, 1\).* as term 'format'"),
    ],
)
def test_a_reply_that_is_no_scores_names_its_actor(reply, expected):
    with pytest.raises(
        UserError, match=f"^reward actor 1 of 2 {'' if expected.startswith('repl') else '.*'}{expected}"
    ):
        reward_pool._read(reply, 2, "reward actor 1 of 2")
    assert reward_pool._read(GOOD, 2, "reward actor 1 of 2") == (*GOOD[0], GOOD[1])


class Other(reward_pool.Scorer):
    """An actor whose segmenter hangs, or that runs other code: by the first words of the answers."""

    def _make(self, config, directory):
        self.cache = SimpleNamespace(hits=0, misses=0)
        if config == "broken":
            raise UserError("segmenter.path=x: no such folder")

    def score_all(self, requests):
        name = Path(requests[0][2][0])
        if name.suffix == ".hang" and not (name.exists() and name.read_text() == "once"):
            name.write_text("once" if name.stem == "once" else "always")
            time.sleep(3600)
        values = np.ones(1 if name.stem == "short" else len(requests[0][1]))
        return [(values, {"format": values})]


@pytest.mark.e2e(seconds=60)
def test_actors_that_hang_are_restarted_once_and_those_with_other_code_or_a_fault_are_named(tmp_path, monkeypatch):
    with ray_run.connected(None):
        options = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1000, "num_cpus": 0}
        actor = ray.remote(Other).options(**options)
        actors = [actor.remote("good", str(tmp_path), f"reward actor {number} of 2") for number in (1, 2)]
        ray.get([one.score.remote(0, [0], ["ready"]) for one in actors])  # they have imported everything
        pool, kill = reward_pool.RewardPool(actors, 5), ray.kill

        def restart(actor, no_restart):
            kill(actor, no_restart=no_restart)
            pool.timeout_s = 240  # it imports everything again, on a busy machine

        with monkeypatch.context() as patched:
            patched.setattr(ray, "kill", restart)
            assert list(pool.step(0, [1, 2], [f"{tmp_path}/once.hang", "x"])[0]) == [1, 1]
        assert pool.timeout_s == 240
        with pytest.raises(
            UserError, match=r"^reward actor 2 of 2 replied ndarray float64 \(1,\) as rewards: expected 2"
        ):
            pool.step(0, [1, 3], ["short", "short"])
        pool.timeout_s = 1
        with pytest.raises(
            UserError, match=r"^scale\.timeout_s=1: reward actor 1 of 2 has not replied for 1 s, 2 times"
        ):
            pool.step(0, [0], [f"{tmp_path}/always.hang"])
        broken = reward_pool.RewardPool([actor.remote("broken", str(tmp_path), "reward actor 1 of 1")], 240)
        with pytest.raises(UserError, match=r"reward actor 1 of 1 on \S+: segmenter\.path=x: no such folder"):
            broken.step(0, [0], ["x"])


@pytest.mark.e2e(seconds=180)
def test_a_run_goes_on_when_its_actor_is_killed(tmp_path, worker_of):
    pytest.importorskip("ray")
    given = ["env=sis", "algo=cgpo", "algo.batch_size=8", "algo.updates=4", "evaluation.samples=2"]
    given += ["evaluation.pictures=0", "scale=ray", "scale.num_workers=1", "scale.reward_actors=1"]
    process = subprocess.Popen(
        [sys.executable, run.__file__, *given, f"out={tmp_path}/run"], stderr=subprocess.PIPE, text=True
    )
    try:
        file, limit = tmp_path / "run" / "metrics.csv", time.monotonic() + 240
        while not file.exists() or read_metrics(file)[-1]["step"] < 1:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        os.kill(worker_of(process.pid, "ray::Scorer"), signal.SIGKILL)
        _, error = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, error
    rows = [row for row in read_metrics(file) if "reward_calls" in row]
    assert [row["step"] for row in read_metrics(file) if "loss" in row] == [1, 2, 3, 4]
    assert all(row["reward_calls"] in (0, 8) for row in rows)
    assert 0 <= rows[-1]["mask_cache_hits"] <= 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=user_need", "algo=usersal", "scale.reward_actors=1"], "scale.reward_actors=1: expected 0"),
        (["env=sis", "algo=cgpo", "scale.reward_actors=-1"], "scale.reward_actors=-1: expected at least 0"),
    ],
)
def test_where_there_is_nothing_to_score(maskgym_run, tmp_path, arguments, expected):
    status, _, error = maskgym_run(*arguments, "scale=ray", f"out={tmp_path}/run")
    assert (status, len(error)) == (2, 1)
    assert expected in error[0]
