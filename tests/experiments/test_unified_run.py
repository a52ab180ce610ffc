"""One policy on three tasks with a set for each: real photographs, a run, and its evaluation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from maskgym import data
from maskgym.errors import EmptySplit
from maskgym.experiments import cli, run

DATA = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[3] / "shared" / "data")
SETS = {"sod": "real_sod", "sis": "real_sis", "cosod": "real_cosod"}
TAGS = {"sod": "<rg>a dog</rg>", "sis": "<ins>a dog</ins>", "cosod": "<rg>[semantic] dog</rg>"}


@pytest.fixture(scope="module")
def unified(tmp_path_factory):
    """Return the folder of a run of two updates on the real photographs, with a part for each kind of step."""
    if not DATA.is_dir():
        pytest.skip(f"no real photographs in {DATA}: set MASKGYM_DATA")
    folder = tmp_path_factory.mktemp("unified")
    rows = []
    for task, name in SETS.items():
        size = {"group_size": 4} if task == "cosod" else {}
        keys = data.make("tasks", task=task, root=DATA, **{task: name}, **size).keys
        answer = f"<think>It stands out.</think><answer>{TAGS[task]}</answer>"
        rows += [{"key": key, "task": task, "rationale": answer} for key in keys]
    (folder / "rationales.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = [f"data.{task}={name}" for task, name in SETS.items()]
    given += [f"data.root={DATA}", f"data.rationales={folder}/rationales.jsonl", "algo.updates=2", "algo.isr_period=2"]
    given += [
        "data.parts.sft={sod: 8, sis: 6, cosod: 3}",
        "data.parts.rl=4",
        "data.parts.isr=3",
        "algo.isr_sft_steps=1",
    ]
    small = ["env.default_batch_size=4", "env.num_envs=4", "evaluation.samples=2", "evaluation.pictures=0"]
    assert run.main(["env=saliency", "algo=cgpo", *given, *small, f"out={folder}/run"]) == 0
    return folder / "run"


def test_it_trains_each_task_on_its_part_and_scores_it(unified):
    results = json.loads((unified / "results.json").read_text())
    parts = json.loads((unified / "parts.json").read_text())["tasks"]
    assert {task for name in results["after"] for task in [name.partition("/")[0]]} == set(SETS)
    assert results["samples"]["cosod"]["split"] == "validation" and results["instruction"] == "maskgym"
    assert results["parts"]["sizes"]["sod"].items() >= {"rl": 4, "sft": 8, "isr": 3}.items()
    assert {task: told["used"] for task, told in results["rationales"].items()} == dict.fromkeys(SETS, 3)
    for task, name in SETS.items():
        assert all(key.startswith(f"{name}/") for part in ("rl", "sft", "isr") for key in parts[task][part])


def test_photos_that_folders_share_are_in_no_part_if_they_are_held_out(unified):
    size = yaml.safe_load((unified / "config.yaml").read_text())["env"]["group_size"]
    parts = json.loads((unified / "parts.json").read_text())["tasks"]
    shown = {}
    for split in ("train", "validation", "test"):
        for task in SETS:
            try:
                dataset = data.make("tasks", task=task, split=split, root=DATA, group_size=size, **SETS)
            except EmptySplit:
                continue
            for index, key in enumerate(dataset.keys):
                shown[split, key] = {photo.tobytes() for photo in dataset[index].images}
    held_out = set().union(*(photos for (split, _), photos in shown.items() if split != "train"))
    used = {key for one in parts.values() for part in ("rl", "sft") for key in one[part]}
    assert len(used) == 3 * 4 + 8 + 6 + 3
    assert not any(shown["train", key] & held_out for key in used)
    assert parts["cosod"]["shared"] and all(one["why"] == "pixels" for one in parts["cosod"]["shared"])


def test_evaluate_writes_a_table_of_every_task_and_names_a_tables_set_alone(unified, tmp_path, capsys):
    assert cli.main(["evaluate", str(unified), "--out", str(tmp_path / "all"), "--jobs", "1", "--no-weighted"]) == 0
    found = json.loads((tmp_path / "all" / "results.json").read_text())["scores"]
    assert set(found) == set(SETS) and {file.stem for file in (tmp_path / "all").glob("*.csv")} >= set(SETS)
    assert "SOD S" in capsys.readouterr().out
    for kind in ("images", "masks"):
        (tmp_path / "ECSSD" / kind).mkdir(parents=True)
        for file in sorted((DATA / "real_sod" / kind).iterdir())[:4]:
            (tmp_path / "ECSSD" / kind / file.name).write_bytes(file.read_bytes())
    asked = ["evaluate", str(unified), "--table", "saliency_r1/1-sod", "--root", str(tmp_path), "--jobs", "1"]
    assert cli.main([*asked, "--out", str(tmp_path / "one")]) == 0
    assert "| run * |" in capsys.readouterr().out
    assert (
        cli.main(["evaluate", str(unified), "data=ecssd", f"data.root={tmp_path}/ECSSD", "evaluation.samples=2"]) == 0
    )
    assert "s_measure" in json.loads(capsys.readouterr().out)
    assert cli.main(["evaluate", str(unified), "data=folder", f"data.root={tmp_path}/ECSSD"]) == 2
    assert "expected a set that serves the task, or one for each task" in capsys.readouterr().err


def test_a_run_goes_on_with_its_parts_and_not_with_others(unified, tmp_path, maskgym_run):
    stored = (unified / "parts.json").read_text()
    assert maskgym_run(f"resume={unified}")[0] == 0
    assert (unified / "parts.json").read_text() == stored
    (unified / "parts.json").write_text(stored.replace('"seed": 0', '"seed": 1'))
    status, _, error = maskgym_run(f"resume={unified}")
    (unified / "parts.json").write_text(stored)
    assert status == 2 and "its parts are not those of the data now" in error[-1]


def test_several_sets_of_a_task_have_scores_of_their_own(maskgym_run, tmp_path, photo_folder):
    (tmp_path / "one").symlink_to(photo_folder)
    (tmp_path / "two").symlink_to(photo_folder)
    given = ["env=sod", "algo=random", "data.sod=[one,two]", f"data.root={tmp_path}", "data.held_out.sod=[one,two]"]
    status, out, error = maskgym_run(*given, "algo.updates=0", "evaluation.samples=6", f"out={tmp_path}/run")
    assert status == 0, error
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    sets, rows = (
        results["sets"]["after"]["sod"],
        (tmp_path / "run" / "samples" / "answers.jsonl").read_text().splitlines(),
    )
    assert set(sets) == {"one", "two"} and "sod, one alone, after: reward" in out
    assert "sod, two alone, after training: reward" in (tmp_path / "run" / "report.html").read_text()
    values = {name: [] for name in sets}
    for row in map(json.loads, rows):
        values[row["key"].partition("/")[0]].append(row["after"]["reward"])
    assert {name: np.mean(found) for name, found in values.items()} == {
        name: one["reward"] for name, one in sets.items()
    }
    assert results["after"]["reward"] == pytest.approx(np.mean(values["one"] + values["two"]))
    assert cli.main(["evaluate", f"{tmp_path}/run", "--out", f"{tmp_path}/table", "--jobs", "1", "--no-weighted"]) == 0
    scores = json.loads((tmp_path / "table" / "results.json").read_text())["scores"]
    assert set(scores) == {"sod", "sod/one", "sod/two"} and scores["sod"]["images"] == 2 * scores["sod/one"]["images"]
    assert not any("belong to no sample" in note for one in scores.values() for note in one["notes"])


def test_nothing_is_evaluated_where_no_samples_are_held_out(maskgym_run, tmp_path, photo_folder):
    few = ("algo=random", "algo.updates=1", f"data.root={photo_folder}", "data.splits=train", "env=sod", "data=folder")
    status, out, error = maskgym_run(*few, f"out={tmp_path}/none")
    assert status == 2 and "to train without held-out samples: evaluation.samples=0" in error[-1]
    status, out, error = maskgym_run(*few, "evaluation.samples=0", f"out={tmp_path}/run")
    assert status == 0, error
    assert "evaluation.samples=0: nothing is evaluated" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["before"] == results["after"] == results["samples"] == {} and results["steps"] == 1
    assert (tmp_path / "run" / "report.html").exists()
    status = cli.main(["evaluate", f"{tmp_path}/run", "data.splits=test"])
    assert status == 2
