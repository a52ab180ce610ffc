"""``maskgym check``: clean over every registered part, and one line for each part that is wrong on purpose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.data.scenes.dataset import TASKS
from maskgym.errors import UserError
from maskgym.experiments import cli
from maskgym.experiments.conformance.check_command import RULES, check

ROOT = Path(__file__).parents[3]
SEGMENTERS = ("evf_sam_tiny", "evf_sam_tiny_erring", "sam_tiny", "clip_tiny")  # bundled: the others need weights
POLICIES = {
    "none": {},
    "qwen2_5_vl_tiny": {},
    "qwen2_5_vl_tiny_refer": {},
    "qwen2_5_vl_tiny_terse": {},
    "point_actor_critic": {},
    "usersal": {"backbone": {"name": "vst_tiny"}, "encoder": {"name": "bag_of_words"}},
}
WRONG = {
    "reward": {
        "OneColumn": r"total: ndarray float64 \(\d+, 1\): expected \d+ numbers",
        "NoRange": r"reward NoRange: range \(\): expected the lowest and the highest",
        "BeyondRange": r"total 1\.5 on sample '.*': expected a number in \[0, 1\]",
        "NotANumber": r"term 'nan' gave nan on sample '.*': expected a number in \[0, 1\]",
        "InWords": r"term 'words' gave str 'good' on sample",
        "OfTextOnly": r"point_prompt: raised TypeError: object of type 'Click' has no len\(\)",
        "Standardised": r"sod: a transition alone has another value",
        "Counting": r"sod: two calls differ",
        "Writing": r"sod: an array was written to",
        "Unpicklable": r"raised \w*Error: .*[pP]ickl.*survives pickling",
    },
    "data": {
        "FlatMask": r"sample 'train-0': masks of image 0: ndarray bool \(16, 24\): expected bool \(n, 16, 24\)",
        "FloatImage": r"sample 'train-0': image 0: ndarray float64 \(16, 24, 3\): expected uint8",
        "NumberMask": r"sample 'train-0': masks of image 0: ndarray uint8 \(1, 16, 24\): expected bool",
        "SameKeys": r"12 keys of the train split, of which 1 differ",
        "TooLong": r"index 11 of the train split: raised IndexError: 11",
        "FewKeys": r"8 keys of the train split, whose len is 12",
        "Noisy": r"index 0 of the train split was read twice, with other images",
        "Leaking": r"index 0 of the validation split, 'photo-0', is in the train split too",
        "OtherSplit": r"split='train' where split='validation' was asked for",
        "NoDataset": r"a wrong_parts\.NoDataset .*a subclass of maskgym\.data\.Dataset",
    },
    "segmenter": {
        "OneMore": r"2 expressions on \(64, 64, 3\): ndarray float32 \(3, 64, 64\): expected a float array of shape",
        "NanMasks": r"values from nan to nan: expected probabilities",
        "Logits": r"values from -5 to -5: expected probabilities in \[0, 1\]",
        "OfTheBatch": r"probabilities differ by 0\.66",
        "OnlyWords": r"segment of '': raised ValueError: no words",
        "NoSegmenter": r"a wrong_parts\.NoSegmenter; .* segment\(images, expressions\) for phrases",
    },
    "policy": {
        "NoTasks": r"tasks=None; .* a tuple of names of tasks",
        "Mute": r"no sample, log_probabilities, save, load, which agents of text use",
        "WithoutGradient": r"a value without a gradient",
    },
    "agent": {
        "CannotAct": r"CannotAct without act, which every agent has; .* implements train, act, save and load",
        "UnknownTask": r"tasks=\('chess',\)",
        "ShortOfOne": r"greedy actions on sod: maskgym/SOD-v0: \d actions: expected \d|greedy actions on sod: .*",
        "Moody": r"two greedy rollouts on sod differ",
        "Learner": r"the trained agent acts differently after loading",
        "Silent": r"updates \[\] of 2; .* on_log called once per update",
        "Diverged": r"update 1: reward not finite",
    },
    "env": {
        "wrong/Scalar-v0": r"wrong/Scalar-v0 has no vector_entry_point",
        "wrong/Plain-v0": r"wrong_parts\.PlainVectorEnv; .* is a maskgym\.envs\.base\.SampleVectorEnv",
        "wrong/Peeking-v0": r"with empty masks the first observation is another one",
        "wrong/Endless-v0": r"no episode has ended after 1 steps",
        "wrong/Other-v0": r"rewards 1\.\d+ and 0\.\d+; .* the same rewards and observations",
    },
}
KEPT = {"data": "Grey", "segmenter": "Empty", "agent": "Constant"}
MADE = {"data": ["scenes"], "reward": list(rewards.names()), "policy": list(POLICIES), "segmenter": SEGMENTERS}


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Let the wrong parts be imported, as a user's own module beside the command, and be forgotten afterwards."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for held in ("_targets", "_presets"):
        monkeypatch.setattr(agents._registry, held, dict(getattr(agents._registry, held)))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in WRONG for name in WRONG[kind]])
def test_a_part_that_breaks_a_rule_is_named_in_one_line(kind, name):
    (line,) = check(kind, f"wrong_parts:{name}", {})
    assert re.search(WRONG[kind][name], line), line
    assert "\n" not in line and any(line.endswith(rule) for rule in RULES[kind].values())


@pytest.mark.parametrize("kind", KEPT)
def test_the_same_parts_without_the_fault_are_clean(kind):
    assert list(check(kind, f"wrong_parts:{KEPT[kind]}", {})) == []


@pytest.mark.parametrize("task", TASKS)
def test_scenes_are_clean(task):
    assert list(check("data", "scenes", {"task": task, "image_size": 64})) == []


def test_a_folder_is_clean_and_data_that_is_not_here_is_told(photo_folder):
    assert list(check("data", "folder", {"root": str(photo_folder)})) == []
    for name in set(data.names()) - {"scenes"}:
        with pytest.raises(UserError, match=rf"'{name}'|data\.(root|path|sod)|missing key"):
            check("data", name, {})


@pytest.mark.parametrize("name", rewards.names())
def test_every_reward_is_clean(name):
    assert list(check("reward", name, {"terms": {"iou": 0.5, "format": 0.5}} if name == "weighted" else {})) == []


def test_rewards_of_one_kind_of_episode_say_so():
    assert check("reward", "sa_sor", {}).notes == [
        "it does not score sod, sis, cosod, refer, point_prompt, user_need, user_need_point"
    ]
    assert list(check("reward", "wrong_parts:OfTextOnly", {}, ["sod", "sis"])) == []


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_bundled_segmenter_is_clean(name):
    assert list(check("segmenter", name, {})) == []


def test_segmenters_whose_weights_are_not_here_are_told():
    for name in {*segmenters.names(), *segmenters.attention_names()} - {*SEGMENTERS}:
        with pytest.raises(UserError, match="checkpoint|path"):
            check("segmenter", name, {})


@pytest.mark.parametrize("name", POLICIES)
def test_every_bundled_policy_is_clean(name):
    assert list(check("policy", name, POLICIES[name])) == []


@pytest.mark.parametrize("kind", ["env", "data", "segmenter", "reward", "policy", "agent"])
def test_the_page_of_parts_lists_every_rule_and_no_other(kind):
    page = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
    section = page.partition(f"### {kind}\n")[2].partition("\n#")[0]
    listed = [" ".join(line.split()) for line in re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)]
    assert listed == list(RULES[kind].values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reward", "nope"], "unknown reward 'nope'"),
        (["reward", "iou", "x=1"], "unknown key 'x': reward 'iou' does not take it"),
        (["reward", "nowhere:Part"], "nowhere:Part: raised ModuleNotFoundError"),
        (["reward", "wrong_parts:WRONG"], "wrong_parts:WRONG: raised AttributeError"),
        (["reward", "wrong_parts:__doc__"], "expected a class or a function"),
        (["data", "duts"], "missing key 'root'"),
        (["env", "maskgym/Nope-v0"], "env 'maskgym/Nope-v0'"),
        (["agent", "nope"], "unknown agent 'nope'"),
        (["part", "x"], "invalid choice: 'part'"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(capsys, arguments, expected):
    assert cli.main(["check", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_the_command_prints_findings_and_their_status(capsys):
    assert cli.main(["check", "reward", "iou"]) == 0
    assert capsys.readouterr().out == "reward iou: ok\n"
    assert cli.main(["check", "reward", "wrong_parts:NotANumber", "--on", "sis"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("reward wrong_parts:NotANumber: sis: term 'nan' gave nan on sample 'sis-test-00000'")


def test_policies_are_listed_here_unless_they_need_weights():
    of_a_path = {"mllm", "qwen2_5_vl", "qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl"}
    assert set(policies.names()) - set(POLICIES) == {*of_a_path, "usersal_plus"}
