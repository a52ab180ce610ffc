"""Every registered environment and agent keeps its contract."""

from __future__ import annotations

import pytest

from maskgym import agents
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.check_command import check

FAST = ("random", "oracle", "oracle_text", "referring", "grpo_clicks")
APART = ("chat_model", "ppo_rllib")  # they need a server, and Ray


@pytest.mark.parametrize("name", probes.KINDS)
def test_every_environment_is_clean(name):
    gym_id, acts, _, _ = probes.KINDS[name]
    settings = {"image_size": 64, "patch_size": 16, "horizon": 3} if acts == "clicks" else {"image_size": 64}
    assert list(check("env", gym_id, settings)) == []


@pytest.mark.parametrize("name", FAST)
def test_agents_are_clean(name):
    assert list(check("agent", name, {})) == []


@pytest.mark.e2e
@pytest.mark.parametrize("name", [name for name in agents.names() if name not in (*FAST, *APART)])
def test_every_agent_is_clean(name):
    assert list(check("agent", name, {})) == []


@pytest.mark.e2e(seconds=150)
def test_the_agent_on_rllib_is_clean():
    ray = pytest.importorskip("ray")
    try:
        assert list(check("agent", "ppo_rllib", {})) == []
    finally:
        ray.shutdown()


@pytest.mark.e2e
def test_a_served_model_is_clean(chat_server):
    chat_server.reply = lambda parts: "<think>x</think><answer><rg>a disc</rg></answer>"
    assert list(check("agent", "chat_model", {"model": "model-7", "base_url": chat_server.url})) == []
