"""Runs of a table: `RunSpec` describes one, `Job` makes it, `compute` makes many at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Provenance, Result
from maskgym.experiments.grids import results_table
from maskgym.experiments.grids.processes import ForkServer, Runner, outlast, run_in_task
from maskgym.experiments.wiring import cluster, command, composition, run_folder
from maskgym.segmenters.outputs import describe

NO_ROWS: Mapping[str, JsonObject] = MappingProxyType({})
# Modules that every run imports, and registries whose entries a run imports by the names in its config.
COMMON = (
    *("maskgym.experiments.training.train", "maskgym.experiments.training.samples"),
    *("maskgym.experiments.evaluation.evaluate_command", "maskgym.experiments.report.report"),
)
REGISTRIES = {
    **{"algo": "maskgym.agents", "policy": "maskgym.policies"},
    **{"segmenter": "maskgym.segmenters", "data": "maskgym.data"},
}

OF_BASELINES = ("data", "segmenter", "train_samples", "evaluation", "seed")  # keys of a config that a baseline reads


@dataclass(frozen=True)
class RunSpec:
    """Definition of a run, and of its number in a table.

    Attributes:
        arguments: Arguments of the training run, including the seed.
        changes: Arguments that change for the evaluation.
        measure: Name of the score to show.
        baseline: Baseline of `baselines.py` to run instead of a training run; empty for none.
    """

    arguments: tuple[str, ...]
    changes: tuple[str, ...] = ()
    measure: str = "reward"
    baseline: str = ""

    @property
    def config(self) -> Config:
        """Config of the run, see `config_of`; read-only."""
        return config_of(self.arguments)

    @property
    def command(self) -> tuple[str, ...]:
        """Words of the `maskgym` command that makes the run, without the place of its results."""
        if not self.baseline:
            return ("run", *self.arguments)
        return ("baselines", *self.baseline.split(), *self.arguments)  # its settings may follow its name

    @property
    def key(self) -> str:
        """Key of the results in a table; it depends on the arguments only, not on new config keys."""
        return digest(" ".join((*sorted(self.arguments), self.baseline, *self.changes)))

    def folder(self, root: Path) -> Path:
        """Return the folder of the run, named by the hash of its config, or of the part that a baseline reads."""
        config = self.config
        if self.baseline:
            config = {
                "baseline": self.baseline,
                "task": config["env"].get("task"),
                "train_samples_per": config["env"].get("train_samples_per"),
                **{n: config[n] for n in OF_BASELINES},
            }
        return root / digest(composition.dump(config))

    def file(self, root: Path) -> Path:
        """Return the path of the scores."""
        name = f"evaluation-{digest(' '.join(self.changes))}.json" if self.changes else run_folder.RESULTS
        return self.folder(root) / name

    def stored(self, rows: Mapping[str, JsonObject]) -> JsonObject | None:
        """Return the results of a table; None if it has none, or if defaults have changed since."""
        row = rows.get(self.key)
        return row["results"] if row and results_table.agrees(row["config"], self.config) else None

    def row(self, root: Path) -> JsonObject:
        """Build the row of a table from the folder of the run, where the scores of each sample stay."""
        given = {"arguments": list(self.arguments), "evaluate": list(self.changes), "baseline": self.baseline}
        results = {key: v for key, v in run_folder.read_json(self.file(root)).items() if key != "per_sample"}
        return {**given, "config": self.config, "results": results}

    def results(self, root: Path, rows: Mapping[str, JsonObject] = NO_ROWS) -> JsonObject:
        """Read the results from a table, otherwise from the folder of the run."""
        return self.stored(rows) or run_folder.read_json(self.file(root))

    def named(self, label: str, root: Path, rows: Mapping[str, JsonObject] = NO_ROWS) -> Result:
        """Name what the results are of, for `provenance.differences`."""
        config = composition.change(self.config, self.changes)
        found = provenance.read(self.results(root, rows))
        return Result(label, config["seed"], config, found, self.folder(root).name)

    def value(self, root: Path, rows: Mapping[str, JsonObject] = NO_ROWS, when: str = "after") -> float:
        """Read the number, NaN if it is undefined there, from a table, otherwise from the folder of the run.

        Raises:
            UserError: If the scores lack the measure.
        """
        found = self.results(root, rows)
        scores = found["scores"] if self.baseline else found if self.changes else found[when]
        if self.measure not in scores:
            known = ", ".join(name for name, value in scores.items() if not isinstance(value, dict))
            raise UserError(f"measure '{self.measure}': expected one of {known}")
        return math.nan if scores[self.measure] is None else scores[self.measure]


@dataclass(frozen=True)
class Job:
    """Commands that make one run: one starts or resumes it, one per evaluation.

    Attributes:
        folder: Folder of the run.
        specs: Numbers that are wanted from it.
    """

    folder: Path
    specs: Sequence[RunSpec]

    def make(self, run: Runner) -> None:
        """Run the commands whose results are missing.

        Raises:
            UserError: If a command fails.
        """
        first, results = self.specs[0], self.folder / run_folder.RESULTS
        if not results.exists():
            words = (*first.command, f"--out={results}" if first.baseline else f"out={self.folder}")
            if (self.folder / run_folder.CONFIG).exists():
                words = ("run", f"resume={self.folder}")
            call(run, words, cold="scale" in first.config)  # Ray and its agents start processes themselves
        for spec in {spec.changes: spec for spec in self.specs if spec.changes}.values():
            text = call(run, ("evaluate", str(self.folder), *spec.changes))
            run_folder.write_json(spec.file(self.folder.parent), json.loads(text))


def call(run: Runner, words: Sequence[str], cold: bool = False) -> str:
    """Run a command and return its standard output.

    Raises:
        UserError: If the command fails, with the last line of its standard error.
    """
    status, out, error = run(words, cold)
    if status:
        raise UserError(f"{' '.join(words)}: {(error.strip().splitlines() or [f'exit status {status}'])[-1]}")
    return out


def add_options(parser: command.Parser) -> None:
    """Add the options of `compute` to a parser."""
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs (%(default)s)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="make each run in a task of Ray: here, or on the cluster HOST:6379"
    )


def compute(
    specs: Sequence[RunSpec],
    root: Path,
    jobs: int = 1,
    address: str | None = None,
    run: Runner | None = None,
    on_done: Callable[[RunSpec], None] = lambda spec: None,
) -> None:
    """Train and evaluate the missing runs, ``jobs`` at a time.

    Args:
        specs: Numbers of tables; those of one run are computed together.
        root: Folder of the runs.
        jobs: Number of parallel runs; each gets an equal share of the cores.
        address: Where to make each run as a Ray task with one core: on this machine (``here``), or on the cluster with
            this address, whose machines see ``root`` under the same path. None uses local processes without Ray.
        run: Runner of commands, in place of Ray and of processes that are forked from one server.
        on_done: Callback for one `RunSpec` of each run after all its results are computed.

    Raises:
        UserError: If a run fails (successful runs are kept), or if no cluster answers.
    """
    from tqdm import tqdm

    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1")
    missing: dict[Path, list[RunSpec]] = {}
    for spec in dict.fromkeys(specs):
        if not spec.file(root).exists():  # composes and caches the config here, because Hydra is not thread-safe
            missing.setdefault(spec.folder(root), []).append(spec)
    faults = []
    with (
        nullcontext(run) if run else _started(jobs, address, missing) as runner,
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(missing), desc="runs", unit="run", disable=None) as bar,
    ):
        waiting = {pool.submit(Job(folder, group).make, runner): group[0] for folder, group in missing.items()}
        try:
            for done in as_completed(waiting):
                try:
                    done.result()
                except UserError as error:
                    faults.append(error)
                else:
                    on_done(waiting[done])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            outlast(lambda: wait([one for one in waiting if not one.cancelled()]))
            raise
    if faults:
        raise UserError(f"{len(faults)} of {len(missing)} runs failed; the first: {faults[0]}")


def changed(results: Iterable[Result]) -> list[str]:
    """Tell in one line each which data or segmenter is no longer what stored results are of.

    Results that do not name them are left out, as are those whose data is not on this machine, which is told.
    """
    stored: dict[str, tuple[Config, Provenance]] = {}
    for _, _, config, found, _ in results:
        if found is not None and found["held_out"]:
            parts = {name: config[name] for name in ("data", "env", "evaluation", "segmenter")}
            stored[composition.dump({**parts, "of": found["held_out"]})] = config, found
    lines = []
    for config, found in stored.values():
        try:
            lines += [
                f"not as when the results were stored: {line}"
                for line in provenance.changes(found, _now(config, found))
            ]
        except UserError as error:
            lines.append(f"results are stored whose data cannot be read here: {error}")
    return [f"warning: {line}" for line in dict.fromkeys(lines)]


def _now(config: Config, found: Provenance) -> Provenance:
    """Name the held-out data and the segmenter of a config as they are now."""
    from maskgym.experiments.evaluation.evaluation import held_out
    from maskgym.experiments.wiring import build  # imports the parts of a run, which new results are checked by

    source, count = config["data"], config["evaluation"]["samples"]
    datasets = {task: build.make_held_out_dataset(config, task) for task in found["held_out"]}
    weights = {}
    if "segmenter" in found["weights"]:
        weights["segmenter"] = describe(build.make_segmenter(config), config["segmenter"]["name"])
    return {
        "held_out": {
            task: provenance.samples(source, dataset, held_out(len(dataset), count))
            for task, dataset in datasets.items()
        },
        "train": {},
        "weights": weights,
    }


@contextmanager
def _started(jobs: int, address: str | None, missing: Mapping[Path, Sequence[RunSpec]]) -> Iterator[Runner]:
    """Connect to Ray, or prepare a server of processes that has imported what the runs need."""
    if address is not None:
        with cluster.connected(None if address == "here" else address, "--ray", lambda: "the same command goes on"):
            yield run_in_task
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = {part for group in missing.values() for part in _parts(group[0])}
    with ForkServer(max(1, cores // jobs), sorted(parts)) as server:
        yield server


def _parts(spec: RunSpec) -> list[str]:
    """List the modules that a run imports, and the entries of registries."""
    if spec.baseline:
        own = [f"{REGISTRIES[group]}:{spec.config[group]['name']}" for group in ("segmenter", "data")]
        return ["maskgym.experiments.grids.baselines", "maskgym.policies.few_shot", *own]
    algo = spec.config["algo"]
    parts = [f"{module}:{spec.config[group]['name']}" for group, module in REGISTRIES.items()]
    trains_text = algo["updates"] > 0 and "max_new_tokens" in algo
    return [*COMMON, *parts, *(["maskgym.agents.text.training"] if trains_text else [])]


@cache
def config_of(arguments: tuple[str, ...]) -> Config:
    """Compose the config of a run without its location; only scale settings that affect its numbers are kept."""
    config = composition.compose(arguments) | {"out": None}
    scale = config.pop("scale")
    kept = {name: scale[name] for name in ("name", "num_workers", "reward_actors")} if scale["name"] != "local" else {}
    return config | ({"scale": kept} if kept else {})


def digest(text: str) -> str:
    """Compute a hash of a text with twelve characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
