"""The study of response types: what its files hold, that it repeats itself, and how it complains."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from maskgym.agents.text.advantages import advantages_by_algorithm, share_within_prompts
from maskgym.agents.text.response_types import TYPES, confidence, mean_by_type, rank_normalized, response_types, shares
from maskgym.experiments.grids import response_study
from maskgym.experiments.wiring import build, composition
from maskgym.policies.text.mllm import LanguagePolicy

FEW = ("--responses", "16", "--group-size", "4", "env.num_envs=6")  # narrower than the answers, and no divisor of them


@pytest.fixture
def call(tmp_path, capsys):
    """Return a function that calls the command, expects it to succeed, and gives what its file holds."""

    def study(*arguments: str, name: str = "out") -> dict:
        assert response_study.main([*arguments, *FEW, "--out", str(tmp_path / name)]) == 0
        out, error = capsys.readouterr()
        assert str(tmp_path / name / "responses.png") in out and "cgpo" in out and error == ""
        return json.loads((tmp_path / name / "responses.json").read_text())

    return study


def test_the_files_hold_the_answers_and_what_follows_from_them(call, tmp_path):
    found = call("env=sis", "seed=2")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"responses.json", "responses.png", "responses.svg"}
    assert found["settings"]["responses"] == 16 and found["settings"]["group_size"] == 4
    assert (found["settings"]["seed"], found["settings"]["env"]["name"]) == (2, "sis")
    named = found["provenance"]
    assert named["train"]["sis"]["samples"] == 2000 and named["weights"].keys() == {"segmenter", "start"}
    assert found["group"] == [group for group in range(4) for _ in range(4)]
    keys = [found["key"][place] for place in range(0, 16, 4)]
    assert found["key"] == [key for key in keys for _ in range(4)] and len(set(keys)) == 4
    assert all(key.startswith("sis-train-") for key in keys)
    assert all(0 < value < 1 for value in found["confidence"]) and all(0 <= value <= 1 for value in found["reward"])
    rewards, confidences = (torch.tensor(found[name]).double() for name in ("reward", "confidence"))
    types = response_types(rewards, confidences)
    assert found["counts"] == {name: int(chosen.sum()) for name, chosen in types.items()}
    assert found["shares"] == shares(types)
    assert found["thresholds"]["reward"] == pytest.approx(np.quantile(found["reward"], [0.2, 0.8]).tolist())
    assert found["thresholds"]["confidence"] == pytest.approx(np.quantile(found["confidence"], [0.2, 0.8]).tolist())
    for name, advantages in advantages_by_algorithm(rewards, confidences, 4).items():
        means = mean_by_type(rank_normalized(advantages), types)
        assert found["advantages"][name] == {kind: None if math.isnan(m) else m for kind, m in means.items()}
    assert found["within_prompts"]["rloo"] == pytest.approx(1) and 0 < found["within_prompts"]["cgpo"] < 1
    with Image.open(tmp_path / "out" / "responses.png") as picture:
        assert picture.width > 1000 and np.asarray(picture).std() > 10


def test_reward_and_confidence_are_of_the_sampled_answer(call, monkeypatch, tmp_path):
    """The policy's own numbers, and what the environment earns its texts, in the order of the columns."""
    seen, sample = [], LanguagePolicy.sample

    def look(self, observations, *arguments):
        drawn = sample(self, observations, *arguments)
        sure = confidence(drawn.log_probabilities, drawn.mask).tolist()
        seen.extend(zip(observations, drawn.answers, sure, strict=True))
        return drawn

    monkeypatch.setattr(LanguagePolicy, "sample", look)
    found = call("env=sod")
    assert found["confidence"] == [sure for _, _, sure in seen]
    envs = build.untrained(composition.compose(["env=sod", "env.num_envs=1"]), tmp_path).envs
    for (observation, answer, _), key, reward in zip(seen, found["key"], found["reward"], strict=True):
        shown, _ = envs["sod"].reset(options={"index": int(key.rpartition("-")[2])})
        np.testing.assert_array_equal(observation["image"], shown["image"][0])
        assert envs["sod"].step((answer,))[1][0] == pytest.approx(reward, abs=1e-6)


def test_the_seed_decides(call):
    first, again, other = call("env=sod", name="a"), call("env=sod", name="b"), call("env=sod", "seed=1", name="c")
    assert first | {"wall_s": 0} == again | {"wall_s": 0}
    assert not set(first["key"]) & set(other["key"])


def test_the_settings_of_the_agent_are_those_of_the_answers(call):
    cold, hot = (call("env=sis", f"algo.temperature={value}", name=value) for value in ("0.3", "1.5"))
    assert np.mean(cold["confidence"]) > np.mean(hot["confidence"])
    short = call("env=sis", "algo.max_new_tokens=3", name="short")
    assert max(short["reward"]) == 0 < max(cold["reward"])  # cut off before anything was said
    other = call("env=sis", "algo.temperature=0.3", "algo.confidence=exp_mean_log", name="other")
    pairs = zip(other["confidence"], cold["confidence"], strict=True)
    assert other["reward"] == cold["reward"] and all(low < high for low, high in pairs)


def test_several_tasks_take_equal_parts(call):
    found = call("env=saliency")
    assert found["group"] == [group for group in range(4) for _ in range(4)]
    tasks = [key.partition("-")[0] for key in found["key"]]
    assert [tasks.count(task) for task in ("sod", "sis", "cosod")] == [8, 4, 4]


def test_answers_that_are_all_alike_have_no_type_and_a_picture(tmp_path):
    rewards, confidences = torch.ones(8), torch.full((8,), 0.5)
    types = response_types(rewards, confidences)
    advantages = advantages_by_algorithm(rewards, confidences, 4)
    found = {
        "counts": dict.fromkeys(TYPES, 0),
        "shares": shares(types),
        "thresholds": {"reward": [1.0, 1.0], "confidence": [0.5, 0.5]},
        "advantages": {name: mean_by_type(rank_normalized(values), types) for name, values in advantages.items()},
        "within_prompts": {name: share_within_prompts(values, 4) for name, values in advantages.items()},
        "reward": rewards.tolist(),
        "confidence": confidences.tolist(),
    }
    assert found["within_prompts"]["cgpo"] == 0 and math.isnan(found["within_prompts"]["grpo"])
    response_study.draw(found, tmp_path)
    assert (tmp_path / "responses.svg").read_text().count("HrHc") == 1  # in the legend only
    assert response_study.summary(found).count("nan") == 4 * 8 + sum(map(math.isnan, found["within_prompts"].values()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--responses", "15"], "--responses 15: expected a multiple of --group-size 8"),
        (["--responses", "0"], "--responses 0: expected a multiple"),
        (["--group-size", "1"], "--group-size 1: expected at least 2"),
        (["--responses", "many"], "invalid int value: 'many'"),
        (["env=mars"], "unknown env 'mars': expected one of"),
        (["env=sis", "out=there"], "out=there: expected --out there"),
        (["env=sis", "algo=random"], "env=sis algo=random: expected an agent whose policy is a language model"),
        (["env=point_prompt", "algo=ppo"], "env=point_prompt algo=ppo: expected an agent whose policy is a language"),
        (["env=sis", "algo=ppo"], "env=sis algo=ppo: not a pair"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, words, tmp_path, capsys):
    assert response_study.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_the_folder_of_a_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("env: {}\n")
    assert response_study.main(["env=sis", "--out", str(tmp_path)]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_an_interruption_is_status_130(tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    assert response_study.main(["env=sis", "--out", str(tmp_path / "out")], stop) == 130
    assert capsys.readouterr().err == "interrupted\n"
