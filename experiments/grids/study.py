"""Studies: ``maskgym study alignsam_components`` makes the runs of a table and prints the table.

A study is a file in ``studies/`` (or any path): common arguments of `run.py`, columns, rows and seeds.

    title: what the table is about
    base: [env=point_prompt, algo=ppo]            # arguments of every run
    columns:                                      # name: more arguments, and the measure to show
      shadow: {with: [env.task=shadow], measure: iou}
    rows:                                         # name: more arguments; what is different when evaluated
      ours: {}
      random clicks: {evaluate: [algo=random]}
      one click: {evaluate: [env.horizon=20], measure: iou@1}
      SAMed: {baseline: samed}                    # of baselines.py: on the task and samples of the runs
    seeds: [0, 1, 2]

The folder of a run is named by the hash of its config. Rows, columns and studies therefore share equal runs, and a
stopped study resumes. ``--table FILE`` takes the results that a table holds and adds those that it lacks.
Intervals are 95 % percentile bootstraps over the seeds, as in rliable.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation.statistics import bootstrap_interval
from maskgym.experiments.grids import results_table
from maskgym.experiments.wiring import command, composition, run_folder

STUDIES = Path(__file__).parents[1] / "studies"
KEYS = {"title", "base", "columns", "rows", "seeds"}
RUN = (sys.executable, str(Path(__file__).parents[1] / "run.py"))
BASELINE = (sys.executable, "-m", "maskgym.experiments.cli", "baselines")
NO_ROWS: Mapping[str, JsonObject] = MappingProxyType({})
EVALUATE = (sys.executable, "-m", "maskgym.experiments.cli", "evaluate")


@dataclass(frozen=True)
class Cell:
    """One number of the table for one seed.

    Attributes:
        arguments: Arguments of the training run, including the seed.
        changes: Arguments that change for the evaluation.
        measure: Name of the score to show.
        baseline: Baseline of `baselines.py` to run instead of a training run; empty for none.
    """

    arguments: tuple[str, ...]
    changes: tuple[str, ...]
    measure: str
    baseline: str = ""

    def folder(self, root: Path) -> Path:
        """Return the folder of the run."""
        if self.baseline:
            return root / digest(" ".join(self.command()[len(BASELINE) :]))
        return root / _run_digest(self.arguments)

    def command(self) -> tuple[str, ...]:
        """Build the command of the run, without the output path."""
        if not self.baseline:
            return (*RUN, *self.arguments)
        config = composition.compose(self.arguments)
        shown = {"task": config["env"]["task"], "shots": config["train_samples"], "seed": config["seed"]}
        shown |= {"samples": config["evaluation"]["samples"]}
        return (*BASELINE, self.baseline, *(f"--{name}={value}" for name, value in shown.items() if value is not None))

    def file(self, root: Path) -> Path:
        """Return the path of the scores."""
        folder = self.folder(root)
        return folder / (f"evaluation-{digest(' '.join(self.changes))}.json" if self.changes else run_folder.RESULTS)

    @property
    def key(self) -> str:
        """Key of the results in a table; it depends on the arguments only, not on new config keys."""
        return digest(" ".join((*sorted(self.arguments), self.baseline, *self.changes)))

    def stored(self, rows: Mapping[str, JsonObject]) -> JsonObject | None:
        """Return the results of a table; None if it has none, or if defaults have changed since."""
        row = rows.get(self.key)
        return row["results"] if row and results_table.agrees(row["config"], config_of(self.arguments)) else None

    def row(self, root: Path) -> JsonObject:
        """Build the row of a table from the folder of the run."""
        given = {"arguments": list(self.arguments), "evaluate": list(self.changes), "baseline": self.baseline}
        return {**given, "config": config_of(self.arguments), "results": run_folder.read_json(self.file(root))}

    def value(self, root: Path, rows: Mapping[str, JsonObject] = NO_ROWS) -> float:
        """Read the number from a table, otherwise from the folder of the run.

        Raises:
            UserError: If the scores lack the measure.
        """
        found = self.stored(rows) or run_folder.read_json(self.file(root))
        scores = found["scores"] if self.baseline else found if self.changes else found["after"]
        if self.measure not in scores:
            raise UserError(f"measure '{self.measure}': expected one of {', '.join(scores)}")
        return scores[self.measure]


def load(name: str) -> dict[str, Any]:
    """Load a study by the name of its file in ``studies/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a study.
    """
    return read(name, STUDIES, "study", KEYS)


def cells(study: dict[str, Any], seeds: Sequence[int]) -> dict[tuple[str, str], list[Cell]]:
    """Build one cell per seed for each row and column."""
    return {
        (row, column): [
            Cell(
                (*study["base"], *up.get("with", ()), *left.get("with", ()), f"seed={seed}"),
                tuple(left.get("evaluate", ())),
                left.get("measure", up["measure"]),
                left.get("baseline", ""),
            )
            for seed in seeds
        ]
        for row, left in study["rows"].items()
        for column, up in study["columns"].items()
    }


def compute(
    wanted: Sequence[Cell],
    root: Path,
    jobs: int,
    on_done: Callable[[Cell], object] = lambda cell: None,
    cluster: str | None = None,
) -> None:
    """Train and evaluate the missing runs, ``jobs`` at a time.

    Args:
        wanted: Cells of tables; cells of one run are computed together.
        root: Folder of the runs.
        jobs: Number of parallel runs; each gets an equal share of the cores.
        on_done: Callback for one cell of each run after all cells of the run are computed.
        cluster: Where to make each run as a Ray task with one core: on this machine (``here``), or on the cluster with
            this address, whose machines see ``root`` under the same path. None uses local processes without Ray.

    Raises:
        UserError: If a run fails (successful runs are kept), or if no cluster answers.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1")
    if cluster is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _compute(wanted, root, jobs, on_done, partial(_compute_run, max(1, cores // jobs)))
        return
    from maskgym.experiments.on_ray import workers as ray_run

    with ray_run.connected(None if cluster == "here" else cluster, "--ray"):
        _compute(wanted, root, jobs, on_done, _in_task)


def _compute(
    wanted: Sequence[Cell], root: Path, jobs: int, on_done: Callable[[Cell], object], make: Callable[..., list[str]]
) -> None:
    from tqdm import tqdm

    missing: dict[Path, set[Cell]] = {}
    for cell in wanted:
        if not cell.file(root).exists():
            missing.setdefault(cell.folder(root), set()).add(cell)
    faults = []
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(missing), desc="runs", unit="run", disable=None) as bar:
        waiting = {
            # Commands are built in this thread, because Hydra is not thread-safe.
            pool.submit(make, folder, list(group), next(iter(group)).command()): next(iter(group))
            for folder, group in missing.items()
        }
        try:
            for done in as_completed(waiting):
                faults += done.result()
                if not done.result():
                    on_done(waiting[done])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if faults:
        raise UserError(f"{len(faults)} of {len(missing)} runs failed; the first: {faults[0]}")


def table(study: dict[str, Any], seeds: Sequence[int], root: Path, stored: Mapping[str, JsonObject] = NO_ROWS) -> str:
    """Format the study as Markdown: means with intervals, and the gains of the first row over each other row."""
    values = {place: [cell.value(root, stored) for cell in group] for place, group in cells(study, seeds).items()}
    rows, columns = list(study["rows"]), list(study["columns"])
    head = f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    lines = [f"{study['title']}\n", head]
    lines += [f"| {row} | {' | '.join(_shown(values[row, column]) for column in columns)} |" for row in rows]
    lines += [f"\nWhat '{rows[0]}' has more, seed by seed:\n", head]
    for row in rows[1:]:
        gains = {c: [a - b for a, b in zip(values[rows[0], c], values[row, c], strict=True)] for c in columns}
        lines.append(f"| than {row} | {' | '.join(_shown(gains[column], '+') for column in columns)} |")
    note = f"{len(seeds)} seeds, mean and 95 % interval over the seeds." if len(seeds) > 1 else "One seed."
    return "\n".join([*lines, f"\n{note}", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def read(name: str, folder: Path, kind: str, keys: set[str] | None) -> dict[str, Any]:
    """Read a YAML file by its name in a folder, or by path.

    Raises:
        UserError: If the file does not exist or cannot be read, or its top-level keys differ from ``keys`` if given.
    """
    file = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{kind} '{name}': no such file: expected a path, or one of {known(folder)}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if keys is not None:
        check_keys(found, keys, f"{file}: is not a {kind}")
    return found


def check_keys(part: Any, keys: set[str], fault: str) -> None:
    """Raise a UserError that begins with ``fault`` if ``part`` is not a dictionary with exactly these keys."""
    if not isinstance(part, dict) or set(part) != keys:
        raise UserError(f"{fault}: expected the keys {', '.join(sorted(keys))}")


def known(folder: Path) -> str:
    """List the names of the YAML files in a folder, for messages."""
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym study", description=__doc__)
    parser.add_argument("study", help=f"a path, or one of {known(STUDIES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), help="folder of runs and tables (%(default)s)"
    )
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the study's")
    parser.add_argument("--table", type=Path, metavar=f"FILE{results_table.SUFFIX}", help="results of runs to keep")
    given = parser.parse_args(arguments)
    study, root = load(given.study), given.out.absolute() / "runs"
    seeds = given.seeds or study["seeds"]
    wanted = [cell for group in cells(study, seeds).values() for cell in group]
    stored = results_table.read(given.table) if given.table else {}
    missing = [cell for cell in wanted if cell.stored(stored) is None]
    compute(missing, root, given.jobs, cluster=given.ray)
    if given.table and missing:
        stored |= {cell.key: cell.row(root) for cell in missing}
        results_table.write(given.table, stored)
    text = table(study, seeds, root, stored)
    run_folder.write(given.out / f"{Path(given.study).stem}.md", text)
    print(text)


def _in_task(*arguments: Any) -> list[str]:
    """Run `_compute_run` as a Ray task with one core, and wait for its result."""
    import ray

    task = ray.remote(num_cpus=1)(_compute_run).remote(1, *arguments)
    while ray.is_initialized():  # Ctrl-C shuts Ray down, after which ray.get would block forever
        if ray.wait([task], timeout=1)[0]:
            return ray.get(task)
    return ["interrupted"]


def add_options(parser: command.Parser) -> None:
    """Add the options of `compute` to a parser."""
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="make each run in a task of Ray: here, or on the cluster HOST:6379"
    )


def _compute_run(threads: int, folder: Path, group: Sequence[Cell], new: Sequence[str]) -> list[str]:
    """Start or resume one run by a command, and evaluate it; return its faults, one line each."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def call(arguments: Sequence[str]) -> tuple[str, str]:
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        fault = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return done.stdout, f"{' '.join(arguments[2:])}: {fault}" if done.returncode else ""

    if not (folder / run_folder.RESULTS).exists():
        started = (folder / run_folder.CONFIG).exists()
        place = f"--out={folder / run_folder.RESULTS}" if group[0].baseline else f"out={folder}"
        if fault := call((*RUN, f"resume={folder}") if started else (*new, place))[1]:
            return [fault]
    for changes in {cell.changes for cell in group if cell.changes}:
        text, fault = call((*EVALUATE, str(folder), *changes))
        if fault:
            return [fault]
        file = next(cell for cell in group if cell.changes == changes).file(folder.parent)
        run_folder.write_json(file, json.loads(text))
    return []


def _shown(values: Sequence[float], sign: str = "") -> str:
    mean = f"{sum(values) / len(values):{sign}.3f}"
    if len(values) == 1:  # a single value has no interval
        return mean
    low, high = bootstrap_interval(values)
    return f"{mean} [{low:{sign}.3f}, {high:{sign}.3f}]"


@cache
def config_of(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Compose the config of a run without its location; only scale settings that affect its numbers are kept."""
    config = composition.compose(arguments) | {"out": None}
    scale = config.pop("scale")
    kept = {name: scale[name] for name in ("name", "num_workers", "reward_actors")} if scale["name"] != "local" else {}
    return config | ({"scale": kept} if kept else {})


def _run_digest(arguments: tuple[str, ...]) -> str:
    return digest(composition.dump(config_of(arguments)))


def digest(text: str) -> str:
    """Compute a hash of a text with twelve characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
