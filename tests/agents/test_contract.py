"""The contract of agents: what is registered keeps it, and what does not is refused by name."""

from __future__ import annotations

import pytest

from maskgym import agents, policies
from maskgym.errors import UserError
from maskgym.experiments.wiring import build, composition


@pytest.mark.parametrize("target", [lambda **settings: None, "maskgym.errors:UserError"])
def test_what_is_no_agent_is_refused(target):
    registry = type(agents._registry)("agent")
    registry.register("not_one", target)
    for ask in (registry.get, registry.make):
        with pytest.raises(UserError, match=r"agent 'not_one': .*: expected a subclass of maskgym\.agents\.Agent"):
            ask("not_one")


@pytest.mark.parametrize("lacking", ["act", "tasks"])
def test_an_agent_without_a_member_is_named_before_it_is_made(lacking):
    members = {"tasks": ("sod",), **{name: lambda self: None for name in ("train", "act", "save", "load")}}
    registry = type(agents._registry)("agent")
    registry.register("mine", type("Mine", (agents.Agent,), {k: v for k, v in members.items() if k != lacking}))
    with pytest.raises(UserError, match=f"^agent 'mine': Mine without {lacking}, which every agent has$"):
        registry.make("mine")


@pytest.mark.parametrize("name", [name for name in agents.names() if name != "ppo_rllib"])  # which needs Ray
def test_every_agent_declares_what_it_supports(name):
    kind = agents.get(name)
    assert kind.tasks and set(kind.scales) <= {"local", "ray"}
    assert kind.takes <= {"segmenter", "make_env", "workers", "supervised", "scorer"}
    assert kind.learns != issubclass(kind, agents.FrozenAgent)


@pytest.mark.parametrize(
    ("members", "lacking"),
    [({}, "tasks"), ({"tasks": ("sod",)}, "model"), ({"tasks": ("sod",), "model": 0}, "processor")],
)
def test_a_policy_without_a_member_is_named_before_anything_runs(registered, tmp_path, members, lacking):
    registered(policies, "mine", type("Mine", (), members))
    config = composition.compose(["env=sod", "algo=cgpo", "env.num_envs=1", "data.size=2"]) | {
        "policy": {"name": "mine"}
    }
    with pytest.raises(UserError, match=f"^policy=mine: a Mine without {lacking}: algo=cgpo uses tasks, model, "):
        build.untrained(config, tmp_path)
