"""Time the answer parser: ten times the text may take at most fifteen times as long, hostile text included.

    python benchmarks/parser.py

Prints one row per kind of text and exits with status 1 if a ratio is above the limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from maskgym.rewards.answers import TAGS, parse

LENGTH = 400_000  # characters of the short text, enough that both texts live in memory pages of their own
REPEATS = 9
LIMIT = 15.0


def in_blocks(content: str) -> str:
    """Return an answer with the given content of its answer block."""
    return f"<think>a</think><answer>{content}</answer>"


def filled(unit: str, wrap: Callable[[str], str] = in_blocks) -> Callable[[int], str]:
    """Build a function that repeats a unit up to a given length."""
    return lambda length: wrap(unit * (length // len(unit)))


TEXTS: dict[str, Callable[[int], str]] = {
    "many instances": filled("<ins>a red cup on the left</ins>"),
    "many regions": filled("<rg>[semantic] cup</rg>\n"),
    "one long description": filled("a red cup ", lambda text: in_blocks(f"<ins>{text}</ins>")),
    "long reasoning": filled("a red cup ", lambda text: f"<think>{text}</think><answer><ins>a cup</ins></answer>"),
    "angle brackets alone": filled("<", str),
    "angle brackets inside": filled("<"),
    "opening tags": filled("<ins>"),
    "closing tags": filled("</ins>"),
    "nested tags": filled("<ins>", lambda text: in_blocks(text + text.replace("<", "</"))),
    "almost closed": filled("<ins>a cup</ins"),
    "think after think": filled("<think>", str),
    "answer after answer": filled("<think></think><answer>", str),
    "closing answers": filled("</answer", lambda text: "<think>a</think><answer>" + text),
    "blanks": filled(" "),
    "blanks in a tag": filled(" ", lambda text: in_blocks(f"<ins>{text}</ins>")),
    "markers": filled("[semantic]", lambda text: in_blocks(f"<rg>{text}</rg>")),
    "nothing but NUL": filled("\x00", lambda text: in_blocks(f"<ins>{text}</ins>")),
    "lone surrogates": filled("\ud800", lambda text: in_blocks(f"<ins>{text}</ins>")),
}


def measure(text: str) -> float:
    """Measure the CPU seconds to parse one text for all three tasks."""
    start = time.process_time()
    for task in TAGS:
        parse(text, task)
    return time.process_time() - start


def main() -> int:
    """Print the table; return the exit status."""
    print(f"{'text':<22}{LENGTH:>10,} chars{10 * LENGTH:>12,} chars{'ratio':>8}")
    worst = 0.0
    for name, build in TEXTS.items():
        texts = build(LENGTH), build(10 * LENGTH)
        # Interleaved, so that a slow spell of the machine meets both lengths; the minimum is the least disturbed.
        runs = [tuple(measure(text) for text in texts) for _ in range(REPEATS)]
        short, long = (min(column) for column in zip(*runs, strict=True))
        worst = max(worst, long / short)
        print(f"{name:<22}{1e3 * short:>13.2f} ms{1e3 * long:>15.2f} ms{long / short:>8.1f}")
    print(f"worst ratio {worst:.1f}, limit {LIMIT:.0f}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
