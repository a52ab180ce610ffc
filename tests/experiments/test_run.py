from __future__ import annotations

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from maskgym import agents, files
from maskgym.data.readers.folder import Folder
from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.training import loggers, samples
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.run_folder import read_metrics
from maskgym.segmenters.phrases.evf_sam import EMBEDDED
from maskgym.segmenters.points.sam import EMBEDDED as SAM

TEXT = "cgpo, chat_model, cispo, dapo, dr_grpo, grpo, gspo, oracle_text, rloo, sapo, sft, spo"
SMALL = ("evaluation.samples=4", "evaluation.pictures=2", "env.num_envs=4")
RANDOM = ("algo=random", *SMALL)
DATA = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[3] / "shared" / "data")


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def wait_for(reached: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def kill(given: Sequence[str], folder: Path, when: Callable[[], bool]) -> None:
    """Run in a process of its own, and kill it as no process can prevent."""
    process = subprocess.Popen([sys.executable, run.__file__, *given, f"out={folder}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(when, process)
    finally:
        process.kill()
        process.wait()


def test_pictures_are_of_what_fell_and_rose_most():
    gains = [0.1, -0.3, 0.4, -0.1, 0.2]
    rows = [{"index": i, "before": {"reward": 0.5}, "after": {"reward": 0.5 + gain}} for i, gain in enumerate(gains)]
    assert samples.most_moved(rows, 4) == [1, 3, 2, 4]
    assert samples.most_moved(rows, 3) == [1, 3, 2]
    assert samples.most_moved(rows, 0) == [] and samples.most_moved(rows, 9) == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("env", ["sod", "cosod", "saliency", "refer"])
def test_a_run_tells_where_its_report_is_and_writes_every_file(maskgym_run, tmp_path, env):
    status, out, error = maskgym_run(f"env={env}", *RANDOM, "seed=3", f"out={tmp_path}/run")
    assert (status, error) == (0, [])
    assert str(tmp_path / "run" / "report.html") in out
    assert "n = 4 of 512, test" in out and "warning: scores of 4 samples of " in out
    check_files(tmp_path / "run", env, seed=3)


def test_a_run_of_one_task_writes_every_file(finished_run):
    check_files(finished_run("text"), "sis", seed=0)


def check_files(folder, env, seed):
    tasks = ["sod", "sis", "cosod"] if env == "saliency" else [env]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["env"]["name"], config["algo"]["name"], config["seed"]) == (env, "random", seed)
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= {"env", "algo", "seed", "device", "wall_s", "steps", "before", "after", "versions"}
    assert (results["env"], results["algo"], results["seed"], results["steps"]) == (env, "random", seed, 0)
    used = results["provenance"]["weights"]["segmenter"]
    assert used["dtype"] in ("float32", "bfloat16") and len(used["fingerprint"]) == 16
    expected = {"reward", "s_measure", "iou", "mae", "format", "f_max", "e_max"}
    for task in tasks:
        prefix = f"{task}/" if env == "saliency" else ""
        names = expected | ({"instance_iou", "miou", "oiou"} if task == "refer" else set())
        names |= {"iasm", "iasm_published", "ap50", "ap70"} if task == "sis" else set()
        assert {prefix + name for name in names} <= set(results["before"]) == set(results["after"])
        assert results["after"][f"{prefix}format"] == 1  # a random answer is well-formed
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert list(rows[0])[:2] == ["step", "wall_s"]
    assert rows[0]["held_out/reward" if env != "saliency" else "held_out/sis/reward"]
    answers = [json.loads(line) for line in (folder / "samples" / "answers.jsonl").read_text().splitlines()]
    assert [row["task"] for row in answers] == [task for task in tasks for _ in range(4)]
    assert all(row[when]["answer"].startswith("<think>") for row in answers for when in ("before", "after"))
    pictures = sorted(path.name for path in (folder / "samples").glob("*.png"))
    assert sorted(row["picture"] for row in answers if "picture" in row) == pictures
    assert pictures == sorted(f"{task}-{number:02d}.png" for task in tasks for number in range(2))
    with Image.open(folder / "samples" / pictures[0]) as picture:
        assert picture.width > 4 * 200  # image, truth, before, after
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == len(pictures)
    assert not list(folder.rglob("*.tmp"))


def test_the_seed_decides_the_run(maskgym_run, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert maskgym_run("env=sod", *RANDOM, f"seed={seed}", f"out={tmp_path}/{name}")[0] == 0
    a, b, c = (json.loads((tmp_path / name / "results.json").read_text())["before"] for name in "abc")
    assert a == b
    assert a != c


def test_a_multirun_runs_every_row_and_a_row_that_fails_stops_no_other(maskgym_run, tmp_path, photo_folder):
    status, _, error = maskgym_run(
        "-m", "env=sis,sod", *RANDOM, "data=folder", f"data.root={photo_folder}", f"out={tmp_path}/all"
    )
    assert (status, len(error)) == (2, 1)
    assert error[0].startswith("error: 1 of 2 runs failed") and "data=folder reads sod, blur" in error[0]
    results = [json.loads(file.read_text()) for file in (tmp_path / "all" / "runs").glob("*/results.json")]
    assert [result["env"] for result in results] == ["sod"]


def test_a_multirun_repeats_nothing_and_ends_in_a_table(maskgym_run, tmp_path):
    given = ("--multirun", "--jobs", "2", "env=sod", *RANDOM, "seed=0,1", f"out={tmp_path}/all")
    for _ in range(2):
        status, out, error = maskgym_run(*given)
        assert (status, error) == (0, [])
        times = {file: file.stat().st_mtime_ns for file in (tmp_path / "all" / "runs").glob("*/results.json")}
        assert len(times) == 2
        head, *body = (tmp_path / "all" / "multirun.csv").read_text().splitlines()
        assert head == "seed,reward,s_measure" and [row.split(",")[0] for row in body] == ["0", "1"]
        assert "| seed | reward |" in out and (tmp_path / "all" / "multirun.png").exists()
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_help_lists_groups_options_and_defaults(maskgym_run):
    status, out, error = maskgym_run("--help")
    assert (status, error) == (0, [])
    for text in (
        "usage:",
        "cosod, point_prompt, point_prompt_crowd, point_prompt_fine,",
        "cgpo, cgpo_clicks, cgpo_levels, cgpo_masks, chat_model, cispo, dapo, dapo_levels, dqn, dr_grpo, "
        "dr_grpo_levels, grpo, grpo_clicks, grpo_levels, grpo_masks, gspo, oracle, oracle_text, ppo, ppo_rllib, "
        "random, referring, rloo, sapo, sft, spo, usersal, usersal_plus",
        "resume=DIR",
        "samples: 256",
    ):
        assert text in out


# --- What is refused -------------------------------------------------------------------------------------------------


def refused(outcome) -> str:
    status, _, error = outcome
    assert status == 2
    assert len(error) == 1 and error[0].startswith("error: ")
    return error[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=nope"], "unknown env 'nope': expected one of cosod, point_prompt, point_prompt_crowd, "),
        (["algo=nope"], "unknown algo 'nope': expected one of cgpo, cgpo_clicks, cgpo_levels, cgpo_masks,"),
        (["nope=1"], "unknown key 'nope': expected one of "),
        (["algo.nope=1"], "unknown key 'algo.nope': algo=random has updates"),
        (["+algo.nope=1"], "unknown key 'algo.nope'"),
        (["+data.nope=1"], "unknown key 'data.nope'"),
        (["+env.nope=1"], "unknown key 'env.nope'"),
        (["+data.task=sod"], "data.task: is set by the run"),
        (["budget=3"], "budget=3: expected names and values"),
        (["budget.token=3"], "budget={'token': 3}: expected one of generated_tokens, env_steps, reward_calls and a"),
        (["budget.env_steps=0"], "budget={'env_steps': 0}: expected one of "),
        (["budget.env_steps=9", "scale=ray"], "scale=ray: expected scale=local, whose log has all that is spent"),
        (["data.level=hrad"], "data.level=hrad: expected one of hard, easy, medium"),
        (["data.knobs.brihgt=[1]"], "data.knobs.brihgt: expected one of bright, pale, alike"),
        (["data.knobs.bright=[0.5]"], "data.knobs.bright=(0.5,): expected a list of shares, which sum to 1"),
        (["data.knobs.styles=[1]"], "expected a list of 5 shares, which sum to 1"),
        (["data.knobs.alike=2"], "data.knobs.alike=2: expected a probability, in [0, 1]"),
        (["env=refer", "data.level=hard"], "the scenes of task refer have no levels: expected easy, without knobs"),
        (["segmenter=evf_sam_tiny_erring", "segmenter.share=1"], "segmenter.share=1: expected a number in [0, 1)"),
        (["seed=x"], "seed=x: expected a whole number, such as 0"),
        (["seed=-1"], "seed=-1: expected a whole number, at least 0"),
        (["segmenter.batch_size=x"], "segmenter.batch_size=x: expected a whole number, such as "),
        (["segmenter.batch_size=0"], "segmenter.batch_size=0: expected at least 1"),
        (["env=point_prompt", "env.horizon=0"], "env.horizon=0: expected"),
        (["env=point_prompt", "algo=ppo", "algo.epochs=0"], "algo.epochs=0: expected"),
        (["env=user_need", "algo=usersal", "algo.learning_rate=-1"], "algo=usersal: Invalid learning rate: -1"),
        (["segmenter.dtype=x"], "dtype"),
        (["segmenter.device=x"], "device"),
        (["reward.format_weight=x"], "reward.format_weight=x: expected a number, such as 0.5"),
        (["data.size=x"], "data.size=x: expected a whole number"),
        (["data.annotator=x"], "annotator"),
        (["env.num_envs=true"], "env.num_envs=True: expected a whole number"),
        (["algo=cgpo", "algo.learning_rate=x"], "algo.learning_rate=x: expected a number, such as 3e-05"),
        (["algo=cgpo", "algo.micro_batch_size=x"], "algo.micro_batch_size=x: expected a whole number"),
        (["algo=cgpo", "algo.micro_batch_size=0"], "algo.micro_batch_size=0: expected a divisor of batch_size=128"),
        (["algo=cgpo", "algo.save_every=0"], "algo.save_every=0: expected at least 1"),
        (["algo=cgpo", "algo.epsilon=-1"], "algo.epsilon=-1: expected more than 0"),
        (["algo=cgpo", "algo.temperature=0"], "algo.temperature=0: expected more than 0"),
        (["algo=cgpo", "algo.learning_rate=-1"], "algo.learning_rate=-1: expected at least 0"),
        (["algo=cgpo", "algo.isr_period=0"], "isr_period=0: expected"),
        (["algo=cgpo", "algo.beta=0.1"], "algo.beta=0.1: takes the place of ISR: expected isr_sft_steps=0"),
        (["algo=grpo", "algo.batch_size=20"], "algo.group_size=8: expected a divisor of batch_size=20"),
        (["algo=grpo", "algo.group_size=1"], "algo.group_size=1: expected at least 2 answers to compare"),
        (["algo=rloo", "algo.group_size=0"], "algo.group_size=0: expected a divisor of batch_size=128"),
        (["algo=grpo", "algo.beta=-1"], "algo.beta=-1: expected at least 0"),
        (["algo=dapo", "algo.sampling_rounds=0"], "algo.sampling_rounds=0: expected at least 1"),
        (["algo=spo", "algo.forgetting=2"], "algo.forgetting=2: expected 0 to 1"),
        (["algo=spo", "+algo.group_size=8"], "algo.num_generations=8: SPO supports only 1"),
        (["algo=cgpo", "policy.lora_rank=x"], "policy.lora_rank=x: expected a whole number"),
        (["algo=cgpo", "policy.dtype=x"], "dtype"),
        (["data=coco", "data.root=3"], "data.root=3: expected text"),
        (["reward=weighted", "reward.terms=x"], "reward.terms=x: expected names and values"),
        (["evaluation.samples=-1"], "evaluation.samples=-1: expected a whole number, at least 0"),
        (["algo.updates=1.5"], "algo.updates=1.5: expected a whole number"),
        (["data=coco"], "data.root is not set"),
        (["data=coco", "data.root=nowhere"], "data.root=nowhere: no such folder"),
        (["segmenter=evf_sam"], "checkpoint"),
        (["segmenter=evf_sam", "segmenter.checkpoint=nowhere"], "nowhere: no such checkpoint"),
        (["policy=qwen2_5_vl"], "policy.path is not set"),
        (["algo=cgpo", "algo.rationales=x"], "algo.rationales=x: expected auto, own or scenes"),
        (["-m", "seed=0,1", "resume=x"], "resume=DIR continues one run"),
        (["-m", "env=sod,nope"], "unknown env 'nope'"),
        (["env=point_prompt", "algo=sft"], "env=point_prompt takes cgpo_clicks, dqn, grpo_clicks, oracle, ppo, random"),
        (["env=point_prompt", "policy=qwen2_5_vl_tiny"], "env=point_prompt policy=qwen2_5_vl_tiny: not a pair"),
        (["env=point_prompt", "segmenter=evf_sam_tiny"], "takes no points"),
        (["env=point_prompt", "env.patch_size=30"], "env.patch_size=30: expected a divisor of image_size=128"),
        (["env=point_prompt", "env.label_source=oracle"], "label_source=oracle"),
        (["env=point_prompt", "algo=ppo", "env.recalibration.branch=explicit"], "attends to a text: expected env.text"),
        (["env=point_prompt", "algo=random", "env.text=star", "env.attention.name=clip"], "clip"),
        (["env=sod", "train_samples=0"], "train_samples=0: expected a whole number, at least 1"),
        (["env=sod", "train_samples=9999"], "9999 samples to train on: expected 1 to 2000"),
        (["env=point_prompt", "segmenter=sam"], "needs checkpoint=PATH"),
        (["segmenter=sam_tiny"], "takes no phrases"),
        (["resume=nowhere"], "nowhere/config.yaml: no such file"),
    ],
)
def test_bad_values_end_with_status_2_and_one_line(maskgym_run, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    resuming = arguments[0].startswith("resume")
    given = arguments if resuming else ["env=sis", *RANDOM, "algo.updates=1", "out=run", *arguments]
    assert expected in refused(maskgym_run(*given))
    assert not list(tmp_path.rglob("*.*"))  # nothing is left behind


def test_an_unsupported_pair_lists_what_is_supported(maskgym_run, monkeypatch):
    monkeypatch.setattr(agents.get("random"), "tasks", ("sod",))
    line = refused(maskgym_run("env=saliency", "algo=random"))
    assert line == f"error: env=saliency algo=random: not a pair: env=saliency takes {TEXT}"


def test_a_name_that_no_folder_can_have(maskgym_run, tmp_path):
    line = refused(maskgym_run("env=sod", *RANDOM, f"out={tmp_path}/{'x' * 300}"))
    assert line.startswith("error: out=") and "cannot be written" in line


def test_an_output_folder_that_cannot_be_written(maskgym_run, tmp_path):
    (tmp_path / "file").touch()
    assert f"out={tmp_path}/file/run: cannot be written" in refused(
        maskgym_run("env=sis", *RANDOM, f"out={tmp_path}/file/run")
    )


def test_a_folder_without_pairs_and_one_with_a_truncated_photo(maskgym_run, tmp_path, photo_folder):
    (tmp_path / "empty").mkdir()
    given = ("env=sod", *RANDOM, "data=folder", f"out={tmp_path}/run")
    assert "empty" in refused(maskgym_run(*given, f"data.root={tmp_path}/empty"))
    for photo in photo_folder.glob("images/*.jpg"):
        photo.write_bytes(photo.read_bytes()[:400])
    line = refused(maskgym_run(*given, f"data.root={photo_folder}"))
    assert ".jpg: cannot be decoded" in line
    assert not (tmp_path / "run").exists()


def test_a_segmenter_checkpoint_that_lacks_a_key_or_has_a_wrong_shape(maskgym_run, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "checkpoint"
    shutil.copytree(EMBEDDED, folder)
    state = load_file(EMBEDDED / "model.safetensors")
    name = sorted(name for name in state if state[name].ndim == 2)[0]
    given = ("env=sis", *RANDOM, "segmenter=evf_sam", f"segmenter.checkpoint={folder}", f"out={tmp_path}/run")
    save_file({key: value for key, value in state.items() if key != name}, folder / "model.safetensors")
    assert name in refused(maskgym_run(*given))
    save_file({**state, name: np.zeros((1, 1), state[name].dtype)}, folder / "model.safetensors")
    assert name in refused(maskgym_run(*given))
    assert not (tmp_path / "run").exists()


def test_a_policy_checkpoint_that_lacks_a_key(maskgym_run, tmp_path):
    from safetensors.numpy import load_file, save_file

    from maskgym.policies.text.mllm import TINY

    folder = tmp_path / "policy"
    shutil.copytree(TINY, folder)
    state = load_file(TINY / "model.safetensors")
    name = next(name for name in state if name.endswith("down_proj.weight"))
    save_file(
        {key: value for key, value in state.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    settings = (f"policy.path={folder}", "policy.lora_rank=null", "policy.dtype=float32")
    line = refused(maskgym_run("env=sis", "algo=cgpo", *SMALL, "policy=qwen2_5_vl", *settings, f"out={tmp_path}/run"))
    assert "missing" in line and "down_proj.weight" in line


# --- Without a run ---------------------------------------------------------------------------------------------------


def test_the_config_is_printed_and_nothing_runs(maskgym_run, finished_run, tmp_path):
    given = ("env=point_prompt", "algo=ppo", "algo.updates=7", f"out={tmp_path}/run")
    status, out, error = maskgym_run("--cfg", *given)
    assert (status, error) == (0, []) and not (tmp_path / "run").exists()
    assert yaml.safe_load(out) == composition.compose(given)
    assert "env=sis takes cgpo" in refused(maskgym_run("env=sis", "algo=ppo", "--cfg"))
    assert "expected it without -m" in refused(maskgym_run("--cfg", "-m", "seed=0,1"))
    folder = finished_run("text")
    status, out, error = maskgym_run("--cfg", f"resume={folder}", "algo.updates=+3")
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert yaml.safe_load(out) == {**stored, "algo": {**stored["algo"], "updates": 3}} and (status, error) == (0, [])


def test_help_shows_the_defaults_of_the_options_that_are_named(maskgym_run):
    status, out, error = maskgym_run("--help", "env=point_prompt")
    assert (status, error) == (0, [])
    assert "defaults with env=point_prompt:" in out and "    patch_size: 16" in out and "name: sam_tiny" in out
    assert "unknown env 'x'" in refused(maskgym_run("env=x", "--help"))


# --- One run a folder -------------------------------------------------------------------------------------------------


def test_a_folder_that_another_process_runs_in_is_refused(maskgym_run, finished_run, tmp_path):
    given = ("env=sod", *RANDOM, f"out={tmp_path}/run")
    (tmp_path / "run").mkdir()
    with files.alone(tmp_path / "run", run_folder.WORK):
        assert f"{tmp_path}/run: another process is at work here (run)" in refused(maskgym_run(*given))
        (tmp_path / "run" / "config.yaml").write_text("of the other process")
        assert "another process is at work here (run)" in refused(maskgym_run(*given))
        assert (tmp_path / "run" / "config.yaml").read_text() == "of the other process"
    assert "holds a run: continue it with resume=" in refused(maskgym_run(*given))
    folder = finished_run("text")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with files.alone(folder, run_folder.WORK):
        assert "another process is at work here (run)" in refused(maskgym_run(f"resume={folder}"))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


# --- Longer runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first", "more"),
    [pytest.param("cgpo", 2, "+2", marks=pytest.mark.e2e), ("ppo", 1, "3"), ("usersal", 1, "+1")],
)
def test_a_finished_run_that_is_lengthened_is_the_one_of_that_length(
    maskgym_run, finished_run, tmp_path, name, first, more
):
    given = (*finished_run.arguments(name), f"algo.updates={first}", "algo.save_every=1", f"out={tmp_path}/run")
    assert maskgym_run(*given)[0] == 0
    assert maskgym_run(f"resume={tmp_path}/run", f"algo.updates={more}")[::2] == (0, [])
    whole, longer = (
        json.loads((folder / "results.json").read_text()) for folder in (finished_run(name), tmp_path / "run")
    )
    assert (longer["before"], longer["after"]) == (whole["before"], whole["after"])
    assert longer["steps"] == whole["steps"] > first
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["algo"]["updates"] == whole["steps"]
    columns = ("step", "reward", "train/loss", "loss")
    rows = [
        [[row.get(column) for column in columns] for row in read_metrics(folder / "metrics.csv") if row["step"] > first]
        for folder in (finished_run(name), tmp_path / "run")
    ]
    assert rows[0] == rows[1]


def test_a_run_cannot_become_shorter_and_a_schedule_that_depends_on_the_length_is_told(maskgym_run, tmp_path):
    given = ("env=sod", *RANDOM, "algo.updates=2", f"out={tmp_path}/run")
    assert maskgym_run(*given)[0] == 0
    resume = f"resume={tmp_path}/run"
    assert "its run has algo.updates=2, not 1: expected as many, or more" in refused(
        maskgym_run(resume, "algo.updates=1")
    )
    assert "algo.updates=x: expected a whole number of updates, or +N" in refused(maskgym_run(resume, "algo.updates=x"))
    assert "algo.updates=+-1: expected" in refused(maskgym_run(resume, "algo.updates=+-1"))
    config = composition.load(tmp_path / "run" / "config.yaml")
    config["algo"]["lr_scheduler_type"] = "linear"
    (tmp_path / "run" / "config.yaml").write_text(composition.dump(config))
    status, _, error = maskgym_run("--cfg", resume, "algo.updates=+1")
    expected = "differs from a run of 3 updates: its first 2 had the learning rates of a shorter one"
    assert (status, error) == (0, [f"algo.lr_scheduler_type=linear: {expected}"])


# --- Budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit"), [pytest.param("cgpo", "generated_tokens", marks=pytest.mark.e2e), ("ppo", "env_steps")]
)
def test_a_training_ends_with_the_update_that_spends_the_budget(maskgym_run, finished_run, tmp_path, name, unit):
    spent = {row["step"]: row[unit] for row in read_metrics(finished_run(name) / "metrics.csv") if unit in row}
    budget = int(spent[1] + spent[2])
    given = (*finished_run.arguments(name), f"budget.{unit}={budget}", f"out={tmp_path}/run")
    assert maskgym_run(*given)[::2] == (0, [])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if unit in row]
    assert results["steps"] == 2 and sum(row[unit] for row in rows) == budget
    shorter = (*finished_run.arguments(name), "algo.updates=2", f"out={tmp_path}/shorter")
    assert maskgym_run(*shorter)[0] == 0
    assert results["after"] == json.loads((tmp_path / "shorter" / "results.json").read_text())["after"]
    assert maskgym_run(f"resume={tmp_path}/run")[0] == 0
    assert results["after"] == json.loads((tmp_path / "run" / "results.json").read_text())["after"]


def test_a_budget_that_is_not_spent_is_told(maskgym_run, tmp_path):
    given = ("env=user_need", "algo=usersal", "algo.batch_size=2", "algo.updates=1", *SMALL, f"out={tmp_path}/run")
    status, out, error = maskgym_run(*given, "budget.env_steps=9")
    assert (status, error) == (0, []) and "budget: clicks: 0 of 9 spent after 1 updates: expected more" in out


# --- Loggers ---------------------------------------------------------------------------------------------------------


def test_tensorboard_holds_what_metrics_csv_holds(maskgym_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert maskgym_run("env=sod", *RANDOM, "algo.updates=1", "logger=tensorboard", f"out={tmp_path}/run")[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step", "wall_s"}
    written = [event.value for event in events.Scalars("held_out/reward")]
    assert written == pytest.approx([float(row["held_out/reward"]) for row in rows])


def test_wandb_writes_an_offline_run_inside_the_folder_and_goes_on_in_it(maskgym_run, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    told = ("logger.group=of-seeds", "logger.tags=[first-tag,second]", "logger.run_name=my-name")
    given = ("env=sod", *RANDOM, "algo.updates=1", "logger=wandb", *told, f"out={tmp_path}/run")
    assert maskgym_run(*given)[0] == 0
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    written = file.read_bytes()
    assert b"held_out/reward" in written and b"samples" in written and b"answers" in written
    assert len(list(file.parent.glob("files/media/images/*.png"))) == 2
    (table,) = file.parent.glob("files/media/table/*.json")
    assert json.loads(table.read_text())["columns"][:2] == ["key", "before answer"]
    identity = (tmp_path / "run" / "wandb" / "id.txt").read_text()
    assert file.stem == f"run-{identity}"
    assert b"of-seeds" in written and b"first-tag" in written and b"my-name" in written
    assert not [place for place in home.rglob("*") if place.is_file()] and "WANDB_DATA_DIR" not in os.environ
    (tmp_path / "run" / "results.json").unlink()
    assert maskgym_run(f"resume={tmp_path}/run")[0] == 0
    assert len({path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")}) == 1
    assert loggers._wandb_id(tmp_path / "run") == identity
    shutil.rmtree(tmp_path / "run")
    assert loggers._wandb_id(tmp_path / "run") != identity  # a new run under an old path is another run


@pytest.mark.e2e(seconds=50)
def test_a_run_goes_on_when_wandbs_service_goes_away(tmp_path, worker_of):
    given = ["env=user_need", "algo=usersal", "algo.batch_size=2", "algo.updates=40", "evaluation.samples=2"]
    given += ["logger=wandb", f"out={tmp_path}/run"]
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not that of other tests
    process = subprocess.Popen([sys.executable, run.__file__, *given], stderr=subprocess.PIPE, text=True, env=own)
    wait_for(lambda: "\n2," in read(tmp_path / "run" / "metrics.csv"), process)
    os.kill(worker_of(process.pid, "wandb-core"), signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "logger=wandb: its service went away" in error
    assert (tmp_path / "run" / "report.html").exists()


# --- What stops a run ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_before_a_checkpoint_of_it(maskgym_run, tmp_path):
    given = ["env=user_need", "algo=usersal", "algo.batch_size=2", "algo.save_every=1", "evaluation.samples=2"]
    status, _, error = maskgym_run(*given, "algo.updates=4", "algo.learning_rate=1e36", f"out={tmp_path}/run")
    assert status == 2
    assert "stopped; the last good checkpoint is in" in error[-1] and " nan" in error[-1]
    from maskgym.agents.common.checkpoints import read_checkpoint

    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "masks.pt")
    assert 0 < kept["update"] < int(re.search(r"update (\d+):", error[-1])[1])


def test_a_reward_that_is_no_number_stops_the_run_before_it_trains(maskgym_run, tmp_path, monkeypatch):
    from maskgym.experiments.evaluation import evaluation

    means = evaluation.means
    monkeypatch.setattr(evaluation, "means", lambda rows: means(rows) | {"reward": float("nan")})
    monkeypatch.setattr(agents.get("random"), "train", lambda *arguments, **settings: pytest.fail("it trained"))
    line = refused(maskgym_run("env=sod", *RANDOM, "algo.updates=1", f"out={tmp_path}/run"))
    assert line.endswith("update 0: held_out/reward is nan: stopped; before the first checkpoint")


def test_a_stored_evaluation_of_other_samples_or_types_is_named(maskgym_run, finished_run, tmp_path):
    shutil.copytree(finished_run("text"), tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "before.json"
    stored = json.loads(file.read_text())["sis"]
    for content in (1, {}, {"sis": 1}, {"sis": stored | {"answers": []}}, {"sis": stored | {"per_sample": [1] * 4}}):
        file.write_text(json.dumps(content))
        assert "before.json: is no evaluation of this run's samples" in refused(maskgym_run(f"resume={tmp_path}/run"))


def test_a_run_whose_data_or_segmenter_changed_is_not_resumed(maskgym_run, photo_folder, tmp_path):
    folder, sam = tmp_path / "run", tmp_path / "sam"
    sam.mkdir()
    for file in SAM.iterdir():
        shutil.copy(file, sam)
    given = ("env=point_prompt", "algo=random", "env.horizon=2", "data=folder", f"data.root={photo_folder}")
    given += ("segmenter=sam", f"segmenter.checkpoint={sam}", *RANDOM[1:])
    assert maskgym_run(*given, f"out={folder}")[0] == 0
    assert maskgym_run(f"resume={folder}")[::2] == (0, [])
    results = json.loads((folder / "results.json").read_text())["provenance"]
    assert results["held_out"]["point_prompt"]["root"] == str(photo_folder)
    assert results["weights"]["segmenter"]["name"] == "sam"

    mask = photo_folder / "masks" / "000.png"
    kept = mask.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    line = refused(maskgym_run(f"resume={folder}"))
    assert "before.json: " in line and "data, point_prompt: folder in " in line and " then, " in line
    assert line.endswith("expected the data and the weights that the run began with")
    mask.write_bytes(kept)

    config = sam / "config.json"
    config.write_text(config.read_text() + "\n")
    assert maskgym_run(f"resume={folder}")[0] == 0  # as the sizes are the same
    weights = load_file(sam / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, sam / "model.safetensors")
    assert ": segmenter: sam (" in refused(maskgym_run(f"resume={folder}"))

    before = folder / "checkpoints" / "before.json"
    stored = json.loads(before.read_text())
    assert stored.pop("provenance")
    before.write_text(json.dumps(stored))
    status, out, _ = maskgym_run(f"resume={folder}")
    assert status == 0 and "before.json: does not name the run's data and weights" in out


def test_average_precision_that_an_older_version_stored_is_left_out(maskgym_run, finished_run, tmp_path):
    folder = shutil.copytree(finished_run("text"), tmp_path / "run")
    file = folder / "checkpoints" / "before.json"
    stored = json.loads(file.read_text())
    assert stored.pop("average_precision") and "ap50" in stored["sis"]["scores"]
    file.write_text(json.dumps(stored))
    (folder / "results.json").unlink()
    status, out, _ = maskgym_run(f"resume={folder}")
    assert status == 0 and "AP50 and AP70 are of the older rule for equal scores: left out" in out
    results = json.loads((folder / "results.json").read_text())
    assert "iasm" in results["before"] and "ap50" not in results["before"]


def test_a_full_disk_is_told_in_one_line_and_loses_nothing(maskgym_run, tmp_path, monkeypatch):
    from maskgym.agents.common.checkpoints import read_checkpoint

    folder, replace, limits = tmp_path / "run", os.replace, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk_after_a_checkpoint(source, target):
        replace(source, target)
        if Path(target).name == "masks.pt":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))  # a checkpoint no longer fits

    given = ["env=user_need", "algo=usersal", "algo.batch_size=2", "algo.save_every=1", "algo.updates=3"]
    monkeypatch.setattr(os, "replace", fill_the_disk_after_a_checkpoint)
    try:
        outcome = maskgym_run(*given, "evaluation.samples=2", f"out={folder}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    expected = f"once it can be written, continue with resume={folder}"
    assert outcome[0] == 2 and outcome[2][-1].startswith("error: ") and outcome[2][-1].endswith(expected)
    assert read_checkpoint(folder / "checkpoints" / "masks.pt")["update"] == 1
    assert not list(folder.rglob("*.tmp"))
    assert maskgym_run(f"resume={folder}")[0] == 0
    steps = [row["step"] for row in csv.DictReader((folder / "metrics.csv").open())]
    assert steps == ["0", "1", "2", "3", "3"]


# --- Clicks ----------------------------------------------------------------------------------------------------------


def test_a_run_of_chance_clicks_writes_every_file(maskgym_run, tmp_path):
    settings = ["env.label_source=policy", "env.horizon=5"]
    assert maskgym_run("env=point_prompt", "algo=random", *SMALL, *settings, f"out={tmp_path}/run")[::2] == (0, [])
    results = check_files_of_clicks(tmp_path / "run")
    assert results["before"] == results["after"]


def test_a_run_of_learned_clicks_writes_every_file_and_can_be_evaluated(finished_run):
    from maskgym.experiments import cli

    results = check_files_of_clicks(finished_run("ppo"))
    assert results["before"] != results["after"]
    assert cli.main(["evaluate", str(finished_run("ppo"))]) == 0


def check_files_of_clicks(folder):
    results = json.loads((folder / "results.json").read_text())
    wanted = {"reward", "repeated", "iou", "iou@1", "iou@5", "noc85", "noc90", "s_measure", "mae", "f_max", "e_max"}
    assert wanted <= set(results["after"]) and "iou@10" not in results["after"]
    assert 0 < results["after"]["iou"] < 1 and results["after"]["iou"] == results["after"]["iou@5"]
    rows = [json.loads(line) for line in (folder / "samples" / "answers.jsonl").read_text().splitlines()]
    assert all(len(row["after"]["answer"].split()) == 5 for row in rows)
    assert len(list((folder / "samples").glob("point_prompt-*.png"))) == 2
    return results


def test_a_finished_run_is_evaluated_with_something_changed(maskgym_run, tmp_path, capfd):
    from maskgym.experiments import cli

    def scores(*changes):
        assert cli.main(["evaluate", str(tmp_path / "run"), *changes]) == 0
        found = json.loads(capfd.readouterr().out)
        return {name: value for name, value in found.items() if name != "provenance"}

    settings = ["env.horizon=2", "algo.updates=1", "algo.epochs=1", "train_samples=3", "env.task=glass"]
    settings += ["env.text=category", "env.recalibration.branch=explicit"]
    assert maskgym_run("env=point_prompt", "algo=ppo", *SMALL, *settings, f"out={tmp_path}/run")[0] == 0
    after = json.loads((tmp_path / "run" / "results.json").read_text())["after"]
    assert scores() == after
    assert "iou@5" in scores("env.horizon=5") and scores("env.horizon=5")["iou@1"] == after["iou@1"]
    assert scores("algo=random") != after
    for change, message in [
        ("env=sod", "env=point_prompt: the environment of a run cannot be another one"),
        ("algo=sft", "not a pair"),
        ("env.horizn=2", "unknown key 'env.horizn'"),
    ]:
        assert cli.main(["evaluate", str(tmp_path / "run"), change]) == 2
        assert message in capfd.readouterr().err


def test_clicks_killed_in_the_middle_end_as_uninterrupted(maskgym_run, finished_run, tmp_path):
    killed = tmp_path / "killed"
    kill(finished_run.arguments("ppo"), killed, lambda: (killed / "checkpoints" / "clicks.pt").exists())
    assert maskgym_run(f"resume={killed}")[0] == 0
    whole, resumed = (json.loads((folder / "results.json").read_text()) for folder in (finished_run("ppo"), killed))
    assert resumed["before"] == whole["before"] and resumed["after"] == whole["after"]


# --- Adapters --------------------------------------------------------------------------------------------------------


def test_adapters_are_trained_evaluated_again_to_the_last_digit_and_continued(maskgym_run, tmp_path, capfd):
    from safetensors.numpy import load_file

    from maskgym.experiments import cli
    from maskgym.policies.text.mllm import TINY

    def evaluate(folder):
        capfd.readouterr()
        assert cli.main(["evaluate", str(folder)]) == 0
        found = json.loads(capfd.readouterr().out)
        return {name: value for name, value in found.items() if name != "provenance"}

    few = ["algo.updates=2", "env.default_batch_size=4"]
    policy = ["policy=qwen2_5_vl", "policy.lora_rank=2", "policy.dtype=bfloat16"]
    given = ["env=sis", "algo=sft", *SMALL, *few, "algo.isr_learning_rate=0.01", *policy, f"policy.path={TINY}"]
    assert maskgym_run(*given, f"out={tmp_path}/sft")[0] == 0
    saved = tmp_path / "sft" / "checkpoints" / "policy"
    assert {file.name for file in saved.glob("*.safetensors")} == {"adapter_model.safetensors"}
    results = json.loads((tmp_path / "sft" / "results.json").read_text())
    assert results["before"] != results["after"] == evaluate(tmp_path / "sft")

    # CGPO goes on with the same adapters.
    given = ["env=sis", "algo=cgpo", *SMALL, *few, "algo.isr_sft_steps=0", "algo.learning_rate=0.01", *policy]
    assert maskgym_run(*given, f"policy.path={saved}", f"out={tmp_path}/cgpo")[0] == 0
    continued = json.loads((tmp_path / "cgpo" / "results.json").read_text())
    assert continued["before"] == results["after"]
    assert continued["after"] == evaluate(tmp_path / "cgpo")
    folders = saved, tmp_path / "cgpo" / "checkpoints" / "policy"
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)
    assert (folders[0] / "maskgym_base.json").read_bytes() == (folders[1] / "maskgym_base.json").read_bytes()
    assert cli.main(["policy", "merge", str(tmp_path / "cgpo"), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()

    line = refused(maskgym_run(*given, f"policy.path={saved}", "policy.lora_rank=4", f"out={tmp_path}/no"))
    assert "policy.lora_rank=4: the adapters in" in line and not (tmp_path / "no" / "results.json").exists()
    line = refused(maskgym_run("env=sis", "algo=sft", *few, "policy.dtype=bfloat16", f"out={tmp_path}/no"))
    assert "policy.dtype=bfloat16 with policy.lora_rank=null" in line


def test_a_run_without_reasoning_imitates_the_answer_alone(maskgym_run, tmp_path):
    settings = ["algo.updates=10", "env.default_batch_size=8", "algo.isr_period=10", "algo.isr_sft_steps=9"]
    settings += ["algo.isr_learning_rate=0.003", "env.reasoning=false"]
    assert maskgym_run("env=sis", "algo=cgpo", *SMALL, *settings, f"out={tmp_path}/run")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples" / "answers.jsonl").read_text().splitlines()]
    for when, opening in (("before", "<think>"), ("after", "<answer>")):
        assert all(row[when]["answer"].startswith(opening) for row in rows)


# --- Stopping and going on -------------------------------------------------------------------------------------------


def test_rationales_of_a_file_are_imitated(maskgym_run, tmp_path, photo_folder):
    answer = "<think>It stands out.</think><answer><rg>the left half</rg></answer>"
    keys = Folder(photo_folder, split="train").keys[:6]
    rows = [{"key": key, "task": "sod", "images": ["x.png"], "rationale": answer} for key in keys]
    (tmp_path / "rationales.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    few = ("algo.updates=2", "algo.batch_size=4", "evaluation.samples=2", "evaluation.pictures=0")
    given = ("env=sod", "data=folder", f"data.root={photo_folder}", *few)
    file = f"{tmp_path}/rationales.jsonl"
    status, out, error = maskgym_run(*given, "algo=sft", f"data.rationales={file}", f"out={tmp_path}/run")
    assert status == 0, error
    assert "rationales to imitate: those of scenes" not in out
    used = {"data": "folder", "file": file, "used": 6, "skipped": 0}
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rationales"] == {"sod": used}
    for algo in ("cgpo", "sft"):
        line = refused(maskgym_run(*given, f"algo={algo}", f"out={tmp_path}/none"))
        assert "of data=folder have no rationale to imitate: expected data.rationales=FILE" in line
        assert not (tmp_path / "none" / "metrics.csv").exists()
    line = refused(maskgym_run(*given, "algo=sft", f"data.rationales={tmp_path}/none.jsonl", f"out={tmp_path}/other"))
    assert "none.jsonl: cannot be read" in line


def test_an_interrupted_run_says_how_to_go_on_and_does(maskgym_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(agents.get("random"), "train", interrupt)
        status, _, error = maskgym_run("env=sod", *RANDOM, "algo.updates=1", f"out={folder}")
    assert status == 130
    assert error == [f"interrupted: continue with resume={folder}"]
    before = (folder / "checkpoints" / "before.json").read_text()
    assert not (folder / "results.json").exists()
    assert "holds a run" in refused(maskgym_run("env=sod", *RANDOM, f"out={folder}"))
    assert maskgym_run(f"resume={folder}", "env=sod")[0] == 0
    assert (folder / "checkpoints" / "before.json").read_text() == before
    results = json.loads((folder / "results.json").read_text())
    assert results["before"] == next(
        one["scores"] for one in json.loads(before).values() if isinstance(one, dict) and "scores" in one
    )
    assert "its run has env=sod, not sis" in refused(maskgym_run(f"resume={folder}", "env=sis"))
    assert "its run has seed=0, not 4" in refused(maskgym_run("seed=4", f"resume={folder}"))


def test_a_run_on_ray_goes_on_elsewhere(tmp_path):
    given = ["env=sis", "algo=cgpo", "scale=ray", "scale.num_workers=4", "scale.address=10.0.0.1:6379"]
    (tmp_path / "config.yaml").write_text(composition.dump(composition.compose(given)))
    moved, _ = run._asked([f"resume={tmp_path}", "scale.address=10.0.0.2:6379", "scale.cpus_per_worker=3"])
    scale = moved["scale"]
    assert (scale["address"], scale["cpus_per_worker"], scale["num_workers"]) == ("10.0.0.2:6379", 3, 4)
    assert run._asked([f"resume={tmp_path}"])[0]["scale"]["address"] == "10.0.0.1:6379"
    with pytest.raises(UserError, match=r"scale\.timeout_s=soon: expected a whole number"):
        run._asked([f"resume={tmp_path}", "scale.timeout_s=soon"])
    with pytest.raises(UserError, match=r"its run has scale\.num_workers=4, not 2"):
        run._asked([f"resume={tmp_path}", "scale=ray", "scale.num_workers=2"])


def test_the_log_of_another_run_is_told(maskgym_run, finished_run, tmp_path):
    folder = shutil.copytree(finished_run("ppo"), tmp_path / "run")
    shutil.copy(finished_run("usersal") / "metrics.csv", folder)
    line = refused(maskgym_run(f"resume={folder}"))
    assert "metrics.csv: reward is " in line and "before training, but " in line


def test_a_resumed_run_says_which_updates_its_log_lacks(maskgym_run, finished_run, tmp_path):
    folder = shutil.copytree(finished_run("ppo"), tmp_path / "run")
    (folder / "metrics.csv").unlink()
    status, out, _ = maskgym_run(f"resume={folder}", "algo.updates=4")
    assert status == 0 and f"{folder}/metrics.csv: lacks the rows of 3 updates before 4" in out


@pytest.mark.parametrize("name", ["cgpo", pytest.param("refer", marks=pytest.mark.e2e(seconds=30))])
def test_a_run_killed_in_the_middle_ends_as_an_uninterrupted_one(maskgym_run, finished_run, tmp_path, name):
    killed = tmp_path / "killed"
    kill(finished_run.arguments(name), killed, lambda: "\n2," in read(killed / "metrics.csv"))
    assert not (killed / "results.json").exists()
    assert maskgym_run(f"resume={killed}")[0] == 0
    whole, resumed = (json.loads((folder / "results.json").read_text()) for folder in (finished_run(name), killed))
    assert resumed["before"] == whole["before"]
    assert resumed["after"] == whole["after"] != whole["before"]
    steps = [row["step"] for row in csv.DictReader((killed / "metrics.csv").open())]
    assert steps == ["0", "1", "2", "3", "4", "4"]


@pytest.mark.parametrize(
    ("env", "data", "root"),
    [
        *(("sis", "coco", "real_sis"), ("sod", "folder", "real_sod"), ("cosod", "groups", "real_cosod")),
        ("refer", "coco", "real_sis"),
    ],
)
def test_real_photographs(maskgym_run, tmp_path, env, data, root):
    if not DATA.is_dir():
        pytest.skip(f"no photographs in {DATA}: set MASKGYM_DATA")
    asks = ["+data.needs=category"] if env == "refer" else []
    status, _, error = maskgym_run(
        f"env={env}", *RANDOM, f"data={data}", f"data.root={DATA / root}", *asks, f"out={tmp_path}/run"
    )
    told = ["cosod: the data has no test split: held-out samples are those of validation"] if env == "cosod" else []
    assert (status, error) == (0, told)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    # Thirteen groups leave the test split of a hash empty.
    assert results["split"] == ("validation" if env == "cosod" else "test")
    assert (tmp_path / "run" / "report.html").exists()
