"""Findings of a check: rules of a contract that a part breaks, one line each, and notes on what was not checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from maskgym.errors import UserError, one_line

LONGEST = 300  # characters of an error's message in a finding

_Result = TypeVar("_Result")


class Findings:
    """Collects what came and what was expected.

    Args:
        rules: Rules of the contract by name, as `docs/parts.md` lists them. A finding quotes its rule.

    Attributes:
        lines: Findings by rule; further ones of a rule are counted, because one fault often shows in every sample.
        notes: What was left out, and why.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self.rules = rules
        self.lines: dict[str, list[str]] = {}
        self.notes: list[str] = []

    def add(self, rule: str, came: str) -> None:
        """Add what came in place of what a rule says."""
        self.lines.setdefault(rule, []).append(one_line(came))

    def expect(self, holds: bool, rule: str, came: str) -> bool:
        """Add a finding unless a condition holds; return the condition."""
        if not holds:
            self.add(rule, came)
        return holds

    @contextmanager
    def guard(self, rule: str, what: str = "") -> Iterator[None]:
        """Turn any error of the part into a finding.

        Args:
            rule: Rule that the error breaks.
            what: What was asked of the part.
        """
        try:
            yield
        except Exception as error:  # Whatever a foreign part raises is what the check is there to tell.
            self.add(rule, f"{what}: {describe(error)}" if what else describe(error))

    def attempt(self, rule: str, what: str, act: Callable[[], _Result]) -> _Result | None:
        """Call a function under `guard`; None after an error."""
        with self.guard(rule, what):
            return act()
        return None

    def note(self, text: str) -> None:
        """Add a note, once."""
        if one_line(text) not in self.notes:
            self.notes.append(one_line(text))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the findings as lines."""
        for rule, came in self.lines.items():
            more = f" (and {len(came) - 1} more)" if len(came) > 1 else ""
            yield f"{came[0]}{more}; the contract: {self.rules[rule]}"


def describe(error: Exception) -> str:
    """Describe an error in one line: a `UserError` by its message alone, any other with its type."""
    message = one_line(error)[:LONGEST]
    return message if isinstance(error, UserError) else f"raised {type(error).__name__}: {message}".rstrip(": ")
