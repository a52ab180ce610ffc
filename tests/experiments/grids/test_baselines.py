"""The command of the baselines: what its file holds, that it repeats itself, and how it complains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskgym import data
from maskgym.data.scenes import Scenes
from maskgym.experiments.evaluation.evaluation import held_out
from maskgym.experiments.grids import baselines
from maskgym.metrics import SaliencyScores
from maskgym.segmenters.points.sam import EMBEDDED

FEW = ("segmenter.device=cpu", "train_samples=4", "evaluation.samples=6")
SHORT = ("--steps", "2", "--batch-size", "2")
SEMANTIC = ("samed", "env.task=semantic", "data.size=60")


@pytest.fixture
def call(tmp_path, capsys):
    """Return a function that calls the command, expects it to succeed, and gives the results in its file."""

    def run(*arguments: str) -> dict:
        file = tmp_path / "results" / "baseline.json"
        assert baselines.main([*arguments, *FEW, "--out", str(file)]) == 0
        assert str(file) in capsys.readouterr().out
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        return json.loads(file.read_text())

    return run


@pytest.mark.parametrize("name", baselines.SETTINGS)
def test_the_file_holds_every_measure(call, name):
    results = call(name, *(() if name == "persam" else SHORT), "env.task=shadow")
    scores = SaliencyScores()
    scores.add(np.eye(4), np.eye(4, dtype=bool))
    assert set(results["scores"]) == set(scores.result())
    assert results["baseline"] == name and results["task"] == "shadow" and results["split"] == "test"
    keys = [f"shadow-test-{index:05d}" for index in held_out(len(Scenes("shadow", "test")), 6)]
    assert [row["key"] for row in results["per_sample"]] == keys
    for measure in ("iou", "s_measure"):
        assert results["scores"][measure] == pytest.approx(np.mean([row[measure] for row in results["per_sample"]]))
    assert (len(results["loss"]["shadow"]) == 2) if name != "persam" else results["loss"] == {}
    assert results["settings"].get("steps") == (None if name == "persam" else 2)
    assert (results["train_samples"], results["samples"], results["of"]) == (4, 6, len(Scenes("shadow", "test")))


def test_the_same_seed_gives_the_same_file(call):
    first, again = call("samed", *SHORT), call("samed", *SHORT)
    assert first | {"wall_s": 0} == again | {"wall_s": 0}
    assert call("samed", *SHORT, "seed=1")["loss"] != first["loss"]


def test_every_option_of_a_baseline_reaches_it(call):
    found = call("samed", *SHORT, "--rank", "2", "--learning-rate", "0.01")["settings"]
    assert found == {
        "rank": 2,
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "seed": 0,
    }
    assert call("msa", *SHORT, "--bottleneck", "8")["settings"]["bottleneck"] == 8
    assert call("persam")["settings"] == {"refinements": 0}
    assert call("persam", "--refinements", "1")["settings"] == {"refinements": 1}


def test_a_checkpoint_of_ones_own(call):
    embedded = call("persam")
    own = call("persam", "segmenter=sam", f"segmenter.checkpoint={EMBEDDED}", "--refinements", "0")
    assert own["scores"] == embedded["scores"] and own["weights"] == embedded["weights"]
    assert own["segmenter"]["checkpoint"] == str(EMBEDDED)
    published = call("persam", "segmenter=sam", f"segmenter.checkpoint={EMBEDDED}")
    assert published["settings"] == {"refinements": 2} and published["scores"] != embedded["scores"]


def test_semantic_has_one_model_a_category(call):
    few = ("env.task=semantic", "data.size=60")
    every = call("persam", *few)
    test = Scenes("semantic", "test", size=60)
    indices = held_out(60, 6)
    shown = {test[index].category for index in indices}
    assert list(every["categories"]) == sorted(shown) and len(shown) > 1
    assert {row["key"] for row in every["per_sample"]} == {test[index].key for index in indices}
    category = next(iter(every["categories"]))
    one = call("persam", *few, "--category", category)
    assert one["scores"] == every["categories"][category] == one["categories"][category]
    assert {row["key"] for row in one["per_sample"]} == {
        test[index].key for index in indices if test[index].category == category
    }


@pytest.mark.parametrize("task", ["sod", "glass"])
def test_photographs_of_ones_own(call, photo_folder, task):
    results = call("samed", *SHORT, f"env.task={task}", "data=folder", f"data.root={photo_folder}")
    assert results["data"]["root"] == str(photo_folder)
    test = data.make("folder", root=photo_folder, split="test", task=task)
    assert [row["key"] for row in results["per_sample"]] == sorted(test.keys[i] for i in held_out(len(test), 6))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "required"),
        (("nope",), "invalid choice: 'nope'"),
        (("samed", "env.task=x"), "env.task=x: baselines take sod, blur"),
        (("samed", "env=user_need"), "env.task=need: baselines take sod, blur"),
        (("samed", "env=sis"), "env.task=None: baselines take sod, blur"),
        (("samed", "segmenter=sam_hf"), "segmenter=sam_hf: baselines take sam_tiny, sam"),
        (("samed", "train_samples=0"), "train_samples=0: expected a whole number, at least 1"),
        (("samed", "train_samples=9999"), "9999 samples to train on"),
        (("samed", "--steps", "0"), "steps=0: expected at least 1"),
        (("persam", "--steps", "9"), "unrecognized arguments: --steps"),
        (("persam", "--refinements", "3"), "refinements=3: expected 0, 1 or 2"),
        (("samed", "--category", "star"), "--category star: belongs to env.task=semantic"),
        (("samed", "segmenter=sam"), "needs checkpoint=PATH"),
        (("samed", "segmenter.checkpoint=x.pth"), "unknown key 'segmenter.checkpoint'"),
        (("samed", "segmenter=sam", "segmenter.checkpoint=x.pth"), "x.pth: no such checkpoint"),
        (("samed", "data.root=x"), "unknown key 'data.root'"),
        (("samed", "data=folder"), "expects a folder"),
        ((*SEMANTIC, "--category", "car"), "--category car: not among the 60 held-out samples: they"),
        ((*SEMANTIC, "--category", "star", "train_samples=50"), "train_samples=50: the training split has"),
        (("samed", "segmenter.device=nope"), "device 'nope'"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(capsys, tmp_path, arguments, expected):
    file = tmp_path / "baseline.json"
    assert baselines.main([*arguments, *(("--out", str(file)) if arguments else ())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not file.exists()


def test_a_place_that_cannot_be_written_is_known_before_training(capsys, tmp_path):
    (tmp_path / "file").touch()
    for out, expected in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "cannot be written in")):
        assert baselines.main(["samed", "--steps", "1000000", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: --out") and expected in line
