"""Lint of prose: ``python docs/plain_words.py [FILE …]`` prints each line that breaks a rule of CONTRIBUTING.md.

It reads comments and docstrings of Python, comments of YAML, and Markdown without code. ``make lint``, the pre-commit
hook and the tests run it over all files that git tracks.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPPED = ("tests/", "CHANGELOG.md", "docs/plain_words.py")
COUNTED = (
    "answer|batch|category|class|episode|file|folder|group|image|instance|kind|line|object|phrase|prompt|row"
    "|run|sample|seed|split|step|sub-environment|task|token|update|worker"
)
COUNTS = (
    "answers|calls|clicks|embeddings|episodes|examples|expressions|files|folders|hours|lines|masks|minutes|numbers"
    "|patches|photos|phrases|pictures|pixels|processes|prompts|rows|samples|seconds|steps|threads|times|tokens|updates"
    r"|values|words|[Oo]ne \w+|MiB|GiB|MB|ms|s|\d(?:[\d,.]*\d)?"
)
# Each pattern with what to write instead.
RULES = {
    r'^"""(Returns? (what|which|how|where|who)|What|Which|Where|How)\b': "begin with a verb and a noun",
    r"^\w+: Of\b": "name the thing: 'Learning rate for Adam', not 'Of Adam'",
    r"\bbut for\b": "'except', 'without'",
    r"\bless (the|its|their|what|those|one)\b": "'minus', 'without'",
    rf"\b({COUNTS}) an? ({COUNTED})\b": "'per', not 'a'",
    r"(?<!is )(?<!are )\b[Ee]mbedded\b(?! in)": "'bundled'",
    r"(?<!round )(?<!round-)(?<!--)(?<!^\| the )(?<!around the )\b[Tt]ruths?\b(?!:)": "'ground truth'",
    r"\b(dealt|deals?) out\b": "'sharded', 'split'",
    r"\btrained along\b": "'jointly trained'",
    r"\blogical batch\b": "'global batch'",
    r"\bgroups? without signal\b": "'zero-variance group'",
    r"\bthe first worker\b": "'rank 0'",
    r"\ball the same\b": "'still', 'anyway'",
    r"\bwhole or not there\b": "'atomic'",
    r"\b(what|that) (there is|is there)\b": "name the thing",
}


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a file's prose; a docstring begins with its quotes."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                for number, line in enumerate(token.string.splitlines(), token.start[0]):
                    if not line.lstrip().startswith((">>>", "...")):
                        yield number, line
    elif file.suffix == ".yaml":
        for number, line in enumerate(text.splitlines(), 1):
            yield number, line.partition("#")[2]
    else:
        blocks = re.sub(r"(?ms)^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text)
        yield from enumerate(blocks.splitlines(), 1)


def faults(file: Path) -> Iterator[str]:
    """Yield one line per broken rule of a file."""
    for number, line in prose(file):
        words = re.sub(r"``.*?``|`.*?`|\]\(.*?\)", "`code`", line.strip())
        for pattern, advice in RULES.items():
            if found := re.search(pattern, words):
                yield f"{file.relative_to(ROOT)}:{number}: '{found[0]}': write {advice}"


def main(arguments: list[str]) -> int:
    """Check the given files, or all that git tracks; return 1 if a rule is broken."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    names = [str(Path(name).resolve().relative_to(ROOT)) for name in arguments] or tracked
    files = [ROOT / name for name in names if name.endswith((".py", ".md", ".yaml")) and not name.startswith(SKIPPED)]
    found = [fault for file in files if file.is_file() for fault in faults(file)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
