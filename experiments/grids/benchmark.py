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

Each run becomes one row of the table ``OUT/NAME.jsonl.gz``, of a protocol beside its file; its key is the hash of its
arguments. Rows that sections share are therefore run once, and a stopped benchmark resumes. A row also holds the config
of its run, and is made again if a default has changed. ``--report`` writes the report from existing results and runs
nothing.

A matrix with a ``version`` is a protocol (`maskgym.experiments.grids.protocol`). ``maskgym benchmark protocol=NAME
algo=mine`` runs one algorithm, with its settings ``algo.KEY=VALUE``, on the protocol's levels and compares it with the
baselines (``maskgym compare``); the runs are in OUT/runs, which ``maskgym board check`` takes. ``maskgym benchmark
gate`` repeats the beginning of one run a family, and ends with status 1 if a score is not as stored.

Any agent can be a row. Tokens and rewards per update are those that it logs as ``generated_tokens`` and
``reward_calls``; without them, the columns and curves of the row are empty, and the report says so. Seconds are the
number of updates times the seconds per update of a separate timing run, so that rows may train in parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.grids import benchmark_report, compare, costs, files, gate, matrix, protocol, submission
from maskgym.experiments.grids.matrix import Results
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.runner import RunSpec, add_options, changed, compute
from maskgym.experiments.grids.summary import page_command
from maskgym.experiments.wiring import command, run_folder


def main(argv: Sequence[str] | None = None, run: Runner | None = None) -> int:
    """Run a benchmark; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(partial(_main, run=run), argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str], run: Runner | None) -> int:
    parser = command.Parser(prog="maskgym benchmark", description=__doc__)
    parser.add_argument("matrix", help=f"a path, or one of {files.known(matrix.MATRICES)}; or protocol=NAME, or gate")
    parser.add_argument("settings", nargs="*", metavar="algo=NAME", help="of protocol=NAME: what to run on its levels")
    parser.add_argument("--level", nargs="+", default=[], help="of protocol=NAME: these levels only")
    parser.add_argument("--seeds", type=int, nargs="+", help="of protocol=NAME: these seeds only")
    parser.add_argument("--out", type=Path, default=Path("results"), help="for report and results (%(default)s)")
    parser.add_argument("--runs", type=Path, help="for run folders (runs/benchmark; of protocol=NAME, OUT/runs)")
    add_options(parser)
    parser.add_argument("--report", action="store_true", help="write the report from existing results, without runs")
    given = parser.parse_intermixed_args(arguments)
    if given.matrix.startswith("protocol="):
        if given.report:
            raise UserError(
                f"{given.matrix} --report: is for a matrix: expected maskgym compare DIR, which runs nothing"
            )
        submission.run(given, run)
        return 0
    for option in ("settings", "level", "seeds"):
        if found := getattr(given, option):
            raise UserError(f"{option} {' '.join(map(str, found))}: is for protocol=NAME: expected the matrix alone")
    if given.matrix == gate.NAME:
        return gate.run(compare.DEFAULT, None, given.out / gate.NAME, given.jobs, run)
    name, runs = Path(given.matrix).stem, (given.runs or Path("runs/benchmark")).absolute()
    results = Results(matrix.load(given.matrix), given.out / name)
    if "version" in results.matrix:
        results = protocol.results(given.matrix, out=given.out / name)
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
        costs.measure(results, runs, run or costs.run_alone)
    text, pictures = benchmark_report.report(results, name)
    for file, content in pictures.items():
        run_folder.write(results.folder / file, content)
    run_folder.write(given.out / f"{name}.md", text)
    print("\n".join(benchmark_report.overview(results)))
    print(given.out / f"{name}.md")
    if runs.exists():  # the table may hold all results
        print(page_command(runs))
    return 0
