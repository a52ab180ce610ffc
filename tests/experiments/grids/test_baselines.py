"""The command of the baselines: what its file holds, that it repeats itself, and how it complains."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from maskgym import data
from maskgym.data.scenes import Scenes
from maskgym.data.scenes.objects import SHAPES
from maskgym.experiments.evaluation.evaluation import episodes, evaluate, held_out
from maskgym.experiments.grids import baselines
from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
from maskgym.experiments.reproduce.miniature_sets import Sizes, write_sets
from maskgym.experiments.wiring import build
from maskgym.metrics import SaliencyScores
from maskgym.policies.few_shot import SAMed
from maskgym.segmenters.points.sam import EMBEDDED

FEW = ("segmenter.device=cpu", "train_samples=4", "evaluation.samples=6")
SHORT = ("--steps", "2", "--batch-size", "2")
SEMANTIC = ("samed", "env.task=semantic", "data.size=60")


@pytest.fixture
def call(tmp_path, capsys):
    """Return a function that calls the command, expects it to succeed, and gives the results in its file."""

    def run(*arguments: str) -> dict:
        file = tmp_path / "results" / "baseline.json"
        file.unlink(missing_ok=True)
        name, *others = arguments
        assert baselines.main([name, *FEW, *others, "--out", str(file)]) == 0
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
    memory = ("--micro-batch", "1", "--checkpointing", "--predict-batch", "3")
    found = call("samed", *SHORT, "--rank", "2", "--learning-rate", "0.01", *memory)["settings"]
    assert found == {
        "rank": 2,
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "seed": 0,
        "micro_batch": 1,
        "checkpointing": True,
        "predict_batch": 3,
    }
    assert call("msa", *SHORT, "--bottleneck", "8")["settings"]["bottleneck"] == 8
    assert call("persam")["settings"] == {"refinements": 0, "guidance": True, "predict_batch": 8}
    assert call("persam", "--refinements", "1")["settings"]["refinements"] == 1
    plain = call("persam", "--no-guidance")
    assert plain["settings"]["guidance"] is False and plain["scores"] != call("persam")["scores"]


def test_a_checkpoint_of_ones_own(call):
    embedded = call("persam")
    own = call("persam", "segmenter=sam", f"segmenter.checkpoint={EMBEDDED}", "--refinements", "0")
    assert own["scores"] == embedded["scores"] and own["weights"] == embedded["weights"]
    assert own["segmenter"]["checkpoint"] == str(EMBEDDED)
    published = call("persam", "segmenter=sam", f"segmenter.checkpoint={EMBEDDED}")
    assert published["settings"]["refinements"] == 2 and published["scores"] != embedded["scores"]


def test_semantic_has_one_model_a_category(call):
    few = ("env.task=semantic", "data.size=60", "train_samples=40")
    every = call("persam", *few)
    test = Scenes("semantic", "test", size=60)
    indices = held_out(60, 6)
    shown = {test[index].category for index in indices}
    assert list(every["categories"]) == sorted(shown) and len(shown) > 1
    assert {row["key"] for row in every["per_sample"]} == {test[index].key for index in indices}
    category = next(iter(every["categories"]))
    one = call("persam", *few, "--category", category)
    own = {"class_iou": every["scores"][f"class_iou/{category}"]}
    own[f"class_iou/{category}"] = own["class_iou"]
    assert one["scores"] == one["categories"][category] | own
    assert one["categories"][category] == every["categories"][category]
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
        ((*SEMANTIC, "train_samples=4"), "train_samples=4: none of the 4 shows '"),
        ((*SEMANTIC, "env.train_samples_per=category", "train_samples=50"), "50 samples per category to train on: the"),
        (("samed", "env.train_samples_per=category"), "env.train_samples_per=category: env.task=sod has no categories"),
        ((*SEMANTIC, "env.train_samples_per=image"), "env.train_samples_per=image: expected task or category"),
        (("samed", "evaluation.samples=0"), "evaluation.samples=0: nothing to score"),
        (("samed", "segmenter.dtype=float16"), "float16: baselines compute in float32 or bfloat16"),
        (("msa", "--micro-batch", "0"), "micro_batch=0: expected at least 1"),
        (("persam", "--predict-batch", "0"), "predict_batch=0: expected at least 1"),
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


# --- Table 3: by class ------------------------------------------------------------------------------------------------


def test_ours_and_a_baseline_have_the_same_samples_and_the_same_iou_of_classes(call, tmp_path):
    words = ("env.task=semantic", "env.horizon=2", "data.size=30", "train_samples=24", "evaluation.samples=12")
    baseline = call("persam", *words)
    config = baselines.config_of((*words, "algo=random"))
    shown = Counter(sample.category for sample in build.make_dataset(config, "point_prompt", "train"))
    assert sum(shown.values()) == 24 and baseline["train_samples_per"] == "task"
    assert baseline["shots"].items() <= shown.items()  # classes that are not held out are not trained
    assert baseline["train_samples"] == sum(baseline["shots"].values())
    parts = build.make_parts(config)
    env = build.make_held_out_env(config, "point_prompt", parts)
    agent = build.make_agent(config, tmp_path, env, parts)
    indices = held_out(30, 12)
    ours = evaluate(agent, env, indices)
    assert {row["key"] for row in ours.per_sample} == {row["key"] for row in baseline["per_sample"]}
    of_classes = [name for name in baseline["scores"] if name.startswith("class_iou")]
    assert len(of_classes) > 2 and set(of_classes) == {name for name in ours.scores if name.startswith("class_iou")}
    areas: dict[str, np.ndarray] = {}
    for transition, _ in episodes(agent, env, indices):
        (prediction,), (target,) = transition.masks[0], transition.sample.masks[0]
        pair = np.array([(prediction & target).sum(), (prediction | target).sum()])
        areas[transition.sample.category] = areas.get(transition.sample.category, 0) + pair
    ious = {name: both / either for name, (both, either) in areas.items()}
    assert {name: ours.scores[f"class_iou/{name}"] for name in ious} == pytest.approx(ious)
    assert ours.scores["class_iou"] == pytest.approx(np.mean(list(ious.values())))
    assert ours.scores["class_iou"] != pytest.approx(ours.scores["iou"])


def test_shots_per_category_are_drawn_for_ours_too(call):
    words = ("env.task=semantic", "data.size=60", "env.train_samples_per=category", "train_samples=2")
    found = call("persam", *words)
    config = baselines.config_of(words)
    assert Counter(sample.category for sample in build.make_dataset(config, "point_prompt", "train")) == dict.fromkeys(
        SHAPES, 2
    )
    assert set(found["shots"].values()) == {2} and found["train_samples_per"] == "category"


@pytest.fixture
def voc(tmp_path):
    (folder,) = write_sets(tmp_path / "sets", ["voc2012"], Sizes(train=8, validation=6, side=64), writers=LAYOUTS)
    return ("env.task=semantic", "data=voc2012", f"data.root={folder}")


def test_voc_by_class_and_what_was_stopped_goes_on(call, voc, tmp_path, monkeypatch, capsys):
    results = call("samed", *SHORT, *voc, "train_samples=8")
    assert set(results["scores"]) >= {"class_iou", "class_iou/bottle", "class_iou/cat", "iou"}
    assert results["shots"] == {"bottle": 4, "cat": 4} and results["samples"] == 6
    assert results["provenance"]["held_out"]["point_prompt"]["name"] == "voc2012"
    for name in ("bottle", "cat"):
        both, either = np.sum([row["areas"] for row in results["per_sample"] if row["category"] == name], axis=0)
        assert results["scores"][f"class_iou/{name}"] == pytest.approx(both / either)

    out, read, fitted = tmp_path / "again.json", baselines._read, []
    words = ("samed", *SHORT, *voc, *FEW, "train_samples=8", "--out", str(out))

    def stop_at_cat(dataset, indices, label):
        fitted.append(label)
        if label.endswith("cat") and len(fitted) < 3:
            raise KeyboardInterrupt
        return read(dataset, indices, label)

    monkeypatch.setattr(baselines, "_read", stop_at_cat)
    assert baselines.main(words) == 130 and not out.exists()
    assert "interrupted: the same command goes on" in capsys.readouterr().err
    assert baselines.main((*words, "seed=1")) == 2 and "results that differ in: settings" in capsys.readouterr().err
    assert baselines.main((*words, "--micro-batch", "1")) == 0  # less memory does not change what the numbers are of
    assert fitted == [f"read train {name}" for name in ("bottle", "cat", "cat")]
    assert "goes on after 1 finished categories: bottle" in capsys.readouterr().out
    again = json.loads(out.read_text())
    assert again["scores"] == pytest.approx(results["scores"], abs=0.02)
    assert [path.name for path in tmp_path.glob("again*")] == ["again.json"]

    assert baselines.main(words) == 0 and len(fitted) == 3  # finished: nothing is trained
    assert "finished before" in capsys.readouterr().out and json.loads(out.read_text()) == again
    assert baselines.main((*words, "--rank", "1")) == 2
    assert f"--out {out}: holds results that differ in: settings: expected another --out" in capsys.readouterr().err
    assert json.loads(out.read_text()) == again


def test_a_device_that_is_too_small_is_told_what_takes_less(capsys, tmp_path, monkeypatch):
    def fail(self, samples):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SAMed, "fit", fail)
    assert baselines.main(["samed", *FEW, "--out", str(tmp_path / "x.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line and "--micro-batch N and --checkpointing" in line


def test_samples_are_read_while_they_are_scored():
    class Watched(data.Subset):
        held = 0

        def __getitem__(self, index):
            Watched.held += 1
            return super().__getitem__(index)

    class Model:
        predict_batch = 2

        def predict(self, images):
            seen.append(Watched.held)
            return [np.ones(image.shape[:2], bool) for image in images]

    seen: list[int] = []
    dataset = Watched(Scenes("sod", "test"), range(5))
    rows, scores = baselines.score(Model(), dataset, range(5))
    assert seen == [2, 4, 5] and len(rows) == scores.images == 5
