"""Benchmarks: ``maskgym benchmark algorithms --jobs 2`` runs every cell of a matrix and writes a report.

A matrix is a file in ``matrices/`` (or any path): sections of rows (algorithms) and columns (environments).

    title: the report's
    about: text below it
    sections:
      - title: one update per batch
        about: text below it
        base: [evaluation.every=8]                     # arguments of `run.py`, of every run
        columns:                                       # name: more arguments, and measures, the quality first
          sis: {with: [env=sis], measures: [iasm, ap70]}
        rows:                                          # name: more arguments
          cgpo: {with: [algo=cgpo]}
        against: cgpo                                  # the row that the others are compared with
        seeds: [0, 1, 2]
    costs:                                             # optional: measured alone, one after the other, in turn
      - title: updates of 128 answers
        about: text below it
        base: [env=sis, algo.updates=10]
        rows: {cgpo: {with: [algo=cgpo]}}
        rounds: 2
    published:                                         # optional: of a paper, whose order of the rows is compared
      cgpo: {sis: {ap70: 0.902}}                       # row, column, measure

Each run becomes one row of the table ``OUT/NAME.jsonl.gz``, whose key is the hash of its arguments. Rows that sections
share are therefore run once, and a stopped benchmark resumes. A row also holds the config of its run, and is made again
if a default has changed. ``--report`` writes the report from existing results and runs nothing.
Any agent can be a row. Tokens and rewards per update are those that it logs as ``generated_tokens`` and
``reward_calls``; without them, the columns and curves of the row are empty, and the report says so. Seconds are the
number of updates times the seconds per update of a separate timing run, so that rows may train in parallel.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.grids import benchmark_report, files, matrix
from maskgym.experiments.grids.matrix import WARM_UP, Results, cost_arguments, cost_key
from maskgym.experiments.grids.processes import Finished, Runner, run_cold, threads_of
from maskgym.experiments.grids.runner import RunSpec, add_options, call, changed, compute, digest
from maskgym.experiments.grids.summary import page_command
from maskgym.experiments.wiring import command, run_folder


def main(argv: Sequence[str] | None = None, run: Runner | None = None) -> int:
    """Run a benchmark; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(partial(_main, run=run), argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str], run: Runner | None) -> None:
    parser = command.Parser(prog="maskgym benchmark", description=__doc__)
    parser.add_argument("matrix", help=f"a path, or one of {files.known(matrix.MATRICES)}")
    parser.add_argument("--out", type=Path, default=Path("results"), help="for report and results (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="for run folders (%(default)s)")
    add_options(parser)
    parser.add_argument("--report", action="store_true", help="write the report from existing results, without runs")
    given = parser.parse_args(arguments)
    name, runs = Path(given.matrix).stem, given.runs.absolute()
    results = Results(matrix.load(given.matrix), given.out / name)
    if not given.report:
        matrix.check(results.matrix)
        missing = [spec for spec in results.specs() if results.of(spec) is None]
        kept = [(spec, found) for spec in results.specs() if (found := results.of(spec))]
        for line in changed([Result("", found["seed"], spec.config, provenance.read(found)) for spec, found in kept]):
            print(line)

        def keep(spec: RunSpec) -> None:
            results.keep(spec, spec.folder(runs))

        for spec in missing:
            if spec.file(runs).exists():  # the benchmark stopped between the run and its row
                keep(spec)
        compute(missing, runs, given.jobs, given.ray, run, keep)
        measure_costs(results, runs, run or _run_alone)
    text, pictures = benchmark_report.report(results, name)
    for file, content in pictures.items():
        run_folder.write(results.folder / file, content)
    run_folder.write(given.out / f"{name}.md", text)
    print("\n".join(benchmark_report.overview(results)))
    print(given.out / f"{name}.md")
    if runs.exists():  # the table may hold all results
        print(page_command(runs))


def _run_alone(words: Sequence[str], cold: bool = True) -> Finished:
    return run_cold(words, threads=1)


def measure_costs(results: Results, runs: Path, run: Runner) -> None:
    """Make the timing runs of the matrix, one at a time and in rounds; existing results are kept.

    Each is a cold process, whose memory is that of the run alone.

    Raises:
        UserError: If a run fails, or earlier timing runs had another number of threads.
    """
    wanted = {  # keyed by cost, so that a row of two tables is timed once
        (number, cost_key(arguments)): arguments
        for cost in results.matrix["costs"]
        for number in range(cost["rounds"])
        for arguments in (cost_arguments(cost, row) for row in cost["rows"])
    }
    plan = [arguments for (number, key), arguments in wanted.items() if len(results.costs.get(key, [])) <= number]
    threads = threads_of(1)
    if plan and threads != results.threads:
        raise UserError(
            f"OMP_NUM_THREADS={threads}: the timing runs in {results.table} had {results.threads} threads: "
            f"expected OMP_NUM_THREADS={results.threads}"
        )
    for arguments in tqdm(plan, desc="cost", unit="run", disable=None):
        rounds = results.costs.setdefault(cost_key(arguments), [])
        folder = runs / f"cost-{digest(cost_key(arguments))}-{len(rounds)}"
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run would include the time of two starts
        call(run, ("run", *arguments, "evaluation.samples=1", "evaluation.pictures=0", f"out={folder}"), cold=True)
        rounds.append(_cost_of(folder))
        results.write()


def _cost_of(folder: Path) -> dict[str, float]:
    """Compute the mean cost per update of a run, without the warm-up updates."""
    updates = matrix.updates_of(run_folder.read_metrics(folder / run_folder.METRICS))
    timed = updates[WARM_UP:]
    if not timed:
        raise UserError(f"{folder}: expected more than {WARM_UP} updates")
    return {
        "step_s": (updates[-1]["wall_s"] - updates[WARM_UP - 1]["wall_s"]) / len(timed),
        "peak_memory_mib": updates[-1]["peak_memory_mib"],
        **{n: float(np.mean([row[n] for row in timed])) for n in matrix.SPENT if all(n in row for row in timed)},
    }
