"""The table of runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskgym.experiments.grids import summary
from maskgym.experiments.wiring import composition


def write_run(
    folder: Path, seed: int, before: float, after: float | None, algo: str = "cgpo", rate: str = "", data: str = "d"
) -> Path:
    folder.mkdir(parents=True)
    scores = [{"reward": value, "iasm": value and value / 2, "mae": 0.1} for value in (before, after)]
    run = {"env": "sis", "algo": algo, "seed": seed, "wall_s": 10, "before": scores[0], "after": scores[1]}
    run["samples"] = {"sis": {"n": 16, "of": 512, "split": "test"}}
    named = {"name": "duts", "root": "DUTS", "split": "test", "samples": 16, "fingerprint": data}
    run["provenance"] = {"held_out": {"sis": named}, "train": {}, "weights": {}}
    (folder / "results.json").write_text(json.dumps(run))
    settings = ["env=sis", f"algo={algo}", f"seed={seed}", *([f"algo.learning_rate={rate}"] if rate else [])]
    (folder / "config.yaml").write_text(composition.dump(composition.compose(settings)))
    return folder


def test_gains_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, after in enumerate((0.6, 0.7, 0.9)):
        write_run(tmp_path / "group" / f"seed{seed}", seed, 0.5, after)
    assert summary.main([str(tmp_path / "group")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "mae" not in "".join(lines)
    assert "| group | reward | 16 of 512 | 0.500 [0.500, 0.500] | 0.733 [0.6" in lines[2] and "| +0.233 [" in lines[2]
    assert "+0.100 +0.200 +0.400" in lines[2]
    assert "| group | iasm | 16 of 512 | 0.250 [" in lines[3] and "| +0.117 [" in lines[3]
    assert lines[4] == "warning: scores of 16 samples: with fewer than 30 samples, differences are mostly chance"


def test_runs_of_several_kinds_are_groups_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate in ("1e-4", "1e-5"):
        for seed in (0, 1):
            write_run(tmp_path / "m" / "runs" / f"{rate}-{seed}", seed, 0.0, 0.5, rate=rate)
    write_run(tmp_path / "m" / "runs" / "other", 0, 0.0, None, algo="sft")
    baseline = tmp_path / "m" / "runs" / "samed"
    baseline.mkdir()
    (baseline / "results.json").write_text('{"baseline": "samed", "scores": {"iou": 0.5}}')
    assert summary.main([str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:-1:2]]
    assert len(set(names)) == 3 and sum("learning_rate=0.0001" in name for name in names) == 1
    assert sum("+0.500 [+0.500, +0.500] | +0.500 +0.500" in line for line in lines) == 2
    assert "| 0.000 | – | – (one seed) | +nan |" in "".join(lines)


def test_runs_of_older_versions_state_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_run(tmp_path / "old", 0, 0.0, 0.5) / "results.json"
    newer = ("samples", "provenance")
    file.write_text(json.dumps({name: v for name, v in json.loads(file.read_text()).items() if name not in newer}))
    assert summary.main([str(tmp_path / "old")]) == 0
    shown = capsys.readouterr().out
    assert "| old | reward | | 0.000 | 0.500 |" in shown and shown.count("warning") == 1
    assert "warning: 1 of 1 results do not name their data, segmenter and weights" in shown


def test_groups_of_other_data_are_not_comparable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algo, data in (("cgpo", "d"), ("sft", "e")):
        write_run(tmp_path / "m" / algo, 0, 0.0, 0.5, algo=algo, data=data)
    assert summary.main([str(tmp_path / "m")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not comparable" in line]
    assert line.startswith(
        "warning: held-out data: not comparable: duts in DUTS, test, 16 samples (d) in 'm, group_size"
    )
    assert "; duts in DUTS, test, 16 samples (e) in 'm, algo=sft" in line


def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([str(tmp_path)]) == 2
    assert "no finished run below: expected results.json files" in capsys.readouterr().err
