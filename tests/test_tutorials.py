"""The code on the pages for newcomers, run as a reader would: each page's blocks in order, in one folder.

To run a page by hand, in the folder you are in: ``python tests/test_tutorials.py docs/tutorials/first_run.md``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.experiments import cli

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *TUTORIALS]
MARK, FENCE = "<!-- not run", re.compile(r"^[ \t]*```(?:bash|python)\b", re.MULTILINE)
BLOCK = re.compile(
    rf"(?:^{MARK}(?P<reason>[^\n]*)-->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
MOST_NOT_RUN = 1 / 3  # of the tutorials' blocks
PATIENCE_S = 1200
LARGEST_PICTURE = 250_000  # bytes


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: ``bash`` or ``python``.
        code: Its text.
        line: Line of the page on which the code begins, from 1.
        reason: Reason in ``<!-- not run: reason -->`` on the line above the block; None for a block that is run.
    """

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["code"],
            text.count("\n", 0, found.start("code")) + 1,
            None if found["reason"] is None else found["reason"].removeprefix(":").strip(),
        )
        for found in BLOCK.finditer(text)
    ]


def play(page: Path) -> None:
    """Run the blocks of a page in the current folder; those of Python share one namespace.

    Raises:
        Exception: The error of the first block that fails, with the page's line.
    """
    namespace = {"__name__": "__main__"}
    installs = any("pip install" in block.code for block in blocks(page) if block.reason is None)
    for block in blocks(page):
        if block.reason is not None:
            continue
        print(f"--- {page.name}, line {block.line}", flush=True)
        if block.language == "python":  # line breaks ahead, so that a traceback shows the page
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        elif installs or not (commands := plain_commands(block.code)):  # what is installed is found by new processes
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], check=True)
        else:
            for arguments in commands:
                status = cli.main(arguments)
                assert status == 0, f"line {block.line}: maskgym {shlex.join(arguments)}: exit status {status}"


def plain_commands(code: str) -> list[list[str]]:
    """Return the arguments of each line's ``maskgym``, which this process can call; none if a line needs a shell."""
    lines = [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]
    if any(not line.startswith("maskgym ") or set(line) & set("|&;<>$`*") for line in lines):
        return []
    return [shlex.split(line)[1:] for line in lines]


def surroundings(home: Path) -> dict[str, str]:
    """Return the environment of a page: short runs, no network, and `pip` installing into a folder of its own."""
    installed = str(home / "installed")
    before = {
        "PATH": str(Path(sys.executable).parent),  # unresolved: a virtual environment's python is a link
        "PYTHONPATH": installed,
    }
    paths = {name: os.pathsep.join(filter(None, [first, os.environ.get(name)])) for name, first in before.items()}
    pip = {"PIP_TARGET": installed, "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
    pip |= {"PIP_NO_DEPS": "1"}  # maskgym is not in that folder, but it is there
    quick = {"MASKGYM_UPDATES": "2", "MASKGYM_BATCH": "16", "MASKGYM_SAMPLES": "8", "RAY_worker_niceness": "0"}
    here = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "MPLBACKEND": "agg"}
    return {**os.environ, **paths, **pip, **quick, **here}


def check_picture(file: Path) -> None:
    """Raise an AssertionError if the picture is missing or of a single colour."""
    assert file.is_file(), f"{file}: was not made"
    levels = np.asarray(Image.open(file).convert("L"))
    assert levels.std() > 1, f"{file}: is blank"


@pytest.mark.e2e(seconds=100)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, tmp_path):
    if any(re.search(r"scale=ray|--ray\b", block.code) for block in blocks(page) if block.reason is None):
        pytest.importorskip("ray")
    for folder in ("experiments", "benchmarks"):  # what a clone offers, for `python experiments/run.py …`
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # installing it writes there
    run(page, tmp_path, surroundings(tmp_path))
    if page in TUTORIALS:
        check_picture(tmp_path / f"tutorial_{page.stem}.png")


def run(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a page in a process of its own, and end every process that it started.

    Raises:
        AssertionError: If a block fails, or the page takes too long; with the end of its output.
    """
    command = [sys.executable, __file__, str(page)]
    log = folder / "printed.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert status == 0, f"exit status {status}\n{log.read_text(errors='replace')[-6000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_found_and_says_why_it_is_not_run(page):
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    assert len(FENCE.findall(text)) == len(found), (
        "a block is indented, or its first line says more than bash or python"
    )
    assert text.count(MARK) == sum(block.reason is not None for block in found), "a mark is not right above its block"
    for block in found:
        assert block.reason != "", f"{page}, line {block.line}: expected {MARK}: reason -->"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_shows_the_picture_that_its_last_block_makes(page):
    name = f"tutorial_{page.stem}.png"
    assert f"](../pictures/{name})" in page.read_text(encoding="utf-8")
    assert name in [block for block in blocks(page) if block.reason is None][-1].code
    check_picture(ROOT / "docs" / "pictures" / name)
    assert (ROOT / "docs" / "pictures" / name).stat().st_size < LARGEST_PICTURE


def test_few_blocks_of_the_tutorials_are_not_run():
    found = [block for page in TUTORIALS for block in blocks(page)]
    left_out = [block for block in found if block.reason is not None]
    print(f"{len(left_out)} of {len(found)} blocks are not run")
    assert found
    assert len(left_out) <= MOST_NOT_RUN * len(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nls\n```\n", [("bash", "ls\n", 2, None)]),
        ("a\n<!-- not run: it waits -->\n```python\nx = 1\n```\n", [("python", "x = 1\n", 4, "it waits")]),
        ("<!-- not run -->\n```bash\nls\n```\n", [("bash", "ls\n", 3, "")]),
        ("<!-- not run: far off -->\n\n```bash\nls\n```\n", [("bash", "ls\n", 4, None)]),
        ("```text\nls\n```\n\n```yaml\na: 1\n```\n", []),
        ("```bash\na\n```\n```bash\nb\n```\n", [("bash", "a\n", 2, None), ("bash", "b\n", 5, None)]),
    ],
)
def test_blocks(tmp_path, text, expected):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert [(block.language, block.code, block.line, block.reason) for block in blocks(page)] == expected


def test_lines_that_need_no_shell_are_commands_of_this_process():
    assert plain_commands("maskgym run env=sis \\\n  'out=a b'\nmaskgym doctor\n") == [
        ["run", "env=sis", "out=a b"],
        ["doctor"],
    ]
    for code in ("maskgym doctor | head\n", "short=1\nmaskgym run $short\n", "maskgym doctor\nls\n"):
        assert plain_commands(code) == []


def test_a_block_that_fails_fails_its_page_with_the_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nvalue = 7\n```\n\n```python\nprint(value)\nraise ValueError('here')\n```\n")
    with pytest.raises(AssertionError, match=r'(?s)\n *7\n.*page.md", line 7.*here'):
        run(page, tmp_path, surroundings(tmp_path))
    page.write_text("```bash\nfalse | true\ntouch later\n```\n")
    with pytest.raises(AssertionError, match="exit status 1"):
        run(page, tmp_path, surroundings(tmp_path))
    assert not (tmp_path / "later").exists()


def test_marked_blocks_are_left_out_and_pip_installs_beside(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: on purpose -->\n```bash\ntouch marked\n```\n"
        "```bash\necho $MASKGYM_UPDATES > updates\npython -c 'import maskgym; print(maskgym.__version__)'\n```\n"
    )
    run(page, tmp_path, surroundings(tmp_path))
    assert not (tmp_path / "marked").exists() and (tmp_path / "updates").read_text() == "2\n"


if __name__ == "__main__":
    sys.path[0] = ""  # as at a prompt: what lies in the current folder can be imported
    play(Path(sys.argv[1]).resolve())
