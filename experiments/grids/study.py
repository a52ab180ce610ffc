"""Studies: ``maskgym study alignsam_components`` makes the runs of a table and prints the table.

A study is a file in ``studies/`` (or any path): common arguments of `run.py`, columns, rows and seeds.

    title: subject of the table
    base: [env=point_prompt, algo=ppo]            # arguments of every run
    columns:                                      # name: more arguments, and the measure to show
      shadow: {with: [env.task=shadow], measure: iou}
    rows:                                         # name: more arguments; changes for the evaluation
      ours: {}
      random clicks: {evaluate: [algo=random]}
      one click: {evaluate: [env.horizon=20], measure: iou@1}
      SAMed: {baseline: samed --rank 0}           # of baselines.py, with options: on the data and segmenter of the runs
    seeds: [0, 1, 2]

``maskgym study NAME key=value …`` adds arguments to all runs and baselines, such as other data or another segmenter.
The folder of a run is named by the hash of its config. Rows, columns and studies therefore share equal runs, and a
stopped study resumes. ``--table FILE`` takes the results that a table holds and adds those that it lacks.
Intervals are 95 % percentile bootstraps over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation.measures import OF_CLASSES, PIXELS, check_offered, class_of
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.evaluation.statistics import mean_and_interval
from maskgym.experiments.grids import files, results_table
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.runner import NO_ROWS, RunSpec, add_options, changed, compute, digest
from maskgym.experiments.grids.summary import page_command, samples_of
from maskgym.experiments.wiring import command, composition, run_folder

STUDIES = Path(__file__).parents[1] / "studies"

# Rows and columns; a column has no ``evaluate`` and no ``baseline``.
Part = TypedDict("Part", {"with": list[str], "evaluate": list[str], "measure": str, "baseline": str}, total=False)


class Study(TypedDict):
    """Content of a study's file."""

    title: str
    base: list[str]
    columns: dict[str, Part]
    rows: dict[str, Part]
    seeds: list[int]


def load(name: str) -> Study:
    """Load a study by the name of its file in ``studies/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a study.
    """
    study: Study = files.read(name, STUDIES, "study", set(Study.__annotations__))
    files.check_parts(study["rows"], Part.__optional_keys__, f"study '{name}': rows")
    files.check_parts(study["columns"], {"with", "measure"}, f"study '{name}': columns")
    for row, part in study["rows"].items():
        if "baseline" in part and "evaluate" in part:
            raise UserError(f"study '{name}': rows.{row}: a baseline is scored once: expected no evaluate beside it")
    for column, part in study["columns"].items():
        if "measure" not in part and not all("measure" in other for other in study["rows"].values()):
            raise UserError(f"study '{name}': columns.{column}: expected a measure, which a row lacks too")
    return study


def based(study: Study, settings: Sequence[str]) -> Study:
    """Add arguments to every run of a study and to its title; those of its columns and rows win."""
    if not settings:
        return study
    return {**study, "base": [*study["base"], *settings], "title": f"{study['title']}: {' '.join(settings)}"}


def specs(study: Study, seeds: Sequence[int]) -> dict[tuple[str, str], list[RunSpec]]:
    """List one run per seed for each row and column."""
    return {
        (row, column): [
            RunSpec(
                (*study["base"], *up.get("with", ()), *left.get("with", ()), f"seed={seed}"),
                tuple(left.get("evaluate", ())),
                left.get("measure") or up["measure"],
                left.get("baseline", ""),
            )
            for seed in seeds
        ]
        for row, left in study["rows"].items()
        for column, up in study["columns"].items()
    }


def table(study: Study, seeds: Sequence[int], root: Path, stored: Mapping[str, JsonObject] = NO_ROWS) -> str:
    """Format the study as Markdown: means with intervals, and the gains of the first row over each other row."""
    values = {place: [spec.value(root, stored) for spec in group] for place, group in specs(study, seeds).items()}
    (first, *others), columns = study["rows"], list(study["columns"])
    means = [[row, *(mean_and_interval(values[row, column]) for column in columns)] for row in study["rows"]]
    gains = [
        [f"over {row}", *(mean_and_interval(_differences(values[first, c], values[row, c]), "+") for c in columns)]
        for row in others
    ]
    note = f"{len(seeds)} seeds, mean and 95 % interval over the seeds." if len(seeds) > 1 else "One seed."
    tables = files.table(["", *columns], means), files.table(["", *columns], gains)
    title = f"\nGain of '{first}', seed by seed:\n"
    return "\n".join([f"{study['title']}\n", *tables[0], title, *tables[1], f"\n{note}", ""])


def check(spec: RunSpec) -> None:
    """Check a number of a table before anything is trained.

    Raises:
        UserError: If its config is invalid, or names what its baseline does not take.
    """
    config = composition.change(spec.config, spec.changes)
    check_offered(config, [spec.measure], "the study")
    if spec.baseline:
        from maskgym.experiments.grids import baselines  # imports the parts of a run, which only baselines need here

        has = (*PIXELS, OF_CLASSES)  # the latter where its run has it
        if spec.measure.removesuffix(class_of(spec.measure)) not in has:
            told = f"measure '{spec.measure}': a baseline has {', '.join(has)}"
            raise UserError(f"the study: {spec.baseline}: {told}")
        baselines.parse([*spec.command[1:], "--out=results.json"])


def main(argv: Sequence[str] | None = None, run: Runner | None = None) -> int:
    """Run a study; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(partial(_main, run=run), argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str], run: Runner | None) -> None:
    parser = command.Parser(prog="maskgym study", description=__doc__)
    parser.add_argument("study", help=f"a path, or one of {files.known(STUDIES)}")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of every run, as data=sbu data.root=DIR")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), help="folder of runs and tables (%(default)s)"
    )
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the study's")
    parser.add_argument("--table", type=Path, metavar=f"FILE{results_table.SUFFIX}", help="results of runs to keep")
    given = parser.parse_intermixed_args(arguments)
    study, root = based(load(given.study), given.settings), given.out.absolute() / "runs"
    seeds = given.seeds or study["seeds"]
    stored = results_table.read(given.table) if given.table else {}
    wanted = [spec for group in specs(study, seeds).values() for spec in group]
    missing = [spec for spec in wanted if spec.stored(stored) is None]
    for spec in missing:
        check(spec)
    there = [spec for spec in wanted if spec not in missing or spec.file(root).exists()]
    old = changed([spec.named("", root, stored) for spec in there])
    compute(missing, root, given.jobs, given.ray, run)
    if given.table and missing:
        # Another study may have written it since.
        stored |= results_table.read(given.table) | {spec.key: spec.row(root) for spec in missing}
        results_table.write(given.table, stored)
    of = [*named(study, seeds, root, stored), *old]
    text = "\n".join([table(study, seeds, root, stored), before(study, seeds, root, stored), *files.items(of)])
    other = f"-{digest(' '.join(given.settings))}" if given.settings else ""
    run_folder.write(given.out / f"{Path(given.study).stem}{other}.md", text)
    print(text)
    if root.exists():  # a table may hold all results
        print(page_command(root))


def before(study: Study, seeds: Sequence[int], root: Path, stored: Mapping[str, JsonObject] = NO_ROWS) -> str:
    """Format the scores before training of the rows that are runs, and the numbers of samples, if any."""
    groups = specs(study, seeds)
    body = []
    for row, part in study["rows"].items():
        if not part.keys() & {"baseline", "evaluate"}:
            cells = [groups[row, column] for column in study["columns"]]
            values = [[spec.value(root, stored, "before") for spec in cell] for cell in cells]
            body.append([row, *map(mean_and_interval, values)])
    specs_of_runs = [spec for group in groups.values() for spec in group if not (spec.changes or spec.baseline)]
    runs = [spec.results(root, stored) for spec in specs_of_runs]
    counts = sorted({text for run in runs if (text := samples_of([run], ""))})
    n = [f"\nHeld-out samples of a run: {', '.join(counts)}."] if counts else []
    if not body:
        return "\n".join(n)
    return "\n".join(["Before training:\n", *files.table(["", *study["columns"]], body), *n, ""])


def named(study: Study, seeds: Sequence[int], root: Path, stored: Mapping[str, JsonObject] = NO_ROWS) -> list[str]:
    """Tell in one line each what the numbers are of, and where those of a column differ in it or do not say it."""
    columns: dict[str, list[Result]] = {column: [] for column in study["columns"]}
    configs: dict[str, tuple[Config, Config]] = {}
    for (row, column), group in specs(study, seeds).items():
        columns[column] += [spec.named(row, root, stored) for spec in group]
        configs |= {spec.key: (stored[spec.key]["config"], spec.config) for spec in group if spec.stored(stored)}
    return results_table.named(columns, configs)


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]
