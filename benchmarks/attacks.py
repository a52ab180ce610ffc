"""Attack the library by seeded generators, one row per class of attack: tried and survived, none silent.

    python benchmarks/attacks.py                    # all rows at full count, cheap ones first
    python benchmarks/attacks.py --share 0.02 files pages
    python benchmarks/attacks.py --counts files=100 code=20

A case survives if it ends in the right result, or in one line that names what is wrong. Prints a table, and exits with
status 1 if a case did not survive. `benchmarks/faults.py` does the same to whole processes on Ray.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked children have none of their parent's threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from maskgym.benchmarks.attacked import code, damage, faults, pages, parts, sets
from maskgym.benchmarks.attacked.harness import Row, Stage, run

MOST_DATA = 6 * 2**30  # bytes of this process; what explodes then fails, and does not take the machine along
ROWS: dict[str, Row] = {
    "pickles": Row("RefCOCO pickles", 22, code.pickled_expressions),
    "yaml": Row("YAML tags", 16, code.tagged_yaml),
    "token": Row("token", 15, pages.token),
    "players": Row("three players on one folder", 2, faults.two_players),
    "reviewers": Row("two reviewers on one folder", 2, faults.two_reviewers),
    "vectors": Row("vector environments, wrong actions", 84, parts.wrong_steps),
    "metrics": Row("metrics × odd arrays", 988, parts.odd_arrays),
    "play": Row("play page", 124, pages.play_page),
    "page": Row("dig page", 137, pages.dig_page),
    "hf": Row("hostile sets through `data=hf`", 24, sets.hugging_face),
    "dig": Row("hostile sets through `data dig`", 47, sets.dug_photos),
    "sets": Row("hostile sets through `data check`", 390, sets.checked_sets),
    "answers": Row("answers parsed (time linear)", 600_000, parts.answers, batch=parts.BATCH),
    "code": Row("malicious pickles, auto_map, jinja, tokenizers: code run?", 111, code.carried_code),
    "checkpoint": Row("edits of a text checkpoint", 30, damage.edited_checkpoints),
    "runs": Row("two runs on one folder", 3, faults.two_runs),
    "kill": Row("kill -9 and resumed, equal to the last digit", 24, faults.killed),
    "interrupt": Row("Ctrl-C while running, resumed", 9, faults.interrupted),
    "start": Row("Ctrl-C at start-up", 31, faults.starting),
    "disk": Row("full disk", 20, faults.full_disk),
    "long": Row("long runs: memory, handles", 4, parts.long_runs, bound_s=300),
    "files": Row("files of a run damaged × resume, evaluate, report, play", 570, damage.damaged_files),
}


def main() -> int:
    """Run the chosen rows, and print the table; return the exit status."""
    given = _parse()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    failures: list[str] = []
    print("| class | tried | survived | told by name | seconds |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        for name in given.rows or ROWS:
            start, row = time.monotonic(), ROWS[name]
            count = given.counts.get(name, math.ceil(row.count * given.share))
            tally = run(name, row, stage, given.seed, count)
            failures += tally.failures
            kept, seconds = tally.tried - len(tally.failures), time.monotonic() - start
            print(f"| {row.title} | {tally.tried:,} | {kept:,} | {tally.told:,} | {seconds:.0f} |", flush=True)
    print("\n".join(["", *failures]))
    return int(bool(failures))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (all)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (%(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the full count of each row (%(default)s)")
    parser.add_argument("--counts", nargs="+", default=[], metavar="ROW=N", help="cases of single rows")
    given = parser.parse_intermixed_args()
    given.counts = {name: int(count) for name, _, count in (one.partition("=") for one in given.counts)}
    if unknown := [name for name in (*given.rows, *given.counts) if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]}: expected {', '.join(ROWS)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
