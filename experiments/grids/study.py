"""Studies: ``maskgym study alignsam_components`` trains what a table needs and prints the table.

A study is a file in ``studies/`` (or any path): arguments of `run.py` that all of it shares, columns, rows and seeds.

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

A run lies in a folder named by the hash of its config, so that rows, columns and studies share what is the same, and a
study that was stopped goes on where it was. Intervals are percentile bootstraps over the seeds, 95 %, as rliable's.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import bootstrap_interval
from maskgym.experiments.wiring import command, composition, run_folder

STUDIES = Path(__file__).parents[1] / "studies"
KEYS = {"title", "base", "columns", "rows", "seeds"}
RUN = (sys.executable, str(Path(__file__).parents[1] / "run.py"))
BASELINE = (sys.executable, str(Path(__file__).parent / "baselines.py"))
EVALUATE = (sys.executable, "-m", "maskgym.experiments.cli", "evaluate")


@dataclass(frozen=True)
class Cell:
    """One number of the table, of one seed.

    Attributes:
        arguments: Of the training run, the seed included.
        changes: What is different when it is evaluated.
        measure: The score to show.
        baseline: In place of a run, this one of `baselines.py`.
    """

    arguments: tuple[str, ...]
    changes: tuple[str, ...]
    measure: str
    baseline: str = ""

    def folder(self, root: Path) -> Path:
        """Return where its run lies."""
        return root / (digest(" ".join(self.command()[2:])) if self.baseline else _run_digest(self.arguments))

    def command(self) -> tuple[str, ...]:
        """Return what runs it, but for the place of its results."""
        if not self.baseline:
            return (*RUN, *self.arguments)
        config = composition.compose(self.arguments)
        shown = {"task": config["env"]["task"], "shots": config["train_samples"], "seed": config["seed"]}
        shown |= {"samples": config["evaluation"]["samples"]}
        return (*BASELINE, self.baseline, *(f"--{name}={value}" for name, value in shown.items() if value is not None))

    def file(self, root: Path) -> Path:
        """Return where its scores lie."""
        folder = self.folder(root)
        return folder / (f"evaluation-{digest(' '.join(self.changes))}.json" if self.changes else run_folder.RESULTS)

    def value(self, root: Path) -> float:
        """Return the number.

        Raises:
            UserError: If the scores lack the measure.
        """
        found = run_folder.read_json(self.file(root))
        scores = found["scores"] if self.baseline else found if self.changes else found["after"]
        if self.measure not in scores:
            raise UserError(f"measure '{self.measure}': expected one of {', '.join(scores)}")
        return scores[self.measure]


def load(name: str) -> dict[str, Any]:
    """Return a study by the name of its file in ``studies/``, or by path.

    Raises:
        UserError: If there is none, or it is not a study.
    """
    return read(name, STUDIES, "study", KEYS)


def cells(study: dict[str, Any], seeds: Sequence[int]) -> dict[tuple[str, str], list[Cell]]:
    """Return, for each row and column, one cell a seed."""
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
    """Train and evaluate what is missing, ``jobs`` runs at a time.

    Args:
        wanted: Numbers of tables; those of one run are made together.
        root: Folder of the runs.
        jobs: Runs at a time; each gets its share of the cores.
        on_done: Called with a number of each run when it has all that is wanted of it.
        cluster: Make each run in a task of Ray, one core each: on this machine (``here``), or on the cluster with this
            address, whose machines see ``root`` under the same path. None makes them in processes of this one.

    Raises:
        UserError: If a run fails, and those that did not are kept; or if no cluster answers.
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
            # Commands are made here: Hydra composes in one thread only.
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


def table(study: dict[str, Any], seeds: Sequence[int], root: Path) -> str:
    """Return the study as Markdown: the means with intervals, and what the first row gains on each other one."""
    values = {place: [cell.value(root) for cell in group] for place, group in cells(study, seeds).items()}
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
    """Run a study; return the exit status: 2 for a mistake in what was given, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def read(name: str, folder: Path, kind: str, keys: set[str] | None) -> dict[str, Any]:
    """Return what a file says, by its name in a folder or by path.

    Raises:
        UserError: If there is none, or it has other keys on its first level, where these are given.
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
    """Raise a UserError, beginning with ``fault``, if something is no dictionary with exactly these keys."""
    if not isinstance(part, dict) or set(part) != keys:
        raise UserError(f"{fault}: expected the keys {', '.join(sorted(keys))}")


def known(folder: Path) -> str:
    """Return the names of the files of a folder, for a message."""
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="study.py", description=__doc__)
    parser.add_argument("study", help=f"a path, or one of {known(STUDIES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), help="folder of runs and tables (%(default)s)"
    )
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the study's")
    given = parser.parse_args(arguments)
    study, root = load(given.study), given.out.absolute() / "runs"
    seeds = given.seeds or study["seeds"]
    wanted = [cell for group in cells(study, seeds).values() for cell in group]
    compute(wanted, root, given.jobs, cluster=given.ray)
    text = table(study, seeds, root)
    run_folder.write(given.out / f"{Path(given.study).stem}.md", text)
    print(text)


def _in_task(*arguments: Any) -> list[str]:
    """Have `_compute_run` done by a task of Ray, wherever there is a core; wait for what it returns."""
    import ray

    task = ray.remote(num_cpus=1)(_compute_run).remote(1, *arguments)
    while ray.is_initialized():  # after Ctrl-C it is not, and a thread that asked it for a result would never end
        if ray.wait([task], timeout=1)[0]:
            return ray.get(task)
    return ["interrupted"]


def add_options(parser: command.Parser) -> None:
    """Add the options of `compute` to a command."""
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="make each run in a task of Ray: here, or on the cluster HOST:6379"
    )


def _compute_run(threads: int, folder: Path, group: Sequence[Cell], new: Sequence[str]) -> list[str]:
    """Train one run by a command, or go on with it, and evaluate it; return what went wrong, one line a fault."""
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
    if len(values) == 1:  # which have no interval
        return mean
    low, high = bootstrap_interval(values)
    return f"{mean} [{low:{sign}.3f}, {high:{sign}.3f}]"


@cache
def config_of(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return the config of a run, wherever it lies and is made; of its scale what its numbers depend on."""
    config = composition.compose(arguments) | {"out": None}
    scale = config.pop("scale")
    kept = {name: scale[name] for name in ("name", "num_workers", "reward_actors")} if scale["name"] != "local" else {}
    return config | ({"scale": kept} if kept else {})


def _run_digest(arguments: tuple[str, ...]) -> str:
    return digest(composition.dump(config_of(arguments)))


def digest(text: str) -> str:
    """Return the twelve characters that name what this text says."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
