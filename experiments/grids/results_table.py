"""Results of many runs in one file: ``NAME.jsonl.gz``, one JSON object per run.

A page of results is made from such a table, so a repository holds one file per page in place of a folder per run.
Equal rows give equal bytes: rows are sorted by key, and the compressed file has no time stamp.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.wiring import run_folder

SUFFIX = ".jsonl.gz"
KEY = "key"  # field of a row that names its run


def read(file: Path) -> dict[str, JsonObject]:
    """Read the rows of a table by key; a missing file is an empty table.

    Raises:
        UserError: If the file cannot be read.
    """
    if not file.exists():
        return {}
    try:
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        return {row.pop(KEY): row for row in rows}
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{file}: cannot be read as a table of results: {error}") from error


def write(file: Path, rows: Mapping[str, JsonObject]) -> None:
    """Write a table atomically."""
    lines = [run_folder.to_json({KEY: key, **rows[key]}) for key in sorted(rows)]
    run_folder.write(file, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def agrees(then: JsonObject, now: JsonObject) -> bool:
    """Check whether every value of an earlier config is unchanged; new keys are ignored."""
    return all(
        name in now and (agrees(value, now[name]) if isinstance(value, dict) and value else value == now[name])
        for name, value in then.items()
    )


def newer_keys(then: JsonObject, now: JsonObject, prefix: str = "") -> list[str]:
    """List the keys of a config that an earlier one, which `agrees`, did not have yet.

    What ``algo=`` means in an environment is none: the config has what it meant.
    """
    found = []
    for name, value in now.items():
        if name == "algo_aliases":
            continue
        if name not in then:
            found.append(f"{prefix}{name}")
        elif isinstance(value, dict) and isinstance(then[name], dict):
            found += newer_keys(then[name], value, f"{prefix}{name}.")
    return found


def named(columns: Mapping[str, Sequence[Result]], configs: Mapping[str, tuple[JsonObject, JsonObject]]) -> list[str]:
    """Tell in one line each what a table is of, and where results of a column differ in that or do not say it.

    Args:
        columns: Results by column.
        configs: For the key of each stored result its config, and what its config would be today.
    """
    of = [(column, one.provenance) for column, each in columns.items() for one in each if one.provenance is not None]
    wrong = [(column, line) for column, each in columns.items() for line in provenance.differences(each)]
    newer = [keys for then, now in configs.values() if (keys := newer_keys(then, now))]
    told = provenance.labelled(wrong, columns)
    if newer:
        older = f"{len(newer)} of {len(configs)} stored results are older than these settings, and need not have their"
        told.append(f"{older} defaults: {', '.join(sorted({key for keys in newer for key in keys}))}")
    return [*provenance.shown_of_several(of), *(f"warning: {line}" for line in told)]
