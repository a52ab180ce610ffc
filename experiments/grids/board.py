"""Board: ``maskgym board check FOLDER`` checks submitted runs; ``maskgym board page FOLDER …`` makes the board of them.

A submission is a folder of finished runs on levels of a protocol (`docs/benchmark.md`). The check makes the
environments of each level again, scores the stored answers in them, and compares every number of the final answers, to
1e-6; with ``--replay`` the submitted policy answers again too. It then writes ``board.json`` beside the runs.

Verified are the config, the held-out samples, the frozen networks, and the score of the final answers, which is the
one that the board shows. A score at the budget, as `maskgym compare` interpolates it, could not be verified: a run
stores no answers between its beginning and its end. A run must have spent the budget, and the board shows how much
more it spent. Not verified are the log, so what was spent and the curves, the answers before training, how a policy
was trained, and which seeds were left out. Without a replay it is open too whether a policy gave the answers.

The page takes the word of ``board.json``: make it of folders that you checked yourself, on the kind of machine that the
runs were made on, as a GPU may round an answer to another one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from maskgym import manifest
from maskgym.errors import UserError, one_line
from maskgym.experiments.grids import board_check, board_page, compare, protocol
from maskgym.experiments.grids.board_check import Checked
from maskgym.experiments.grids.board_page import Board, Entry
from maskgym.experiments.grids.matrix import Matrix, Results
from maskgym.experiments.report import groups, run_data
from maskgym.experiments.wiring import command, process, run_folder

FILE = "board.json"
DEFAULT = compare.DEFAULT


def check_main(argv: Sequence[str] | None = None) -> int:
    """Check a submission; return the exit status: 2 if something is not found again."""
    return command.status(_check_main, argv)


def _check_main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym board check", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="submission: a folder of finished runs")
    parser.add_argument("--protocol", default=DEFAULT, help="name or path (%(default)s)")
    parser.add_argument("--baselines", type=Path, help="table with floor and ceiling of each level (the protocol's)")
    parser.add_argument("--replay", action="store_true", help="let the submitted policies answer again")
    given = parser.parse_args(arguments)
    results = protocol.results(given.protocol, given.baselines)
    for entry in check(given.folder, results, given.replay)["runs"]:
        told = f"{entry['samples']} answers scored again, {entry['samples'] if entry['replayed'] else 'none'} replayed"
        score = f"{entry['measure']} {entry['score']:.3f}, normalised {entry['normalised']:.3f}"
        of = f"{entry['method']} on {entry['level']}, seed {entry['seed']}"
        print(one_line(f"{given.folder / entry['folder']}: {of}: {score}; {told}"))
    print(one_line(given.folder / FILE))


def page_main(argv: Sequence[str] | None = None) -> int:
    """Make the board of checked submissions; return the exit status: 2 for a usage error."""
    return command.status(_page_main, argv)


def _page_main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym board page", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="checked submission")
    parser.add_argument("--protocol", default=DEFAULT, help="name or path (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("board.md"), help="page to write (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    matrix, boards = protocol.load(given.protocol), dict[str, Board]()
    for folder in given.folders:
        if (name := folder.resolve().name) in boards:
            raise UserError(f"{folder}: two submissions of the name {name}: expected one")
        boards[name] = read(folder, matrix)
    run_folder.write(given.out, board_page.page(boards, matrix))
    print(one_line(given.out))


def check(folder: Path, results: Results, replay: bool = False) -> Board:
    """Check every finished run below a folder, and write ``board.json`` there.

    An older ``board.json`` is removed first, so that none stays in a folder whose check fails.

    Args:
        folder: The submission.
        results: Results of the protocol, see `protocol.results`.
        replay: Whether the submitted policies answer again.

    Raises:
        UserError: At the first setting, sample, number or answer that is not found again.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: expected finished runs")
    (folder / FILE).unlink(missing_ok=True)
    if (folder / protocol.STAMP).exists():
        board_check.check_file(folder, folder / protocol.STAMP)
        with board_check.of_strangers(folder):
            protocol.check_version(results.matrix, folder)
    runs = run_data.below(folder)
    described = describe(folder, runs)
    submitted = [board_check.read(folder, run, results) for run in runs]  # all, before one takes its time
    checked = [board_check.check(one, replay) for one in submitted]
    entries = list(_entries(folder, checked, results))
    board: Board = {
        "protocol": results.matrix["title"],
        "version": results.matrix["version"],
        "maskgym": process.versions().get("maskgym", "unknown"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "runs": entries,
        "files": described,
    }
    # Under a name that a submission cannot have taken by a link.
    run_folder.write(folder / FILE, run_folder.to_json(board, indent=1) + "\n", shared=True)
    return board


def describe(folder: Path, runs: Sequence[Path]) -> dict[str, dict[str, int | str]]:
    """Compute size and checksum of each file that a check of runs is of, by its path in the submission.

    Raises:
        UserError: If one is missing, or a link.
    """
    found = [name for run in runs for name in board_check.names(folder, run)]
    for name in found:
        board_check.check_file(folder, folder / name)
    return manifest.describe(folder, found)


def _entries(folder: Path, checked: Sequence[Checked], results: Results) -> Iterator[Entry]:
    """Describe checked runs, named by what differs between their methods.

    Raises:
        UserError: If a method has two runs of a seed on a level.
    """
    by_folder, seen = {one.of.run.folder: one for one in checked}, set[tuple[str, str, int]]()
    for group in groups.group_runs([one.of.run for one in checked], ("algo",)):
        for run in group.runs:
            one, level = by_folder[run.folder], by_folder[run.folder].of.level
            place = (group.name, level.name, run.config["seed"])
            if place in seen:
                raise UserError(f"{run.folder}: {group.name} has two runs of seed {place[2]}: expected one")
            seen.add(place)
            entry: Entry = {
                "folder": run.folder.relative_to(folder).as_posix(),
                "method": group.name,
                "level": level.name,
                "seed": place[2],
                "measure": level.measure,
                "score": one.score,
                "normalised": float(protocol.normalised(results, level, [one.score])[0]),
                "samples": one.samples,
                "replayed": one.replayed,
            }
            if one.of.spent is not None:
                entry["spent"] = one.of.spent / level.budget
            yield entry


def read(folder: Path, matrix: Matrix) -> Board:
    """Read ``board.json`` of a checked submission.

    Raises:
        UserError: If there is none, it is of another protocol or version, or a run or a file has changed since.
    """
    file = folder / FILE
    if not file.exists():
        raise UserError(f"{folder}: has no {FILE}: expected a folder that maskgym board check found to be right")
    board_check.check_file(folder, file)
    found = run_folder.read_json(file)
    if not _is_board(found):
        raise UserError(f"{file}: is none of maskgym board check: check the folder again")
    board: Board = found
    for name, wanted in (("protocol", matrix["title"]), ("version", matrix["version"])):
        if board[name] != wanted:  # type: ignore[literal-required]
            raise UserError(f"{file}: {name}={board[name]}: expected {wanted}")  # type: ignore[literal-required]
    now = describe(folder, run_data.below(folder))
    for name in dict.fromkeys([*board["files"], *now]):
        if board["files"].get(name) != now.get(name):
            raise UserError(f"{folder / name}: is not as it was checked: run maskgym board check {folder} again")
    known = protocol.levels(matrix)
    if unknown := [entry["level"] for entry in board["runs"] if entry["level"] not in known]:
        raise UserError(f"{file}: level {unknown[0]}: expected one of {', '.join(known)}")
    return board


def _is_board(found: object) -> bool:
    """Check the types of what a file holds."""
    kinds = {"protocol": str, "version": int, "maskgym": str, "date": str, "runs": list, "files": dict}
    of_run: Mapping[str, type | tuple[type, ...]] = {
        **{"folder": str, "method": str, "level": str, "seed": int, "measure": str, "score": (int, float)},
        **{"normalised": (int, float), "samples": int, "replayed": bool},
    }
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
        and all(
            isinstance(run, dict)
            and all(isinstance(run.get(name), kind) for name, kind in of_run.items())
            and isinstance(run.get("spent", 0.0), (int, float))
            for run in found["runs"]
        )
    )
