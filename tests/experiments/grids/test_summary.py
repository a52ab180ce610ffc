"""The table of runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskgym.experiments.grids import summary


def write_run(folder: Path, seed: int, before: float, after: float, algo: str = "cgpo") -> None:
    folder.mkdir(parents=True)
    scores = [{"reward": value, "iasm": value / 2, "mae": 0.1} for value in (before, after)]
    run = {"env": "sis", "algo": algo, "seed": seed, "wall_s": 10, "before": scores[0], "after": scores[1]}
    (folder / "results.json").write_text(json.dumps(run))


def test_gains_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, after in enumerate((0.6, 0.7, 0.9)):
        write_run(tmp_path / "group" / f"seed{seed}", seed, 0.5, after)
    assert summary.main([str(tmp_path / "group")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "mae" not in "".join(lines)
    assert "| group | reward | 0.500 | 0.733 | +0.233 [" in lines[2]
    assert "+0.100 +0.200 +0.400" in lines[2]
    assert "| group | iasm | 0.250 | 0.367 | +0.117 [" in lines[3]


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([str(tmp_path)]) == 2
    write_run(tmp_path / "a", 0, 0, 1)
    write_run(tmp_path / "b", 0, 0, 1, algo="sft")
    assert summary.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
