"""Files of grids: YAML that describes runs, and Markdown tables of their results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskgym.errors import UserError


class Loader(yaml.SafeLoader):
    """YAML in which ``1e-5`` is a number, as in Hydra's files and YAML 1.2; PyYAML reads it as a text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(name: str, folder: Path, kind: str, keys: set[str], optional: Iterable[str] = ()) -> Any:
    """Read a YAML file by its name in a folder, or by path.

    Raises:
        UserError: If the file does not exist or cannot be read, or its top-level keys are not ``keys`` and some of
            ``optional``.
    """
    file = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise UserError(f"{kind} '{name}': no such file: expected a path, or one of {known(folder)}") from None
    except (OSError, yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    check_keys(found, keys, f"{file}: is not a {kind}", optional)
    return found


def check_keys(part: object, keys: set[str], fault: str, optional: Iterable[str] = ()) -> None:
    """Raise a UserError that begins with ``fault`` unless ``part`` is a dictionary with these keys."""
    if not isinstance(part, Mapping) or set(part) - set(optional) != keys:
        also = f", and perhaps {', '.join(sorted(optional))}" if optional else ""
        raise UserError(f"{fault}: expected the keys {', '.join(sorted(keys))}{also}")


def check_parts(parts: Mapping[str, object], keys: Iterable[str], where: str) -> None:
    """Raise a UserError if a row or column is no dictionary, or has another key than ``keys``; all are optional."""
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(f"{where}: expected names and what is of each")
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise UserError(f"{where}.{name}: {part}: expected {{}}, or keys among {', '.join(sorted(keys))}")
        if unknown := sorted(set(part) - set(keys)):
            raise UserError(f"{where}.{name}: unknown key '{unknown[0]}': expected one of {', '.join(sorted(keys))}")


def known(folder: Path) -> str:
    """List the names of the YAML files in a folder, for messages."""
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Format a Markdown table as lines."""
    return [_line(head), f"|{'---|' * len(head)}", *map(_line, body)]


def items(lines: Sequence[str]) -> list[str]:
    """Format lines as a Markdown list, with an empty line at its end; nothing for none."""
    return [*(f"- {line}" for line in lines), ""] if lines else []


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"
