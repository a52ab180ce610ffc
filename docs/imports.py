"""Draw the imports between the folders into docs/architecture.md: ``python docs/imports.py`` (needs import-linter).

Lazy imports count. The drawing leaves out arrows that follow from two others.
"""

from __future__ import annotations

from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- imports: begin -->\n", "<!-- imports: end -->\n"
LEAVES = ("aliases", "errors", "files", "interrupt", "manifest")  # imported by nearly all folders


def folder(module: str) -> str:
    """Name the node of a module: its folder, one level deeper inside experiments."""
    parts = module.split(".")[1:]
    deep = 2 if parts[0] == "experiments" else 1
    return "/".join(parts[:deep])


def arrows() -> set[tuple[str, str]]:
    """Find which folder imports which."""
    graph = grimp.build_graph("maskgym", include_external_packages=False, exclude_type_checking_imports=False)
    found = {
        (folder(module), folder(imported))
        for module in graph.modules - {"maskgym", "maskgym.experiments"}
        for imported in graph.find_modules_directly_imported_by(module) - {"maskgym", "maskgym.experiments"}
    }
    return {(a, b) for a, b in found if a != b and b not in LEAVES}


def reduced(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop the arrows that follow from others.

    Raises:
        ValueError: If the arrows form a circle.
    """
    below: dict[str, set[str]] = {}

    def reach(node: str, path: tuple[str, ...] = ()) -> set[str]:
        if node in path:
            raise ValueError(f"a circle of imports: {' -> '.join((*path, node))}")
        if node not in below:
            direct = {b for a, b in edges if a == node}
            below[node] = direct.union(*(reach(b, (*path, node)) for b in direct))
        return below[node]

    for node in {a for a, _ in edges}:
        reach(node)
    return sorted(
        (a, b) for a, b in edges if not any(b in below[c] for x, c in edges if x == a and c != b and c in below)
    )


def drawing() -> str:
    """Format the arrows as a Mermaid diagram."""
    lines = [f"  {a.replace('/', '_')}[{a}] --> {b.replace('/', '_')}[{b}]" for a, b in reduced(arrows())]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def page(text: str) -> str:
    """Replace the drawing in the text of the page."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + drawing() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
