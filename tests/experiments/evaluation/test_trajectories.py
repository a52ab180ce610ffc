"""Trajectories: text, clicks and masks as JSON lines, and that TRL's SFTTrainer trains on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from trl import SFTConfig, SFTTrainer

from maskgym import data, policies
from maskgym.data.run_lengths import decode_counts
from maskgym.errors import UserError
from maskgym.experiments.evaluation import trajectories
from maskgym.experiments.wiring.command import status
from maskgym.metrics import iou

SMALL = ("evaluation.samples=4", "evaluation.pictures=0", "env.num_envs=3", "algo=random", "algo.updates=0")
CLICKS = ("env=point_prompt", "env.horizon=3", "env.label_source=policy")


@pytest.fixture
def finished(maskgym_run, tmp_path):
    """Return a function that runs arguments to the end and gives the folder."""

    def call(*arguments: str, name: str = "run") -> Path:
        code, _, error = maskgym_run(*SMALL, *arguments, f"out={tmp_path}/{name}")
        assert (code, error) == (0, [])
        return tmp_path / name

    return call


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["after"]


def mask(code: dict) -> np.ndarray:
    return decode_counts(code["counts"], tuple(code["size"]))


def test_text_is_a_conversation_with_its_images(finished_run, tmp_path):
    folder, out = finished_run("text"), tmp_path / "out"
    assert trajectories.main([str(folder), str(out), "--samples", "4"]) == 0
    rows = lines(out)
    assert [row["reward"] for row in rows] and len(rows) == 4
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(results(folder)["reward"], abs=1e-5)
    scenes = data.make("scenes", task="sis", split="test")
    keys = {scenes[index].key: scenes[index] for index in (0, 128, 256, 384)}
    for row in rows:
        sample = keys[row["key"]]
        user, assistant = row["messages"]
        assert [part["type"] for part in user["content"]] == ["image", "text"] and user["role"] == "user"
        assert "<ins>" in user["content"][1]["text"]
        assert (assistant["role"], assistant["content"][:7]) == ("assistant", "<think>")
        assert all(f"<ins>{text}</ins>" in assistant["content"] for text in row["expressions"])
        assert (row["task"], row["split"]) == ("sis", "test")
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["images"][0])), sample.images[0])
        (masks,) = row["masks"]
        assert len(masks) == len(row["expressions"]) and masks[0]["size"] == list(sample.masks[0].shape[1:])
        assert row["reward_terms"]["format"] == 1
    assert {path.name for path in out.iterdir()} == {"episodes.jsonl", "images"}
    assert len(list((out / "images").iterdir())) == 4


def test_a_trained_policy_is_played_and_its_stored_answers_are_the_same(finished_run, tmp_path):
    folder = shutil.copytree(finished_run("cgpo"), tmp_path / "run")
    assert trajectories.export(folder, tmp_path / "played", samples=4) == 4
    shutil.rmtree(folder / "checkpoints")  # stored answers need no weights
    assert trajectories.export(folder, tmp_path / "stored", stored=True) == 4
    assert lines(tmp_path / "played") == lines(tmp_path / "stored")
    answers = [json.loads(line)["after"]["answer"] for line in (folder / "samples/answers.jsonl").open()]
    assert [row["messages"][1]["content"] for row in lines(tmp_path / "stored")] == answers


def test_groups_have_one_list_of_masks_an_image_and_tasks_share_a_file(finished, tmp_path):
    folder = finished("env=saliency", "evaluation.samples=2")
    assert trajectories.export(folder, tmp_path / "out", samples=2) == 6
    rows = lines(tmp_path / "out")
    assert [row["task"] for row in rows] == ["sod", "sod", "sis", "sis", "cosod", "cosod"]
    group = rows[-1]
    assert len(group["images"]) == len(group["masks"]) == 4
    assert [part["type"] for part in group["messages"][0]["content"]] == ["image"] * 4 + ["text"]
    assert len(trajectories.read(tmp_path / "out")[5]["images"]) == 4


def test_clicks_have_every_step(finished, tmp_path):
    folder, out = finished(*CLICKS), tmp_path / "out"
    trajectories.export(folder, out, samples=4)
    rows = lines(out)
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(results(folder)["reward"])
    assert np.mean([row["steps"][-1]["iou"] for row in rows]) == pytest.approx(results(folder)["iou"])
    scenes = data.make("scenes", task="sod", split="test")
    for row, index in zip(rows, (0, 128, 256, 384), strict=True):
        truth = scenes[index].union()
        assert (row["grid"], row["prompts"], len(row["steps"])) == (8, [], 3)
        assert row["reward"] == sum(step["reward"] for step in row["steps"])
        for step in row["steps"]:
            y, x = divmod(step["patch"], 8)
            assert step["point"] == [x * 16 + 8, y * 16 + 8] and step["label"] in (0, 1)
            assert step["iou"] == pytest.approx(iou(mask(step["mask"]), truth))
    trajectories.export(folder, tmp_path / "stored", stored=True)
    assert lines(tmp_path / "stored") == rows


def test_the_split_to_train_on_begins_with_prompts_and_is_what_was_trained_on(finished, tmp_path):
    folder = finished(*CLICKS, "env.label_source=srm", "train_samples=3", "algo=ppo", "algo.updates=0")
    assert trajectories.export(folder, tmp_path / "out", split="train") == 3
    rows = lines(tmp_path / "out")
    assert {row["split"] for row in rows} == {"train"} and len({row["key"] for row in rows}) == 3
    scenes = data.make("scenes", task="sod", split="train")
    for row in rows:
        truth = scenes[int(row["key"][-5:])].union()
        assert [prompt["label"] for prompt in row["prompts"]] == [1, 0]
        assert [bool(truth[int(y), int(x)]) for x, y in (prompt["point"] for prompt in row["prompts"])] == [True, False]


@pytest.mark.parametrize("env", ["user_need", "ranking"])
def test_masks_have_every_action(finished, finished_run, tmp_path, env):
    folder = finished_run("ranking") if env == "ranking" else finished(f"env={env}")
    out = tmp_path / "out"
    trajectories.export(folder, out, samples=4)
    rows = lines(out)
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(results(folder)["reward"], abs=1e-5)
    assert all(len(row["steps"]) == 1 for row in rows) == (env == "user_need")
    assert all(row["need"].startswith("find ") for row in rows)
    for step in (step for row in rows for step in row["steps"]):
        assert step["action"] == step["mask"]  # scenes are as large as the observed square
        assert set(step) == {"action", "mask", "reward", "reward_terms", "iou"}
    trajectories.export(folder, tmp_path / "stored", stored=True)
    for row, again in zip(rows, lines(tmp_path / "stored"), strict=True):  # a stored mask is not soft, so earns another
        assert [step["mask"] for step in row["steps"]] == [step["mask"] for step in again["steps"]]


def test_the_module_that_labels_clicks_is_the_one_trained(finished, tmp_path):
    folder = finished("env=point_prompt", "env.horizon=2", "algo=ppo", "algo.updates=1")
    trajectories.export(folder, tmp_path / "out", samples=4)
    trajectories.export(folder, tmp_path / "stored", stored=True)
    rows = lines(tmp_path / "out")
    assert rows == lines(tmp_path / "stored")
    assert np.mean([row["steps"][-1]["iou"] for row in rows]) == pytest.approx(results(folder)["iou"])
    assert [prompt["label"] for prompt in rows[0]["prompts"]] == [1, 0]  # the most and the least probable patch


def test_needs_of_clicks_are_told(finished, tmp_path):
    folder = finished("env=user_need_point", "env.horizon=2", "env.initial_prompts=none")
    trajectories.export(folder, tmp_path / "out", samples=2)
    assert all(row["need"].startswith("find ") for row in lines(tmp_path / "out"))


def test_the_sft_trainer_of_trl_takes_a_step_on_it(finished_run, tmp_path):
    out = tmp_path / "out"
    trajectories.export(finished_run("text"), out, samples=4)
    raw = datasets.load_dataset("json", data_files=str(out / "episodes.jsonl"), split="train")
    assert raw[0]["messages"] == lines(out)[0]["messages"]
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    before = policy.model.lm_head.weight.detach().clone()
    trainer = SFTTrainer(
        model=policy.model,
        args=SFTConfig(
            output_dir=str(tmp_path / "sft"),
            max_steps=1,
            per_device_train_batch_size=4,
            max_length=None,  # a prompt that holds images must not be cut
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=trajectories.read(str(out)),
        processing_class=policy.processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["image_grid_thw"]) == 4
    texts = policy.processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert all("<answer>" in text for text in texts)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    assert (policy.model.lm_head.weight != before).any()


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "holdout"], "--split holdout: expected one of train, validation, test"),
        (["--samples", "0"], "--samples 0: expected at least 1"),
        (["--split", "train", "--stored"], "--split train --stored: the answers stored are of test"),
        (["--frobnicate"], "maskgym export: unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_arguments_are_one_line(finished_run, tmp_path, capfd, arguments, expected):
    folder = finished_run("text")
    capfd.readouterr()
    assert status(trajectories.main, [str(folder), str(tmp_path / "out"), *arguments]) == 2
    assert capfd.readouterr().err == f"error: {expected}\n"
    assert not (tmp_path / "out").exists()


def test_runs_and_exports_that_are_not_there_are_named(finished_run, tmp_path):
    with pytest.raises(UserError, match="no such file: expected the folder of a run"):
        trajectories.export(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match=r"no episodes\.jsonl there"):
        trajectories.read(tmp_path)
    folder = shutil.copytree(finished_run("text"), tmp_path / "run")
    (folder / "results.json").rename(folder / "kept.json")
    with pytest.raises(UserError, match="its run is not finished"):
        trajectories.export(folder, tmp_path / "out")


def test_stored_answers_of_other_samples_are_refused(finished_run, tmp_path):
    folder = shutil.copytree(finished_run("text"), tmp_path / "run")
    file = folder / "samples" / "answers.jsonl"
    file.write_text(file.read_text().replace("sis-test-00128", "another"))
    with pytest.raises(UserError, match="sample 128 of sis is no longer 'another': the data has changed"):
        trajectories.export(folder, tmp_path / "out", stored=True)
