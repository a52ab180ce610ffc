"""Each episode encodes its image once, in every training and evaluation; nothing is cached here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maskgym.agents.clicks.click_grpo import CGPOAgent, GRPOAgent
from maskgym.agents.clicks.dqn import DQNAgent
from maskgym.agents.clicks.oracle import OracleAgent
from maskgym.agents.clicks.ppo import PPOAgent
from maskgym.experiments.evaluation import evaluation
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny

KINDS = {
    "ppo": (PPOAgent, {"epochs": 1, "minibatch_size": 16}),
    "dqn": (DQNAgent, {"gradient_steps": 1, "minibatch_size": 16}),
    "grpo": (GRPOAgent, {"epochs": 1, "minibatch_size": 16, "group_size": 2, "images": 4}),
    "cgpo": (CGPOAgent, {"epochs": 1, "minibatch_size": 16}),
}


@pytest.fixture
def counted(monkeypatch):
    """Build the bundled SAM without a cache, and list the numbers of images that it encodes at a time."""
    segmenter, encoded = sam_tiny(device="cpu", cache_bytes=0), []
    encode = segmenter.encode
    monkeypatch.setattr(segmenter, "encode", lambda images: encoded.append(len(images)) or encode(images))
    return segmenter, encoded


@pytest.mark.parametrize("kind", KINDS)
def test_training_encodes_what_it_shows(make_env, counted, tmp_path, monkeypatch, kind):
    segmenter, encoded = counted
    agent, settings = KINDS[kind]
    module = SemanticRecalibration("implicit", 128, channels=8)
    env = make_env(segmenter=segmenter, label_source="srm", recalibration=module)
    shown, reset = [set()], env.reset
    made = agent(PointActorCritic(channels=8, layers=1), env, output=tmp_path, **settings)

    def reset_and_note(**arguments):
        observations, infos = reset(**arguments)
        shown.append(set(infos["index"]))
        return observations, infos

    monkeypatch.setattr(env, "reset", reset_and_note)
    made.train([env], 2, lambda step, values: None)
    assert len(shown) - 1 == 2 * (2 if kind == "grpo" else 1)  # four samples of an update are two rounds of two groups
    new = [len(now - before) for before, now in itertools.pairwise(shown)]
    assert sum(encoded) == sum(new) >= 4


def test_evaluation_and_search_encode_each_sample_once(make_env, counted, tmp_path):
    segmenter, encoded = counted
    env = make_env(segmenter=segmenter, split="test", label_source="positive")
    agent = PPOAgent(PointActorCritic(channels=8, layers=1), env, output=tmp_path)
    evaluation.evaluate(agent, env, list(range(6)))
    assert sum(encoded) == 6
    encoded.clear()
    evaluation.evaluate(OracleAgent(candidates=2), env, list(range(4)))
    assert sum(encoded) == 4  # of the search too
    env.reset(options={"index": np.array([0, 0, 7, 7])})
    assert sum(encoded) == 5  # 0 is shown already
