"""Fuzz the edges: random actions over all environments, and mutated data files over all readers.

    python benchmarks/fuzz.py                                    # 100,000 actions and 2,000 data files
    python benchmarks/fuzz.py --actions 20000 --files 0 SIS-v0   # rows whose name begins so

Each case is labelled by its generator, not by the code under test, and repeated by its seed, row and number.

- *actions*: `maskgym.benchmarks.fuzzing.actions`. A legal one is taken, an illegal one is refused by a line that names
  the environment, what came and what was expected, and leaves no trace.
- *files*: `maskgym.benchmarks.fuzzing.files`. A harmful mutation is refused or noted by the name of what is at fault, a
  harmless one changes no value.

Nothing but a `UserError` of one line may be raised, and no case may take more than 20 s or 1 GiB. The exit status is 1
if a case did not survive.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from maskgym.benchmarks.fuzzing import actions, files
from maskgym.benchmarks.fuzzing.verdicts import Tally, print_failures

HEADER = "| class | tried | survived | told by name |\n|---|---|---|---|"


def fuzz(seed: int, number_of_actions: int, number_of_files: int, wanted: Sequence[str] = ()) -> list[Tally]:
    """Try random actions and mutated files.

    Args:
        seed: Seed of all cases.
        number_of_actions: Number of actions, shared among the rows.
        number_of_files: Number of mutated data sets, shared among the rows.
        wanted: Beginnings of the names of the rows to try; empty for all.

    Returns:
        The tallies of all rows that were tried.
    """
    found: list[Tally] = []
    for part, total in ((actions, number_of_actions), (files, number_of_files)):
        rows = part.rows_of(seed) if total else ()
        for row, count in zip(rows, part.counts_of(total, rows), strict=True):
            if wanted and not row.tallies[0].name.startswith(tuple(wanted)):
                continue
            steps = tqdm(row.run(count), desc=row.tallies[0].name, total=count, unit="case", disable=None, leave=False)
            for _ in steps:
                pass
            found += row.tallies
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="beginnings of the names of rows (all)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (%(default)s)")
    parser.add_argument("--actions", type=int, default=100_000, help="number of actions (%(default)s)")
    parser.add_argument("--files", type=int, default=2_000, help="number of mutated data sets (%(default)s)")
    given = parser.parse_args(arguments)
    tallies = fuzz(given.seed, given.actions, given.files, given.rows)
    print(HEADER)
    for tally in tallies:
        print(tally)
        print_failures(tally)
    whole = [sum(getattr(tally, name) for tally in tallies) for name in ("tried", "survived", "told")]
    print("| total |", " | ".join(f"{number:,}" for number in whole), "|")
    return int(whole[0] != whole[1])


if __name__ == "__main__":
    sys.exit(main())
