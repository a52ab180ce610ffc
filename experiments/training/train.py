"""One training run: evaluate, train, evaluate again, and write the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

from tqdm import tqdm

from maskgym.agents.base import BudgetSpent, OnLog, Scorer
from maskgym.agents.common import parallel
from maskgym.aliases import Config, JsonObject
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError, one_line
from maskgym.experiments.evaluation import evaluation, measures, provenance
from maskgym.experiments.evaluation.evaluation import Evaluation, scores
from maskgym.experiments.evaluation.provenance import Provenance
from maskgym.experiments.report import report as pages
from maskgym.experiments.training import loggers, samples
from maskgym.experiments.training.encode_ahead import encode_ahead
from maskgym.experiments.training.loggers import Logger
from maskgym.experiments.wiring import build, composition, run_folder, sources
from maskgym.experiments.wiring.process import device_name, keep_freed_memory, peak_mib, seed_everything, versions

FINITE = ("loss", "reward", "grad_norm")  # ends of the logged names whose values must be finite
# Logged name: actions, such as clicks, that the training environments scored for an update; not of several workers.
ENV_STEPS = "env_steps"
KEPT_BESIDE = (Path(run_folder.BEFORE).name, Path(run_folder.POLICY).name, "ray")  # beside checkpoints of training


def run(
    config: Config,
    folder: Path,
    resume: bool = False,
    scorer: Scorer | None = None,
    report: OnLog = lambda step, values: None,
) -> JsonObject:
    """Train, evaluate before and after, and write the run folder; of several workers only rank 0 writes.

    Evaluations are sharded over all workers, except with ``algo.fsdp``, where only rank 0 has all weights.

    Args:
        config: Config from `composition.compose`.
        folder: An existing folder.
        resume: Whether to continue the run in the folder.
        scorer: Scorer of answers in text during training that replaces the environments, such as
            `maskgym.experiments.on_ray.reward_pool.RewardPool`.
        report: Receiver of each update's number and scalars, called in every worker.

    Returns:
        The content of ``results.json``; empty except on rank 0.

    Raises:
        UserError: If the config is invalid.
    """
    keep_freed_memory()
    seed_everything(config["seed"])
    training = TrainingRun(config, folder, resume, scorer, report)
    if parallel.rank():
        training.follow()
        return {}
    training.open()
    with loggers.open_logger(config, folder, versions()) as logger:
        results = training.finish(logger)
    run_folder.write_json(folder / run_folder.RESULTS, results)
    pages.write([folder])
    return results


class TrainingRun:
    """State of one run in one process.

    The arguments are those of `run`.
    """

    def __init__(self, config: Config, folder: Path, resume: bool, scorer: Scorer | None, report: OnLog) -> None:
        self.config, self.folder, self.resume, self.report = config, folder, resume, report
        self.updates: int = config["algo"]["updates"]
        self.last = self.updates  # the last update, earlier where the budget ends
        ((self.unit, self.budget),) = (config.get("budget") or {"": math.inf}).items()
        if self.unit and parallel.size() > 1:
            raise UserError(f"budget={config['budget']}: {parallel.size()} workers: expected one, whose log has all")
        self.parts = build.make_parts(config)
        self.train_envs = build.make_train_envs(config, self.parts)
        self.together = parallel.size() > 1 and not config["algo"].get("fsdp")
        supervised = build.make_supervised(config, self.train_envs, self.parts)
        imitated = self.train_envs if supervised is None else dict(zip(self.train_envs, supervised, strict=True))
        self.rationales = build.describe_rationales(config, imitated)
        self.imitated = {} if supervised is None else imitated
        more = {"supervised": supervised, "scorer": scorer}
        self.more = {name: value for name, value in more.items() if value is not None}
        self.agent = build.make_agent(config, folder, next(iter(self.train_envs.values())), self.parts)
        listed = composition.option("algo", config["algo"]["name"])
        # Without training, only keys that the option's file does not list can be wrong.
        if self.updates or config["algo"].keys() - listed:
            self.agent.check_training(len(self.train_envs))

    def hold_out(self) -> None:
        """Make the held-out environments and select their samples."""
        count = self.config["evaluation"]["samples"]
        tasks = self.config["env"]["gym_ids"] if count else ()
        self.test_envs = {task: build.make_held_out_env(self.config, task, self.parts) for task in tasks}
        self.indices = {
            task: evaluation.held_out(unwrap(env, SampleVectorEnv).num_samples, count)
            for task, env in self.test_envs.items()
        }

    def follow(self) -> None:
        """Take part in what rank 0 does in `finish`, on another rank."""
        if not self.together:
            self.fit(self.report)
            return
        self.hold_out()
        if not self.stored():
            self.score("before")

        def on_log(step: int, values: Mapping[str, float]) -> None:
            self.report(step, values)
            if self.evaluates_after(step):
                self.score(f"after {step}")

        self.fit(on_log)
        if self.updates:
            self.score("after")

    def open(self) -> None:
        """Make the held-out environments and start the files of the run folder; rank 0 only."""
        self.hold_out()
        results = self.folder / run_folder.RESULTS
        if results.exists() and run_folder.read_results(self.folder).get("steps") != self.updates:
            results.unlink()  # they are of a shorter run, which goes on
        run_folder.write(self.folder / run_folder.CONFIG, composition.dump(self.config))
        self.metrics = run_folder.Metrics(self.folder / run_folder.METRICS)
        self.gap_untold = True
        self.drawn = sources.remember(self.config, self.folder) if sources.given(self.config) else {}
        self.notes = {task: evaluation.notes(env, self.indices[task]) for task, env in self.test_envs.items()}
        trained = {task: unwrap(env, SampleVectorEnv).dataset.describe() for task, env in self.train_envs.items()}
        for task, notes in trained.items():
            for note in dict.fromkeys([*notes, *self.notes.get(task, ())]):
                print(one_line(f"{task}: {note}"))
        self.provenance = self.name_parts()
        segmenter = self.provenance["weights"].get("segmenter")
        precision = segmenter.get("dtype", "float32") if segmenter else "float32"
        if self.config["segmenter"].get("dtype") == "auto" and precision != "float32":
            print(f"segmenter.dtype=auto: {precision}")
        for line in sources.told(self.drawn.get("sizes", {})):
            print(one_line(line))
        if self.updates:
            for line in self.agent.check_data(list(self.train_envs.values()), self.updates):
                print(one_line(line))
        if not self.test_envs:
            print("evaluation.samples=0: nothing is evaluated, before or after training")

    def name_parts(self) -> Provenance:
        """Name what the run is of: its samples, those that it imitates if they are others, and its frozen networks."""
        envs = {**self.train_envs, **{f"{task}, imitated": env for task, env in self.imitated.items()}}
        return {
            "held_out": {
                task: provenance.samples(self.config["data"], unwrap(env, SampleVectorEnv).dataset, self.indices[task])
                for task, env in self.test_envs.items()
            },
            "train": {
                task: provenance.samples(self.config["data"], unwrap(env, SampleVectorEnv).dataset)
                for task, env in envs.items()
            },
            "weights": provenance.weights(self.config, self.parts, self.agent, self.train_envs.values()),
        }

    def finish(self, logger: Logger) -> JsonObject:
        """Evaluate, train and evaluate; write samples and the policy; return the content of ``results.json``."""
        self.logger = logger
        before = self.evaluate_before()
        if self.updates:
            self.train()
        self.agent.save(self.folder / run_folder.POLICY)
        after = self.evaluate("after", self.last) if self.updates else before
        samples.write(self.folder, self.test_envs, self.indices, before, after, self.config["evaluation"]["pictures"])
        logger.show(self.folder)
        splits = {unwrap(env, SampleVectorEnv).dataset.split for env in self.test_envs.values()}
        return {
            "env": self.config["env"]["name"],
            "algo": self.config["algo"]["name"],
            "seed": self.config["seed"],
            **{name: self.config["env"][name] for name in ("instruction", "hint") if name in self.config["env"]},
            "device": device_name(),
            "wall_s": round(self.metrics.wall_s, 1),
            "steps": self.last,
            "split": ", ".join(sorted(splits)),
            "samples": {task: self.counted(task) for task in self.test_envs},
            **({"rationales": self.rationales} if self.rationales else {}),
            **({"parts": self.drawn} if self.drawn else {}),
            **self.sets(before, after),
            provenance.KEY: provenance.trained(
                self.provenance, self.config, self.folder / run_folder.POLICY, self.last
            ),
            measures.AP_RULE[0]: measures.AP_RULE[1],
            "before": scores(before),
            "after": scores(after),
            "versions": versions(),
        }

    def sets(self, before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]) -> JsonObject:
        """Collect the scores of each set, before and after, where a task has several; empty if none has."""
        found = {"before": evaluation.scores_of_sets(before), "after": evaluation.scores_of_sets(after)}
        return {"sets": found} if found["after"] else {}

    def counted(self, task: str) -> JsonObject:
        """Count the samples that were scored, ``n``, and those of their split, ``of``; with notes on the data."""
        env = unwrap(self.test_envs[task], SampleVectorEnv)
        counts = {"n": len(self.indices[task]), "of": env.num_samples, "split": env.dataset.split}
        return counts | {"notes": self.notes[task]}

    def evaluate_before(self) -> dict[str, Evaluation]:
        """Evaluate before training; a resumed run reads what it stored.

        Raises:
            UserError: If the stored evaluation is not of the run's samples, the log holds another one, or data or
                weights have changed since.
        """
        file = self.folder / run_folder.BEFORE
        if self.stored():
            stored = run_folder.read_json(file)
            if not all(_is_evaluation(stored, task, len(indices)) for task, indices in self.indices.items()):
                raise UserError(f"{file}: is no evaluation of this run's samples: remove it, and resume again")
            self._check_parts(provenance.read(stored), file)
            if stored.get(measures.AP_RULE[0]) != measures.AP_RULE[1]:
                print(one_line(f"{file}: AP50 and AP70 are of the older rule for equal scores: left out"))
                for task in self.indices:
                    for name in measures.AVERAGE_PRECISION:
                        stored[task]["scores"].pop(name, None)
            kept = {task: Evaluation(**stored[task]) for task in self.indices}
            self._check_log(kept)
            return kept
        before = self.evaluate("before", 0)
        stored = {task: asdict(found) for task, found in before.items()}
        more = {measures.AP_RULE[0]: measures.AP_RULE[1], provenance.KEY: self.provenance}
        run_folder.write_json(file, {**more, **stored})
        return before

    def stored(self) -> bool:
        """Check whether the run was evaluated before training already."""
        return self.resume and (self.folder / run_folder.BEFORE).exists()

    def _check_parts(self, then: Provenance | None, file: Path) -> None:
        """Raise a UserError if the run began with other data or weights than there are now."""
        if then is None:
            print(one_line(f"{file}: does not name the run's data and weights, so that no change of them is noticed"))
        elif found := provenance.changes(then, self.provenance):
            raise UserError(f"{file}: {found[0]}: expected the data and the weights that the run began with")

    def _check_log(self, before: Mapping[str, Evaluation]) -> None:
        """Raise a UserError if the log's evaluation before training is not the stored one: it is of another run."""
        logged = {name: value for row in self.metrics.rows if row["step"] == 0 for name, value in row.items()}
        for name, score in evaluation.scores(before).items():
            found = logged.get(f"held_out/{name}")
            if found is not None and score is not None and found != score and not math.isnan(found):
                told = f"{name} is {found} before training, but {score} in {run_folder.BEFORE}"
                raise UserError(f"{self.metrics.file}: {told}: expected the log of this run")

    def evaluate(self, label: str, step: int) -> dict[str, Evaluation]:
        """Evaluate every task and log its scores."""
        found = self.score(label)
        values = {f"held_out/{name}": value for name, value in evaluation.scores(found).items()}
        self.log(step, values)
        check_finite(step, values, self.folder)
        return found

    def evaluates_after(self, step: int) -> bool:
        """Check whether an update is followed by an evaluation in the middle of training, on every rank."""
        return step % (self.config["evaluation"]["every"] or self.updates) == 0 and step < self.updates

    def score(self, label: str) -> dict[str, Evaluation]:
        """Evaluate every task, with all workers if they hold the weights; empty except on rank 0."""
        evaluate = evaluation.evaluate_together if self.together else evaluation.evaluate
        scored = {
            task: evaluate(self.agent, env, self.indices[task], f"{label}, {task}")
            for task, env in self.test_envs.items()
        }
        return {task: found for task, found in scored.items() if found is not None}

    def train(self) -> None:
        """Train with a progress bar, a log and evaluations in between."""
        name = f"{self.config['env']['name']} {self.config['algo']['name']}"
        encode_ahead(self.train_envs, self.updates)
        scored, counts = 0, parallel.size() == 1 and not self.agent.starts_workers  # all steps are of this process
        with tqdm(total=self.updates, desc=name, unit="update", disable=None) as bar:

            def on_log(step: int, values: Mapping[str, float]) -> None:
                nonlocal scored
                before, scored = scored, self.actions_scored()
                spent = {ENV_STEPS: float(scored - before)} if counts else {}
                self.tell_gap(step)
                self.log(step, {**values, **spent, "peak_memory_mib": round(peak_mib(), 1)})
                check_finite(step, values, self.folder)
                self.report(step, values)
                _advance(bar, step, values)
                if self.spent(step) >= self.budget:
                    self.last = step
                    raise BudgetSpent
                if self.evaluates_after(step):
                    self.evaluate(f"after {step}", step)

            self.fit(on_log)
        if self.unit and self.spent(self.last) < self.budget:
            told = f"{self.spent(self.last):,.0f} of {self.budget:,} spent after {self.last} updates"
            print(f"budget: {build.UNITS[self.unit]}: {told}: expected more algo.updates to spend it")

    def spent(self, step: int) -> float:
        """Compute what updates up to one have spent of what the budget limits, those before a resume too."""
        return sum(row.get(self.unit, 0.0) for row in self.metrics.rows if row["step"] <= step)

    def actions_scored(self) -> int:
        """Count the actions that the training environments of this process have scored."""
        counts: list[int] = [unwrap(env, SampleVectorEnv).actions_scored for env in self.train_envs.values()]
        return sum(counts)

    def tell_gap(self, step: int) -> None:
        """Say, at the first update of a resumed run, how many earlier ones ``metrics.csv`` lacks."""
        missing = step - 1 - len({row["step"] for row in self.metrics.rows if 0 < row["step"] < step})
        if self.resume and self.gap_untold and missing:
            told = f"lacks the rows of {missing} updates before {step}: the curves of this run lack them too"
            print(one_line(f"{self.metrics.file}: {told}"))
        self.gap_untold = False

    def fit(self, on_log: OnLog) -> None:
        """Train the agent."""
        if self.updates:
            with suppress(BudgetSpent):
                self.agent.train(list(self.train_envs.values()), self.updates, on_log, resume=self.resume, **self.more)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars to ``metrics.csv`` and to the logger."""
        self.metrics.add(step, values)
        self.logger.log(step, values)


def _advance(bar: tqdm, step: int, values: Mapping[str, float]) -> None:
    bar.update(step - bar.n)
    bar.set_postfix({"reward": f"{values['reward']:.3f}"} if "reward" in values else {})


def check_finite(step: int, values: Mapping[str, float], folder: Path) -> None:
    """Stop a diverged training, or one whose rewards are not numbers, before it writes a checkpoint.

    Raises:
        UserError: If a loss, a reward or the gradient norm is not finite.
    """
    for name, value in values.items():
        if name.rpartition("/")[2].endswith(FINITE) and not math.isfinite(value):
            kept = folder / run_folder.CHECKPOINTS
            there = any(file.name not in KEPT_BESIDE for file in kept.glob("*"))
            last = f"the last good checkpoint is in {kept}" if there else "before the first checkpoint"
            raise UserError(f"update {step}: {name} is {value}: stopped; {last}")


def _is_evaluation(stored: object, task: str, samples: int) -> bool:
    """Check that JSON holds the evaluation of a task on a number of samples."""
    found = stored.get(task) if isinstance(stored, dict) else None
    names = {field.name for field in fields(Evaluation)}
    if not isinstance(found, dict) or not names - {"sets"} <= found.keys() <= names:  # older ones lack `sets`
        return False
    scored, rows, answers = (found[name] for name in ("scores", "per_sample", "answers"))
    return (
        isinstance(scored, dict)
        and isinstance(rows, list)
        and isinstance(answers, list)
        and len(rows) == len(answers) == samples
        and all(isinstance(row, dict) and {"key", "reward"} <= row.keys() for row in rows)
        and all(isinstance(answer, str) for answer in answers)
    )
