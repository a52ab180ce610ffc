"""Runs of tables: their commands, what is shared, how failures are told."""

from __future__ import annotations

import importlib
import json

import pytest

from maskgym.errors import UserError
from maskgym.experiments.grids import runner
from maskgym.experiments.grids.runner import RunSpec, compute, config_of

CLICKS = ("env=point_prompt", "algo=random", "env.task=glass")


def test_numbers_of_one_run_share_its_commands(tmp_path, fake):
    specs = [
        RunSpec((*CLICKS, "seed=0"), measure="iou"),
        RunSpec((*CLICKS, "seed=0"), ("env.horizon=1",), "iou@1"),
        RunSpec((*CLICKS, "seed=0"), ("env.horizon=1",), "iou"),
        RunSpec((*CLICKS, "seed=1")),
    ]
    done = []
    compute(specs, tmp_path, jobs=2, run=fake, on_done=done.append)
    folders = [specs[0].folder(tmp_path), specs[3].folder(tmp_path)]
    assert sorted(words for words, _ in fake.calls) == sorted(
        [
            ("run", *CLICKS, "seed=0", f"out={folders[0]}"),
            ("evaluate", str(folders[0]), "env.horizon=1"),
            ("run", *CLICKS, "seed=1", f"out={folders[1]}"),
        ]
    )
    assert [spec.value(tmp_path) for spec in specs] == [0.5, 0.25, 0.5, 0.5]
    assert sorted(done, key=lambda spec: spec.arguments) == [specs[0], specs[3]]
    compute(specs, tmp_path, run=fake)
    assert len(fake.calls) == 3  # nothing was missing


def test_a_run_that_was_started_is_resumed(tmp_path, fake):
    spec = RunSpec(CLICKS)
    spec.folder(tmp_path).mkdir()
    (spec.folder(tmp_path) / "config.yaml").touch()
    fake.status, fake.error = 2, "error: as planned\n"
    with pytest.raises(UserError, match=r"1 of 1 runs failed; the first: run resume=.*: error: as planned"):
        compute([spec], tmp_path, run=fake)
    assert fake.calls == [(("run", f"resume={spec.folder(tmp_path)}"), False)]


def test_a_baseline_is_fitted_to_the_data_segmenter_and_samples_of_the_runs(tmp_path, fake):
    given = (*CLICKS, "train_samples=5", "evaluation.samples=3", "seed=2", "data=folder", "data.root=photos")
    given += ("segmenter=sam", "segmenter.checkpoint=sam_vit_b.pth")
    spec = RunSpec(given, measure="iou", baseline="samed")
    compute([spec], tmp_path, run=fake)
    assert fake.calls == [(("baselines", "samed", *given, f"--out={spec.file(tmp_path)}"), False)]
    assert spec.value(tmp_path) == 0.5
    for change in ("data.root=elsewhere", "segmenter.checkpoint=sam_vit_h.pth", "train_samples=6", "env.task=blur"):
        assert RunSpec((*given, change), baseline="samed").folder(tmp_path) != spec.folder(tmp_path)
    other = RunSpec((*given, "algo=ppo", "env.horizon=3"), baseline="samed")
    assert other.folder(tmp_path) == spec.folder(tmp_path)  # which do not concern it


def test_runs_on_ray_are_cold(tmp_path, fake):
    compute([RunSpec(("env=user_need", "algo=usersal", "scale=ray"))], tmp_path, run=fake)
    compute([RunSpec(("env=user_need", "algo=usersal"))], tmp_path, run=fake)
    assert [cold for _, cold in fake.calls] == [True, False]


def test_one_failure_keeps_the_other_runs_and_a_silent_one_tells_its_status(tmp_path, fake):
    def run(words, cold=False):
        fake.status = -9 if "seed=0" in words else 0
        return fake(words, cold)

    specs = [RunSpec((*CLICKS, f"seed={seed}")) for seed in range(3)]
    with pytest.raises(UserError, match=r"1 of 3 runs failed; the first: run .* seed=0 out=.*: exit status -9"):
        compute(specs, tmp_path, run=run)
    assert [spec.file(tmp_path).exists() for spec in specs] == [False, True, True]


def test_where_a_run_is_made_counts_where_its_numbers_depend_on_it():
    base = ("env=sod", "algo=cgpo")
    two = config_of((*base, "scale=ray"))
    assert config_of((*base, "scale=local")) == config_of(base) != two
    assert config_of((*base, "scale=ray", "scale.max_failures=9")) == two
    assert config_of((*base, "scale=ray", "scale.num_workers=1")) != two


def test_a_row_of_other_defaults_is_not_taken(tmp_path, fake):
    spec = RunSpec(CLICKS, measure="iou")
    compute([spec], tmp_path, run=fake)
    row = spec.row(tmp_path)
    assert json.loads(json.dumps(row))["results"] == {"after": fake.scores}
    assert spec.value(tmp_path / "elsewhere", {spec.key: row}) == 0.5
    assert spec.stored({spec.key: {**row, "config": {**row["config"], "train_samples": 7}}}) is None
    assert spec.stored({}) is None


def test_a_server_imports_what_its_runs_need():
    trained, untrained = (RunSpec(("env=sis", "algo=cgpo", f"algo.updates={updates}")) for updates in (1, 0))
    assert {"maskgym.agents:cgpo", "maskgym.segmenters:evf_sam_tiny"} <= set(runner._parts(untrained))
    assert set(runner._parts(trained)) - set(runner._parts(untrained)) == {"maskgym.agents.text.training"}
    assert not any(":" in part for part in runner.COMMON)
    for part in (*runner._parts(trained), *runner._parts(RunSpec(CLICKS, baseline="samed"))):
        module, _, name = part.partition(":")
        found = importlib.import_module(module)
        assert not name or found.get(name)
