"""The contract of agents: what is registered keeps it, and what does not is refused by name."""

from __future__ import annotations

import pytest

from maskgym import agents
from maskgym.errors import UserError


@pytest.mark.parametrize("target", [lambda **settings: None, "maskgym.errors:UserError"])
def test_what_is_no_agent_is_refused(target):
    registry = type(agents._registry)("agent")
    registry.register("not_one", target)
    for ask in (registry.get, registry.make):
        with pytest.raises(UserError, match=r"agent 'not_one': .*: expected a subclass of maskgym\.agents\.Agent"):
            ask("not_one")


@pytest.mark.parametrize("name", [name for name in agents.names() if name != "ppo_rllib"])  # which needs Ray
def test_every_agent_declares_what_it_supports(name):
    kind = agents.get(name)
    assert kind.tasks and set(kind.scales) <= {"local", "ray"}
    assert kind.takes <= {"segmenter", "make_env", "supervised", "scorer"}
    assert kind.learns != issubclass(kind, agents.FrozenAgent)
