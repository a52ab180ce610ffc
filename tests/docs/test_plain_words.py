"""The lint of prose: what it reads of a file, what it refuses, and that the tree passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import plain_words  # noqa: E402 (a script beside the pages)


def check(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return list(plain_words.faults(tmp_path / name))


@pytest.mark.parametrize(
    "line",
    [
        '"""Return what workers share."""',
        '"""What the environments have in common."""',
        '    """Compute one mask a phrase."""',
        "# 128 answers an update",
        "# all but for the last",
        "# 1 less the error",
        "# the embedded policy",
        "# the truth of a sample",
        "# the batch is dealt out to workers",
        "# a group without signal",
    ],
)
def test_a_line_against_the_rules_is_found_in_comments_and_docstrings(tmp_path, monkeypatch, line):
    (found,) = check(tmp_path, monkeypatch, "module.py", f"x = 1\n{line.strip()}\n")
    assert found.startswith("module.py:2: ") and "write" in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("module.py", 'truth = "the embedded truth"\n'),
        ("module.py", '"""Compute one mask per phrase; the ground truth is `truth`."""\n'),
        ("module.py", '"""Score a mask.\n\n>>> truth = embedded\n\nUse --truth.\n"""\n'),
        ("module.py", "# It returns what it was given, and embedded in a page.\n"),
        ("page.md", "Write `truth` and\n```python\ntruth = embedded\n```\n"),
        ("option.yaml", "truth: 1 # the ground truth\n"),
    ],
)
def test_code_and_plain_words_pass(tmp_path, monkeypatch, name, text):
    assert check(tmp_path, monkeypatch, name, text) == []


def test_a_fault_names_the_line_of_the_file(tmp_path, monkeypatch):
    text = "fine\n\n```bash\nls\n```\n\nThe truth.\n"
    assert check(tmp_path, monkeypatch, "page.md", text) == ["page.md:7: 'truth': write 'ground truth'"]
    assert check(tmp_path, monkeypatch, "a.yaml", "a: 1\nb: 2 # steps an episode\n") == [
        "a.yaml:2: 'steps an episode': write 'per', not 'a'"
    ]


def test_every_file_that_git_tracks_has_plain_words():
    command = [sys.executable, "docs/plain_words.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
