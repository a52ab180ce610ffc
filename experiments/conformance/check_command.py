"""``maskgym check``: whether a part keeps its contract.

maskgym check env maskgym/SIS-v0
maskgym check data folder root=photos
maskgym check segmenter evf_sam checkpoint=DIR
maskgym check reward mine:Tidy --on sod --on sis     # the class Tidy of mine.py, here or among the installed modules
maskgym check agent cgpo
maskgym check policy qwen2_5_vl_tiny

It makes the part, drives it on a few samples, and prints one line per rule that is broken, with what came and what was
expected, or "ok". Exit status: 0 if all is well, 1 with findings, 2 if the part cannot be made. docs/parts.md lists the
rules.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import gymnasium as gym

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.aliases import Settings
from maskgym.errors import UserError
from maskgym.experiments.conformance import (
    check_agent,
    check_data,
    check_env,
    check_policy,
    check_reward,
    check_segmenter,
    probes,
)
from maskgym.experiments.conformance.findings import Findings, describe
from maskgym.experiments.wiring import command, composition
from maskgym.experiments.wiring.process import silence_transformers
from maskgym.registry import check_arguments, load_plugins

RULES = {
    "env": check_env.RULES,
    "data": check_data.RULES,
    "segmenter": check_segmenter.RULES,
    "reward": check_reward.RULES,
    "policy": check_policy.RULES,
    "agent": check_agent.RULES,
}

_Part = TypeVar("_Part")


def main(arguments: Sequence[str]) -> int:
    """Check a part; return 0 if it keeps its contract, 1 with findings."""
    parser = command.Parser(prog="maskgym check", description=__doc__)
    parser.add_argument("kind", choices=list(RULES))
    parser.add_argument("name", metavar="NAME", help="a registered name, or module:Name")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="arguments of the part")
    parser.add_argument(
        "--on", action="append", choices=list(probes.KINDS), help="only on these tasks (reward, policy, agent)"
    )
    given = parser.parse_intermixed_args(arguments)
    parsed = [composition.parse(word) for word in given.settings]
    found = check(given.kind, given.name, {one.key_or_group: one.value() for one in parsed}, given.on)
    for note in found.notes:
        print(f"note: {note}")
    lines = list(found)
    print("\n".join(f"{given.kind} {given.name}: {line}" for line in lines or ["ok"]))
    return 1 if lines else 0


def check(kind: str, name: str, settings: Settings, only: Sequence[str] | None = None) -> Findings:
    """Make a part and check it.

    Args:
        kind: ``env``, ``data``, ``segmenter``, ``reward``, ``policy`` or ``agent``.
        name: Registered name, ``module:Name``, or the id of an environment.
        settings: Arguments of the part.
        only: Tasks to check it on; None for all that it supports.

    Raises:
        UserError: If the part cannot be found or made.
    """
    silence_transformers()
    load_plugins()
    found, tasks = Findings(RULES[kind]), tuple(only or probes.KINDS)
    if kind == "env":
        check_env.check(_environment(name), settings, found)
    elif kind == "data":
        check_data.check(_maker(f"data set '{name}'", _target(data.get, name)), settings, found)
    elif kind == "segmenter":
        attends = name in segmenters.attention_names()
        target: Callable[..., object] = (
            _target(segmenters.get_attention, name) if attends else _target(segmenters.get, name)
        )
        check_segmenter.check(_maker(f"segmenter '{name}'", target)(**settings), found)
    elif kind == "reward":
        check_reward.check(_maker(f"reward '{name}'", _target(rewards.get, name))(**settings), tasks, found)
    elif kind == "policy":
        check_policy.check(_maker(f"policy '{name}'", _target(policies.get, name))(**settings), tasks, found)
    else:
        if ":" in name and name not in agents.names():
            agents.register(name, _imported(name))
        check_agent.check(name, settings, tasks, found)
    return found


def _environment(name: str) -> str:
    """Check that Gymnasium knows an id, whose module it imports where the name begins with one."""
    _here()
    try:
        module, colon, own = name.partition(":")
        if colon:
            importlib.import_module(module)
        gym.spec(own or name)
    except (gym.error.Error, ImportError) as error:
        raise UserError(f"env '{name}': {describe(error)}: expected an id that is registered with Gymnasium") from error
    return own or name


def _target(get: Callable[[str], Callable[..., _Part]], name: str) -> Callable[..., _Part]:
    """Look up the factory of a registered name, or import that of ``module:Name``."""
    return _imported(name) if ":" in name else get(name)


def _imported(name: str) -> Callable:
    """Import a factory from a module in the current folder or among the installed ones.

    Raises:
        UserError: If there is none.
    """
    module, _, attribute = name.partition(":")
    _here()
    try:
        target = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise UserError(f"{name}: {describe(error)}: expected module:Name of a class or a function") from error
    if not callable(target):
        raise UserError(f"{name}: is a {type(target).__name__}: expected a class or a function")
    return target


def _here() -> None:
    """Let modules in the current folder be imported, as a script's are."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _maker(owner: str, target: Callable[..., _Part]) -> Callable[..., _Part]:
    """Return a function that makes a part from its arguments, and says whose error it is where that fails."""

    def make(**settings: object) -> _Part:
        check_arguments(target, settings, owner)
        try:
            return target(**settings)
        except UserError:
            raise
        except Exception as error:  # the part's constructor may raise anything
            raise UserError(f"{owner}: cannot be made: {describe(error)}") from error

    return make
