"""Runs of needs and of ranking from the command line: files, measures, referring segmentation, what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from maskgym.experiments.evaluation import evaluate_command
from maskgym.experiments.wiring import composition

SMALL = ("evaluation.samples=4", "evaluation.pictures=2", "env.num_envs=4", "algo.updates=0")
REFERRING = {"miou", "oiou", "p@0.5", "p@0.9"}
SALIENCY = {"reward", "s_measure", "iou", "mae", "f_max", "e_max", *REFERRING}
RANKING = {"reward", "steps", "found", "iou", "mae", "sor_photos", "sor_mean_photos", "sa_sor", "sa_sor_photos"}


@pytest.fixture
def finished(maskgym_run, tmp_path):
    """Return a function that runs arguments to the end and gives the folder and the results."""

    def call(*arguments: str, name: str = "run"):
        status, _, error = maskgym_run(*arguments, *SMALL, f"out={tmp_path}/{name}")
        assert (status, error) == (0, [])
        return tmp_path / name, json.loads((tmp_path / name / "results.json").read_text())

    return call


@pytest.mark.parametrize(
    ("env", "expected"),
    [("user_need", SALIENCY), ("ranking", RANKING), ("user_need_point", {"reward", "iou", "mae", *REFERRING})],
)
def test_a_run_writes_every_file(finished, finished_run, env, expected):
    settings = ["env.horizon=2", "env.initial_prompts=none"] if env == "user_need_point" else []
    if env == "ranking":
        folder = finished_run("ranking")
        results = json.loads((folder / "results.json").read_text())
    else:
        folder, results = finished(f"env={env}", "algo=random", *settings)
    assert (results["env"], results["algo"]) == (env, "random")
    assert expected <= set(results["before"]) == set(results["after"])
    assert all(np.isfinite(value) for value in results["after"].values())
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert rows[0]["held_out/reward"]
    answers = [json.loads(line) for line in (folder / "samples" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 and all(row["before"] == row["after"] for row in answers)
    assert json.loads((folder / "checkpoints" / "before.json").read_text())[env]["scores"] == results["before"]
    pictures = sorted(path.name for path in (folder / "samples").glob("*.png"))
    assert pictures == [f"{env}-{number:02d}.png" for number in range(2)]
    with Image.open(folder / "samples" / pictures[0]) as picture:
        assert picture.width > 3 * 200
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 2
    again, _ = evaluate_command.evaluate_again(folder)
    assert again[env].scores == results["after"]


def test_the_seed_and_the_need_decide_what_is_shown_and_done(finished):
    ranking = ("env=ranking", "algo=random", "reward=sa_sor", "env.steps=2")
    _, one = finished(*ranking, name="a")
    _, same = finished(*ranking, name="b")
    _, other = finished(*ranking, "seed=1", name="c")
    assert one["before"] == same["before"] != other["before"]
    assert one["before"]["steps"] <= 2


def test_a_referring_segmenter_segments_what_needs_say(finished):
    _, plain = finished("env=user_need", "algo=referring", name="plain")
    assert SALIENCY <= set(plain["after"]) and plain["after"]["miou"] > 0.3  # it knows the phrases
    _, hidden = finished("env=user_need", "algo=referring", "env.need=false", name="hidden")
    assert hidden["after"]["miou"] == 0  # nothing is asked for, so nothing is found


@pytest.mark.parametrize("env", ["user_need", "ranking"])
def test_data_without_needs_is_told_so(maskgym_run, tmp_path, env):
    told = "4 of 4 test samples have no need in words: a score of these is that of plain salient-object detection"
    settings = (f"env={env}", "algo=random", "env.task=sod", *SMALL, f"out={tmp_path}/plain")
    status, out, error = maskgym_run(*settings)
    assert (status, error) == (0, []) and out.count(f"{env}: {told}") == 1
    (note,) = json.loads((tmp_path / "plain" / "results.json").read_text())["samples"][env]["notes"]
    assert note.startswith(told)


def test_data_with_needs_or_without_the_question_is_told_nothing(finished):
    _, asked = finished("env=user_need", "algo=random", name="asked")
    assert asked["samples"]["user_need"] == {"n": 4, "of": 512, "split": "test", "notes": []}
    _, hidden = finished("env=user_need", "algo=random", "env.task=sod", "env.need=false", name="hidden")
    assert hidden["samples"]["user_need"]["notes"] == []  # as was asked for


def test_photos_in_coco_form_are_asked_for_by_category(finished, tmp_path):
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 24, "width": 32})
        box = [2, 2, 12, 2, 12, 12, 2, 12]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [box]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "star"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    data = ("data=coco", f"data.root={root}", "+data.needs=category")
    folder, results = finished("env=user_need", "algo=referring", *data, "env.image_size=64")
    assert SALIENCY <= set(results["after"])
    row = json.loads((folder / "samples" / "answers.jsonl").read_text().splitlines()[0])
    assert row["key"].endswith("#0") and json.loads(row["after"]["answer"])[0]["size"] == [64, 64]


def test_a_policy_over_the_grid_learns_with_needs(maskgym_run, tmp_path):
    settings = ("env.horizon=2", "algo.updates=1", "algo.epochs=1", "algo.minibatch_size=4", "env.num_envs=2")
    few = ("evaluation.samples=2", "evaluation.pictures=1", "env.text=need", "env.recalibration.branch=explicit")
    out = f"out={tmp_path}/run"
    assert maskgym_run("env=user_need_point", "algo=ppo", *settings, *few, out)[::2] == (0, [])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 1 and "iou@1" in results["after"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=user_need", "algo=ppo"], "not a pair: env=user_need takes cgpo_masks, grpo_masks, random, referring"),
        (["env=ranking", "algo=referring"], "env=ranking takes cgpo_masks, grpo_masks, random, usersal"),
        (["env=user_need", "algo=random", "policy=point_actor_critic"], "policy=point_actor_critic: not a pair"),
        (["env=user_need", "algo=referring", "segmenter=sam_tiny"], "takes no phrases: expected a referring one"),
        (["env=user_need", "algo=random", "env.task=needs"], "task='needs' is unknown"),
        (["env=user_need", "algo=random", "env.image_size=0"], "image_size=0: expected at least 1"),
        (["env=user_need", "algo=random", "env.need=3"], "env.need=3: expected true or false"),
        (["env=ranking", "algo=random", "env.steps=0"], "steps=0: expected at least 1"),
        (["env=ranking", "algo=random", "env.task=need"], "has no ranks: expected ranked objects"),
        (["env=user_need", "algo=random", "reward=sa_sor"], "sa_sor scores a ranking"),
        (["env=user_need_point", "algo=random", "env.encoder=clip_tin"], "clip_tiny"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(maskgym_run, tmp_path, arguments, expected):
    status, _, error = maskgym_run(*arguments, *SMALL, f"out={tmp_path}/run")
    assert status == 2 and len(error) == 1 and expected in error[0]


def test_a_run_by_epochs_has_their_updates_and_becomes_longer_by_epochs(maskgym_run, tmp_path):
    few = ("evaluation.samples=2", "evaluation.pictures=0", "env.num_envs=2", "env.image_size=32", "data.size=6")
    by_epochs = ("algo.epochs=2", "algo.batch_size=4", "algo.decay_epoch=1", "algo.save_every=1")
    status, out, error = maskgym_run("env=user_need", "algo=usersal", *few, *by_epochs, f"out={tmp_path}/run")
    assert (status, error) == (0, [])
    assert "decay" not in out
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [(int(row["step"]), row["epoch"]) for row in rows if row["epoch"]] == [(1, "0"), (2, "0"), (3, "1")]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 3  # 12 samples in batches of 4
    stored = composition.load(tmp_path / "run" / "config.yaml")["algo"]
    assert (stored["epochs"], stored["updates"]) == (2, 3)
    status, out, error = maskgym_run(f"resume={tmp_path}/run", "algo.epochs=3")
    assert (status, error) == (0, [])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 5
    status, _, (error,) = maskgym_run(f"resume={tmp_path}/run", "algo.epochs=1")
    assert status == 2 and "its run has algo.epochs=3, not 1: expected as many, or more" in error
    status, out, _ = maskgym_run("--cfg", f"resume={tmp_path}/run", "algo.updates=+1")
    assert "  updates: 6" in out and "  epochs: null" in out


def test_a_decay_that_never_comes_is_told_at_the_start(maskgym_run, tmp_path):
    few = ("evaluation.samples=0", "algo.updates=1", "algo.batch_size=2", "env.image_size=32", "data.size=6")
    status, out, _ = maskgym_run("env=user_need", "algo=usersal", *few, f"out={tmp_path}/run")
    told = "algo.decay_epoch=60: never comes, the learning rate stays: 1 updates of 2 samples are 0.333 epochs of 6"
    assert status == 0 and told in out
