"""Runs of queries from the command line: every form, training, files, measures, what is refused."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from maskgym.data.readers.hf import to_hugging_face
from maskgym.data.scenes import Scenes
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.experiments import cli
from maskgym.experiments.evaluation import evaluate_command

SMALL = ("env=refer", "evaluation.samples=8", "evaluation.pictures=2", "env.num_envs=8")
MEASURES = {"reward", "instance_iou", "iou", "s_measure", "mae", "miou", "oiou", "p@0.5", "format", "expressions"}


@pytest.fixture
def finished(maskgym_run, tmp_path):
    """Return a function that runs arguments to the end and gives the folder and the results."""

    def call(*arguments: str, name: str = "run"):
        status, _, error = maskgym_run(*SMALL, *arguments, f"out={tmp_path}/{name}")
        assert (status, error) == (0, [])
        return tmp_path / name, json.loads((tmp_path / name / "results.json").read_text())

    return call


@pytest.mark.parametrize("form", ["boxes", "points", "boxes_points", "phrases"])
def test_the_oracle_is_the_ceiling_and_random_answers_the_floor(finished, form):
    chosen = (f"env.form={form}", *(["segmenter=evf_sam_tiny"] if form == "phrases" else []))
    folder, best = finished("algo=oracle", *chosen, name="best")
    _, worst = finished("algo=random", *chosen, name="worst")
    assert set(best["after"]) >= MEASURES and best["after"]["format"] == worst["after"]["format"] == 1
    assert best["after"]["instance_iou"] > 0.8 > 0.4 > worst["after"]["instance_iou"]
    again, _ = evaluate_command.evaluate_again(folder)
    assert again["refer"].scores == best["after"]


@pytest.mark.parametrize("form", ["boxes", "points", "boxes_points", "phrases"])
def test_the_bundled_policy_answers_in_every_form_before_it_is_reinforced(finished, form):
    chosen = (f"env.form={form}", *(["segmenter=evf_sam_tiny"] if form == "phrases" else []))
    _, results = finished("algo=grpo", "algo.updates=0", "evaluation.samples=32", *chosen)
    assert results["after"]["format"] > 0.95
    assert 0.2 < results["after"]["instance_iou"] < 0.6


@pytest.mark.parametrize("algo", ["sft", "grpo", "cgpo", "spo"])
def test_algorithms_of_text_train_on_it(finished, algo):
    small = ("algo.updates=2", "algo.batch_size=8", *(["algo.group_size=4"] if algo == "grpo" else []))
    folder, results = finished(f"algo={algo}", *small)
    assert set(results["after"]) >= MEASURES
    assert all(np.isfinite(value) for value in results["after"].values())
    rows = [json.loads(line) for line in (folder / "samples" / "answers.jsonl").read_text().splitlines()]
    assert any("bbox_2d" in row["after"]["answer"] for row in rows)
    with Image.open(folder / "samples" / "refer-00.png") as picture:
        assert picture.width > 4 * 200
    again, _ = evaluate_command.evaluate_again(folder)
    assert again["refer"].scores == pytest.approx(results["after"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["env.image_size=140"], "resizes 140 x 140 pixels to 126 x 126, so pixels of the two differ"),
        (["segmenter=evf_sam_tiny"], "form=boxes: segmenter=EvfSamSegmenter takes no boxes or points"),
        (["env.form=phrases"], "form=phrases: segmenter=SamSegmenter takes no phrases"),
        (["env.form=masks"], "env.form='masks': expected one of boxes, points, boxes_points, phrases"),
        (["algo=ppo"], "env=refer algo=ppo: not a pair"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(maskgym_run, tmp_path, arguments, said):
    status, _, error = maskgym_run(*SMALL, "algo.updates=0", *arguments, f"out={tmp_path}/run")
    assert status == 2 and said in error[-1]


def test_other_coordinates_than_the_policys_are_told(maskgym_run, tmp_path):
    told = "env.coordinates=thousandths: policy=qwen2_5_vl_tiny_refer was trained to answer in pixels"
    status, _, error = maskgym_run(*SMALL, "algo.updates=0", "env.coordinates=thousandths", f"out={tmp_path}/run")
    assert status == 0 and error[0].startswith(told)


def test_a_served_model_answers_queries_untrained(finished, chat_server):
    """A zero-shot row: a server that knows the truth scores as the oracle, so each picture came with its query."""
    env = ReferVectorEnv(num_envs=1, split="test", hint=True)
    known = {}
    for index in range(len(env.dataset)):
        (instruction,), (image,) = (env.reset(options={"index": index})[0][name] for name in ("instruction", "image"))
        known[instruction, image.tobytes()] = env.true_answers()[0]

    def reply(parts):
        picture, instruction = parts
        return known[instruction, np.asarray(Image.open(io.BytesIO(picture))).tobytes()]

    chat_server.reply = reply
    _, best = finished("algo=oracle", name="best")
    folder, served = finished("algo=chat_model", "algo.model=m", f"algo.base_url={chat_server.url}", name="served")
    assert len(chat_server.requests) == 8 and served["before"] == served["after"] == best["after"]
    assert all('<answer>[{"bbox_2d": [left, top, right, bottom]}, …]</answer>' in text for text, _ in known)
    assert (best["hint"], served["hint"]) == (False, True)
    again, _ = evaluate_command.evaluate_again(folder)
    assert again["refer"].scores == best["after"] and len(chat_server.requests) == 8  # its answers are kept


def test_what_a_served_model_writes_around_its_answer_is_malformed(finished, chat_server):
    chat_server.reply = lambda parts: "```json\n[]\n```"
    _, results = finished("algo=chat_model", "algo.model=m", f"algo.base_url={chat_server.url}")
    assert results["after"]["format"] == 0 and results["after"]["expressions"] == 0


def test_rows_of_hugging_face_that_mean_nothing_are_scored_by_either_convention(finished, tmp_path):
    parts = [Scenes("refer", split, size=24, image_size=64) for split in ("train", "test")]
    whole = datasets.DatasetDict({part.split: to_hugging_face(part) for part in parts})
    whole.save_to_disk(tmp_path / "saved")
    folder, results = finished("algo=oracle", "data=hf", f"data.path={tmp_path}/saved", "evaluation.samples=24")
    nothing = sum(not len(parts[1][index].masks[0]) for index in range(24))
    assert nothing > 0
    assert results["after"]["n_acc"] == results["after"]["t_acc"] == results["after"]["format"] == 1
    scored = {}
    for preset in ("grefcoco", "seg_zero"):
        out = tmp_path / preset
        assert cli.main(["evaluate", str(folder), "--out", str(out), "--preset", preset, "--jobs", "1"]) == 0
        (scored[preset],) = json.loads((out / "results.json").read_text())["scores"].values()
    assert scored["grefcoco"]["miou"] == pytest.approx(results["after"]["miou"])
    assert scored["seg_zero"]["miou"] == pytest.approx(results["after"]["miou"] - nothing / 24)
