"""Check of one submitted run of a level: `check` scores its answers again, or names what differs by more than 1e-6.

A submission comes from strangers. Its environments, data, segmenter and reward are those of the level, composed here;
of its config only the seed is used, and for a replay the listed settings of an agent that is installed here. Links,
files that are too large and YAML's aliases are refused before anything is read; weights are read without code. A click
environment whose recalibration module is trained with the policy needs these weights without a replay too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from gymnasium.vector import VectorEnv

from maskgym import agents, manifest
from maskgym.agents.base import Agent
from maskgym.aliases import Config, JsonObject
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError, one_line
from maskgym.experiments.evaluation import evaluation, provenance, rescoring
from maskgym.experiments.evaluation.evaluation import Evaluation
from maskgym.experiments.evaluation.provenance import Provenance
from maskgym.experiments.grids import matrix, protocol
from maskgym.experiments.grids.matrix import Results, run_of
from maskgym.experiments.grids.protocol import Level
from maskgym.experiments.report import run_data
from maskgym.experiments.report.run_data import Run
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.experiments.wiring.build import Parts
from maskgym.experiments.wiring.process import seed_everything

# Files of a run that are read, and the most bytes of each.
READ = {
    run_folder.CONFIG: 2**18,
    run_folder.RESULTS: 2**24,
    run_folder.METRICS: 2**26,
    run_folder.ANSWERS: 2**28,
}
WEIGHTS = (".json", ".safetensors", ".pt", ".txt", ".jinja", ".model", ".md")  # ends of the files of a saved policy
LONGEST = 300  # characters of a difference that are shown
MOST_TOLD = 1000  # characters of an error


@dataclass(frozen=True)
class Submitted:
    """A run that is what its level asks for, as far as its files say.

    Attributes:
        run: The run.
        level: Its level.
        record: What tables keep of it, see `matrix.record`.
        spent: What its log says it spent, in the unit of the level; None if it acted in no environment.
    """

    run: Run
    level: Level
    record: JsonObject
    spent: float | None


@dataclass(frozen=True)
class Checked:
    """A run whose numbers were found again.

    Attributes:
        of: The run.
        score: The level's measure of its final answers, as computed here.
        samples: Number of answers that were scored.
        replayed: Whether its policy gave the same answers again here.
    """

    of: Submitted
    score: float
    samples: int
    replayed: bool


def read(top: Path, folder: Path, results: Results) -> Submitted:
    """Read a run of a level.

    Args:
        top: Folder of the submission.
        folder: Folder of the run, ``top`` or below it.
        results: Results of the protocol.

    Raises:
        UserError: If a file cannot be read, the config is not what the level asks for, or too little was spent.
    """
    for name in names(top, folder):
        check_file(top, top / name)
    _check_aliases(folder / run_folder.CONFIG)
    with of_strangers(folder):
        run = run_data.read(folder)
        level = protocol.level(results.matrix, run.config["env"]["name"])
        if found := protocol.differences(level, run.config):
            raise UserError(f"{folder / run_folder.CONFIG}: {found[0][:LONGEST]}")
        build.check_numbers(run.config)
        ceiling = level.section["ceiling"]
        if isinstance(ceiling, str):
            algo = run_of(level.section, ceiling, level.name, 0).config["algo"]["name"]
            if run.config["algo"]["name"] == algo:
                raise UserError(f"{folder}: algo={algo}: is the ceiling of level {level.name}: expected a method")
        record = matrix.record(folder)
        try:
            protocol.at_budget(level, record)
        except UserError as error:
            raise UserError(f"{folder / run_folder.METRICS}: {error}") from error
        curve = protocol.curve(level, record)
    protocol.bounds(results, level)  # which the table must have, before an answer is scored
    return Submitted(run, level, record, None if curve is None else curve[0][-1])


def check(one: Submitted, replay: bool) -> Checked:
    """Check the final answers of a run, and with ``replay`` let its policy answer again.

    Raises:
        UserError: If the run names other data or networks, or a number or an answer is not found again.
    """
    level, folder, made = one.level, one.run.folder, _Made(one.run, one.level, replay)
    made.check_parts()
    found = made.score_again()
    if replay:
        found = made.replay()
    for env in made.envs.values():
        if not (replay or rescoring.is_binary(env, level.measure)):
            told = f"{level.measure} is of soft maps, and the answers stored are binary"
            raise UserError(f"{folder}: level {level.name}: {told}: expected --replay")
    score = matrix.score(evaluation.scores(found), level.name, level.measure)
    if not math.isfinite(score):
        raise UserError(f"{folder}: level {level.name}: {level.measure} of its answers is {score}: expected a number")
    last = matrix.score(one.record["held_out"], level.name, level.measure)[-1]
    if not math.isclose(last, score, rel_tol=1e-5, abs_tol=rescoring.TOLERANCE):  # the record rounds to six digits
        told = f"held_out/{level.measure} ends at {last}, but the answers score {score}"
        raise UserError(f"{folder / run_folder.METRICS}: {told}: expected the log of this run")
    return Checked(one, score, len(one.run.samples), replay)


def names(top: Path, folder: Path) -> list[str]:
    """List the files of a run that its check is of, relative to the submission: what is read, and the policy."""
    policy = folder / run_folder.POLICY
    saved = sorted(file for file in policy.rglob("*") if file.is_symlink() or not file.is_dir())
    return [file.relative_to(top).as_posix() for file in (*(folder / name for name in READ), *saved)]


def check_file(top: Path, file: Path) -> None:
    """Raise a UserError if a file is missing, a link, no regular file, or too large to be what a run writes."""
    for part in (file, *file.parents):
        if part == top:
            break
        if part.is_symlink():
            raise UserError(f"{part}: is a link: expected a file or folder of the submission itself")
    if not file.is_file():
        raise UserError(f"{file}: no such file: expected the folder of a finished run, as it was written")
    most = next((most for name, most in READ.items() if file.as_posix().endswith(f"/{name}")), None)
    if most is not None and file.stat().st_size > most:
        raise UserError(f"{file}: {file.stat().st_size:,} bytes: expected at most {most:,}")


def _check_aliases(file: Path) -> None:
    """Raise a UserError if a config has aliases, by which a short file stands for one that fills the memory."""
    try:
        found = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file.read_bytes(), yaml.SafeLoader))
    except (yaml.YAMLError, ValueError):
        return  # which `composition.load` tells
    if found:
        raise UserError(f"{file}: has YAML aliases: expected the file as it was written")


@contextmanager
def of_strangers(folder: Path) -> Iterator[None]:
    """Turn the errors of reading a folder that holds something else than a run wrote into a UserError."""
    try:
        yield
    except UserError as error:
        if len(told := str(error)) <= MOST_TOLD:
            raise
        raise UserError(f"{told[:MOST_TOLD]} …") from error  # it holds a whole value of theirs
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = one_line(f"{type(error).__name__}: {error}")[:LONGEST]
        raise UserError(f"{folder}: cannot be read as a run: {reason}") from error


class _Made:
    """Make the environments of a run's level again and, where they are needed, its agent with the trained modules.

    Args:
        run: The run.
        level: Its level.
        replay: Whether its agent must be able to answer.
    """

    def __init__(self, run: Run, level: Level, replay: bool) -> None:
        self.run, self.file = run, run.folder / run_folder.ANSWERS
        self.config: Config = {**level.config, "seed": run.config["seed"]}
        seed_everything(self.config["seed"])
        self.parts: Parts = build.make_parts(self.config)
        self.envs: dict[str, VectorEnv] = {
            task: build.make_held_out_env(self.config, task, self.parts) for task in self.config["env"]["gym_ids"]
        }
        self.places = rescoring.places(self.envs, self.config["evaluation"]["samples"])
        rescoring.check_samples(self.file, run.samples, self.places)
        # A recalibration module is trained with the policy; the environment asks it for the first clicks.
        self.agent = self._agent(replay) if replay or "recalibration" in self.parts else None

    def _agent(self, replay: bool) -> Agent | None:
        """Make the agent of the run, with the submitted weights; None if it learns nothing and need not act."""
        own, folder = self.run.config, self.run.folder / run_folder.POLICY
        name = own["algo"]["name"]
        if not agents.get(name).learns:
            if replay:  # nothing of it was submitted, and its settings may name a server
                raise UserError(f"{self.run.folder}: algo={name}: learns nothing: expected a trained policy to replay")
            return None
        _check_policy(folder, self.run.provenance)
        listed = composition.option("algo", name)
        config = self.config | {
            "algo": {key: value for key, value in own["algo"].items() if key in listed},
            "scale": composition.option("scale", own["scale"]["name"]) or self.config["scale"],
        }
        build.check(config)
        agent = build.make_agent(config, self.run.folder, next(iter(self.envs.values())), self.parts)
        before = _shapes(agent)
        agent.load(folder)
        if before != _shapes(agent):
            raise UserError(f"{folder}: its model is another one than policy={config['policy']['name']}")
        return agent

    def check_parts(self) -> None:
        """Raise a UserError if the run names other held-out samples or other frozen networks than there are here."""
        then, file = self.run.provenance, self.run.folder / run_folder.RESULTS
        now: Provenance = {
            "held_out": {
                task: provenance.samples(
                    self.config["data"],
                    unwrap(env, SampleVectorEnv).dataset,
                    [place.index for place in self.places if place.task == task],
                )
                for task, env in self.envs.items()
            },
            "train": {},
            "weights": provenance.of_environments(self.config, self.parts, self.envs.values()),
        }
        if then is None:
            raise UserError(f"{file}: has no {provenance.KEY}: expected the data and the segmenter of the run")
        for section in ("held_out", "weights"):
            if lacking := [name for name in now[section] if name not in then[section]]:
                raise UserError(f"{file}: {provenance.KEY}.{section}: does not name {lacking[0]}")
        if found := provenance.changes(then, now):
            raise UserError(f"{file}: {found[0][:LONGEST]}")

    def rows(self, task: str) -> list[JsonObject]:
        """Select the rows of a task."""
        return [row for row in self.run.samples if row["task"] == task]

    def score_again(self) -> dict[str, Evaluation]:
        """Score the stored answers, by task.

        Raises:
            UserError: If a number differs.
        """
        found = {}
        for task, env in self.envs.items():
            rows = self.rows(task)
            answers = rescoring.read_answers(self.file, env, rows)
            found[task] = evaluation.score_again(env, [row["index"] for row in rows], answers, f"score, {task}")
            rescoring.compare(self.file, env, rows, found[task], "played, its answer is")
        self._check_totals(found)
        return found

    def replay(self) -> dict[str, Evaluation]:
        """Let the submitted policy answer, by task.

        Raises:
            UserError: If an answer or a number differs.
        """
        found, agent = {}, self.agent
        assert agent is not None
        for task, env in self.envs.items():
            rows = self.rows(task)
            found[task] = evaluation.evaluate(agent, env, [row["index"] for row in rows], f"replay, {task}")
            rescoring.compare(self.file, env, rows, found[task], "the submitted policy answers", soft=True)
        self._check_totals(found, soft=True)
        return found

    def _check_totals(self, found: Mapping[str, Evaluation], soft: bool = False) -> None:
        """Raise a UserError if a score of ``results.json`` after training is not that of the answers."""
        env, totals = next(iter(self.envs.values())), self.run.results["after"]
        if line := rescoring.difference(env, totals, evaluation.scores(found), soft):
            raise UserError(f"{self.run.folder / run_folder.RESULTS}: after: {line}")


def _check_policy(folder: Path, named: Provenance | None) -> None:
    """Raise a UserError if a saved policy holds what it must not, or is not the one that the results name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: expected the trained policy of the run")
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix not in WEIGHTS:
            raise UserError(f"{file}: expected the files of a saved policy, which end in {', '.join(WEIGHTS)}")
    from maskgym.policies.text import adapters

    if adapters.are_in(folder):  # their base model may lie anywhere
        raise UserError(f"{folder}: holds adapters: expected their merged weights (maskgym policy merge)")
    manifest.check(folder)
    then = named["weights"].get("policy") if named else None
    if then is None or then["fingerprint"] != manifest.fingerprint(folder):
        raise UserError(f"{folder}: is not the policy that {run_folder.RESULTS} names: expected it as it was saved")


def _shapes(agent: Agent) -> Sequence[tuple[str, tuple[int, ...]]]:
    """List the names and shapes of the weights of a language model, which loads any folder; other agents check them."""
    from maskgym.policies.text.mllm import LanguagePolicy

    policy = getattr(agent, "policy", None)
    if not isinstance(policy, LanguagePolicy):
        return []
    return [(name, tuple(value.shape)) for name, value in policy.model.state_dict().items()]
