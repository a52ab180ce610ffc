"""Check an agent: its greedy episodes, two updates, saving and loading, and a resumed training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym import agents
from maskgym.agents import Agent
from maskgym.aliases import Config, Settings
from maskgym.experiments.conformance import probes
from maskgym.experiments.conformance.findings import Findings
from maskgym.experiments.evaluation import rollout
from maskgym.experiments.wiring import build, composition
from maskgym.experiments.wiring.process import seed_everything

RULES = {
    "class": "a subclass of maskgym.agents.Agent that implements train, act, save and load",
    "declared": "tasks, scales, takes and autoreset_mode as `maskgym.agents.Agent` describes them",
    "acts": "legal actions for every observation of its tasks, the same each time where they are greedy",
    "log": "on_log called once per update, numbered from 1, with finite scalars, a reward or a loss among them",
    "load": "the same greedy actions from an agent that loads what another one saved",
    "resume": "a resumed training with the scalars and the greedy actions of an uninterrupted one",
}
SCALES, TAKES = {"local", "ray"}, {"segmenter", "make_env", "workers", "supervised", "scorer"}
UPDATES = 2
# Settings of a short training, for the keys that the agent's option lists.
SHORT = {"batch_size": 4, "max_new_tokens": 24, "epochs": 1, "minibatch_size": 4, "save_every": 1, "group_size": 2}
QUICK_ENV = {"num_envs": 4, "horizon": 2, "image_size": 64, "steps": 2}
# Ends of the names of scalars that differ between equal runs, because they are measured times and memory.
TIMES = ("_s", "_ms", "_seconds", "_time", "_mib", "scoring_share", "tokens_per_second")

Log = list[tuple[int, Mapping[str, float]]]  # updates and their scalars


def check(name: str, given: Settings, only: Sequence[str], found: Findings) -> None:
    """Check the registered agent of a name, made with the arguments of the user, in one environment of each kind.

    Raises:
        UserError: If the agent refuses the arguments.
    """
    if name not in agents.names():
        agents.get(name)  # raises an error with the closest names
    kind = found.attempt("class", "", lambda: agents.get(name))
    if kind is None:
        return
    if not found.expect(set(kind.tasks) <= set(probes.KINDS), "declared", f"tasks={kind.tasks}"):
        return
    found.expect(set(kind.scales) <= SCALES and bool(kind.scales), "declared", f"scales={kind.scales}")
    found.expect(set(kind.takes) <= TAKES, "declared", f"takes={set(kind.takes)}")
    done = set()
    for task in kind.tasks:
        if task in only and probes.KINDS[task].acts not in done:
            done.add(probes.KINDS[task].acts)
            config = compose(name, kind, task, given)
            with tempfile.TemporaryDirectory(prefix="maskgym-check-") as folder:
                _Trial(config, task, kind, Path(folder), found).run()


def compose(name: str, kind: type[Agent], task: str, given: Settings) -> Config:
    """Compose the config of a short run of an agent on scenes."""
    options = [option for option in composition.groups()["env"] if list(_ids(option)) == [task]]
    of_env = {key: value for key, value in given.items() if key.startswith("env.")}
    listed = composition.option("algo", name)
    env = composition.option("env", options[0])
    words = [f"env={options[0]}", f"algo={name if listed else 'random'}", "evaluation.samples=2"]
    words += [f"scale={kind.scales[0]}", "scale.num_workers=1"] if kind.scales[0] != "local" else []
    words += [f"env.{key}={value}" for key, value in QUICK_ENV.items() if key in env]
    config = composition.compose([*words, *(f"{key}={value}" for key, value in of_env.items())])
    short = {
        key: min(value, listed[key]) if type(listed[key]) is int else value
        for key, value in SHORT.items()
        if key in listed
    }
    own = config["algo"] if listed else {}
    return {
        **config,
        "algo": {
            **own,
            **short,
            "name": name,
            "updates": UPDATES,
            **{key: value for key, value in given.items() if key not in of_env},
        },
    }


def _ids(option: str) -> Mapping[str, str]:
    return composition.option("env", option)["gym_ids"]


class _Trial:
    """A short run of an agent in one environment."""

    def __init__(self, config: Config, task: str, kind: type[Agent], folder: Path, found: Findings) -> None:
        self.config, self.task, self.kind, self.folder, self.found = config, task, kind, folder, found
        self.parts = build.make_parts(config)

    def run(self) -> None:
        """Check the agent before training, and where it learns its training."""
        fresh, _ = self.make("fresh")
        test = build.make_env(self.config, self.task, "test", self.parts)
        before = self.found.attempt("acts", f"greedy actions on {self.task}", lambda: self.act(fresh, test))
        if before is None:
            return
        again = self.act(fresh, test)
        if not self.found.expect(before == again, "acts", f"two greedy rollouts on {self.task} differ"):
            return
        with self.found.guard("load"):
            self.reload(fresh, before, test, "untrained")
        if self.kind.learns:
            with self.found.guard("log", f"train on {self.task}"):
                self.check_training(before, test)

    def check_training(self, before: list[bytes], test: VectorEnv) -> None:
        """Train without a break, and again with one."""
        whole, log = self.train("whole", UPDATES)
        numbers = [number for number, _ in log]
        self.found.expect(numbers == list(range(1, UPDATES + 1)), "log", f"updates {numbers} of {UPDATES}")
        for number, values in log:
            told = {name.rpartition("/")[2] for name in values} & {"reward", "loss"}
            self.found.expect(bool(told), "log", f"update {number}: {', '.join(values)}")
            strange = [name for name, value in values.items() if not math.isfinite(value)]
            self.found.expect(not strange, "log", f"update {number}: {', '.join(strange)} not finite")
        if "log" in self.found.lines:
            return
        after = self.act(whole, test)
        with self.found.guard("load"):
            self.reload(whole, after, test, "trained")
        with self.found.guard("resume"):
            self.train("broken", 1)
            resumed, rest = self.train("broken", UPDATES, resume=True)
            same = bool(rest) and bool(log) and _comparable(rest[-1][1]) == _comparable(log[-1][1])
            self.found.expect(same, "resume", f"the scalars of update {UPDATES} differ: {_differences(log, rest)}")
            self.found.expect(
                self.act(resumed, test) == after, "resume", "greedy actions differ after a resumed training"
            )

    def make(self, name: str) -> tuple[Agent, VectorEnv]:
        """Make an agent with a fresh policy and its training environment."""
        seed_everything(self.config["seed"])
        self.parts = build.make_parts(self.config)  # a module among them may be trained
        env = build.make_env(self.config, self.task, "train", self.parts, autoreset=True)
        agent = build.make_agent(self.config, self.folder / name, env, self.parts)
        agent.check_training()
        return agent, env

    def train(self, name: str, updates: int, resume: bool = False) -> tuple[Agent, Log]:
        """Train a fresh agent, whose checkpoints are under a name; return it with its log."""
        agent, env = self.make(name)
        log: Log = []
        agent.train([env], updates, lambda number, values: log.append((number, dict(values))), resume=resume)
        return agent, log

    def act(self, agent: Agent, env: VectorEnv) -> list[bytes]:
        """Play the greedy episodes of two samples; return their actions."""
        if "recalibration" in self.parts:
            env = build.make_env(self.config, self.task, "test", self.parts)
        episodes = rollout.play(env, [0, 1], rollout.greedy(agent, env))
        return [np.asarray(step.action).tobytes() for episode in episodes for step in episode.steps]

    def reload(self, agent: Agent, expected: list[bytes], env: VectorEnv, name: str) -> None:
        """Save an agent, load it into a fresh one, and compare their greedy actions."""
        agent.save(self.folder / f"saved-{name}")
        other, _ = self.make("other")
        other.load(self.folder / f"saved-{name}")
        self.found.expect(self.act(other, env) == expected, "load", f"the {name} agent acts differently after loading")


def _comparable(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items() if not name.endswith(TIMES)}


def _differences(log: Log, rest: Log) -> str:
    if not log or not rest:
        return "nothing was logged"
    one, other = _comparable(log[-1][1]), _comparable(rest[-1][1])
    differ = [name for name in one | other if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)} and {other.get(name)}" for name in differ)
