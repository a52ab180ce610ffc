"""A set for each task in one run: what trains, what is imitated, what is held out, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maskgym.data.readers.folder import Folder
from maskgym.data.scenes import Scenes
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.experiments.wiring import build, composition, run_folder, sources

SCENES = (
    *("env=saliency", "data.sod=scenes", "data.sis=scenes", "data.cosod=scenes", "env.group_size=2"),
    "data.readers.scenes={size: 12, image_size: 32}",
)
SIZES = (*(f"data.parts.sft.{task}=5" for task in ("sod", "sis", "cosod")), "data.parts.rl=4", "data.parts.isr=3")


def keys(envs):
    """Return the keys of the samples of each environment."""
    return [unwrap(env, SampleVectorEnv).dataset.keys for env in envs]


@pytest.fixture
def colours(tmp_path):
    """Return a function that writes a folder of photos of one colour each, with masks."""

    def write(name, values, stem="{:03d}", folders=("images", "masks"), group=""):
        mask = np.zeros((8, 8), np.uint8)
        mask[:, :4] = 255
        for folder in folders:
            (tmp_path / name / folder / group).mkdir(parents=True, exist_ok=True)
        for value in values:
            photo = np.full((8, 8, 3), value, np.uint8)
            Image.fromarray(photo).save(tmp_path / name / folders[0] / group / f"{stem.format(value)}.png")
            Image.fromarray(mask).save(tmp_path / name / folders[1] / group / f"{stem.format(value)}.png")
        return tmp_path

    return write


def test_a_set_for_a_task_means_the_option_that_takes_it():
    config = composition.compose(["env=saliency", "data.sod=duts", "data.sis=[ilso,soc]", "data.roots.duts=DIR"])
    assert config["data"]["name"] == "tasks" and config["data"]["sis"] == ["ilso", "soc"]
    assert config["data"]["roots"] == {"duts": "DIR"} and config["data"]["cosod"] is None
    assert (
        composition.compose(["data=tasks", "data.sod=duts"])["data"] == composition.compose(["data.sod=duts"])["data"]
    )
    for wrong, words in (
        (["data=coco", "data.sod=duts"], "unknown key 'data.sod': data=coco has"),
        (["data.sod=3"], r"data\.sod=3: expected text, or a list"),
        (["data.sod=duts", "data.parts.rl=few"], r"data\.parts\.rl=few: expected a whole number"),
        (["data.sod=duts", "data.parts.rll=3"], r"unknown key 'data\.parts\.rll'"),
        (["data.sod=duts", "data.rationales=3"], r"data\.rationales=3: expected text, or a list"),
        (["env.held_out_group_size=x", "env=cosod"], r"held_out_group_size=x: expected a whole number"),
    ):
        with pytest.raises(UserError, match=words):
            composition.compose(wrong)


@pytest.mark.parametrize(("algo", "imitated"), [("cgpo", "isr"), ("sft", "sft")])
def test_each_kind_of_step_has_its_part(algo, imitated):
    config = composition.compose([*SCENES, *SIZES, f"algo={algo}"])
    parts = build.make_parts(config)
    envs = build.make_train_envs(config, parts)
    supervised = build.make_supervised(config, envs, parts)
    listed = sources.listed(config)["tasks"]
    for task, trained, shown in zip(envs, keys(envs.values()), keys(supervised), strict=True):
        assert list(trained) == listed[task]["rl"] and list(shown) == listed[task][imitated]
        assert not set(listed[task]["sft"]) & set(trained) and set(listed[task]["isr"]) < set(listed[task]["sft"])
        assert [len(listed[task][name]) for name in ("sft", "rl", "isr")] == [5, 4, 3]
    told = build.describe_rationales(config, dict(zip(envs, supervised, strict=True)))
    assert {one["used"] for one in told.values()} == {len(keys(supervised)[0])}
    assert keys([build.make_env(config, "sis", "train", parts)]) == keys([envs["sis"]])  # as actors of Ray make it


def test_the_parts_do_not_depend_on_the_runs_seed():
    first, second = (composition.compose([*SCENES, *SIZES, f"seed={seed}"]) for seed in (0, 1))
    assert sources.listed(first) == sources.listed(second)
    other = composition.compose([*SCENES, *SIZES, "data.parts.seed=1"])
    assert sources.listed(first)["tasks"]["sod"]["sft"] != sources.listed(other)["tasks"]["sod"]["sft"]


def test_rationales_of_a_file_leave_the_samples_of_reinforcement_learning_as_they_are(photo_folder, tmp_path):
    dataset = Folder(photo_folder, split="train")
    answer = "<think>It stands out.</think><answer><rg>left</rg></answer>"
    rows = [{"key": key, "task": "sod", "rationale": answer} for key in dataset.keys[:6]]
    file = tmp_path / "rationales.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = composition.compose(
        ["env=sod", "algo=cgpo", "data=folder", f"data.root={photo_folder}", f"data.rationales={file}"]
    )
    parts = build.make_parts(config)
    envs = build.make_train_envs(config, parts)
    (trained,), (imitated,) = keys(envs.values()), keys(build.make_supervised(config, envs, parts))
    assert trained == dataset.keys and imitated == dataset.keys[:6]


def test_rationales_are_found_with_and_without_the_name_of_their_set(colours, tmp_path):
    root = colours("ECSSD", range(3))
    colours("mine", range(10, 13))
    file = tmp_path / "rationales.jsonl"
    answer = "<think>It stands out.</think><answer><rg>left</rg></answer>"
    given = ["env=sod", "algo=sft", "data.sod=[mine,other]", f"data.root={root}", f"data.rationales={file}"]
    given += ["data.readers={mine: {splits: train}, other: {splits: train}}"]
    colours("other", range(12, 15))

    def imitated(*names):
        file.write_text("".join(json.dumps({"key": name, "task": "sod", "rationale": answer}) + "\n" for name in names))
        config = composition.compose(given)
        return build.make_dataset(config, "sod", "train", part="sft").keys

    assert imitated("mine/010", "014") == ("mine/010", "other/014")
    sources._draw_all.cache_clear()
    with pytest.raises(UserError, match="'012': several sets have this key: expected 'mine/012', with the set"):
        imitated("012")


def test_photos_of_another_tasks_held_out_samples_are_trained_on_by_no_task(colours):
    root = colours("a", range(20))
    colours("b", range(15, 35), group="things")
    config = composition.compose(
        [
            *("env=saliency", "algo=random", "data.sod=a", "data.sis=scenes", "data.cosod=b", f"data.root={root}"),
            "data.readers={a: {splits: train}, b: {splits: test}, scenes: {size: 4}}",
        ]
    )
    config["env"]["gym_ids"].pop("sis"), config["env"]["gym_ids"].pop("cosod")
    (drawn,) = sources.draw_all(config).values()
    assert [drawn.dataset.keys[index] for index in drawn.parts.rl] == [f"a/{number:03d}" for number in range(15)]
    assert {(one.key, one.held_out, one.why) for one in drawn.parts.shared} == {
        (f"a/{number:03d}", f"cosod: b/things/{(number - 15) // 4}", "pixels") for number in range(15, 20)
    }


def test_the_parts_are_listed_in_the_run_folder_and_their_hash_in_the_results(tmp_path):
    config = composition.compose([*SCENES, *SIZES])
    told = sources.remember(config, tmp_path)
    written = json.loads((tmp_path / "parts.json").read_text())
    assert written["seed"] == 0 and set(written["tasks"]) == {"sod", "sis", "cosod"}
    assert told["file"] == "parts.json" and len(told["sha256"]) == 64
    assert told["sizes"]["sod"] == {"rl": 4, "sft": 5, "isr": 3, "shared": 0}
    assert sources.remember(config, tmp_path) == told
    other = composition.compose([*SCENES, *SIZES, "data.parts.rl=3"])
    with pytest.raises(UserError, match=r"parts\.json: its parts are not those of the data now"):
        sources.remember(other, tmp_path)
    (tmp_path / "config.yaml").touch()
    run_folder.discard_unstarted(tmp_path)  # as of a run that failed before it began: another may have other parts
    assert not tmp_path.exists()
    (line, *_) = sources.told(told["sizes"])
    assert line == "sod: training samples: 4 rl, 5 sft, 3 isr (listed in parts.json)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SCENES, *SIZES, "train_samples=3"], r"train_samples=3: data\.parts chooses the samples"),
        ([*SCENES, "data.parts.rl=-1"], r"data\.parts\.rl=-1: expected a whole number, at least 0, or null"),
        ([*SCENES, "data.parts.sft.sod=13"], r"data\.parts\.sft\.sod=13: data\.sod=scenes has 12 training samples"),
        ([*SCENES, "data.parts.seed=null"], r"data\.parts\.seed=None: expected a whole number"),
        (["env=saliency", "data.sod=scenes"], r"data\.sis is not set: expected a set"),
        (["env=point_prompt", "data.sod=scenes"], "env=point_prompt data=tasks: is for sod, sis, cosod"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(arguments, words):
    config = composition.compose(arguments)
    with pytest.raises(UserError, match=words) as caught:
        build.make_train_envs(config, build.make_parts(config))
    assert "\n" not in str(caught.value)


def test_a_set_that_cannot_serve_a_task_is_told_what_to_do(photo_folder, colours):
    config = composition.compose(["env=saliency", "data=folder", f"data.root={photo_folder}"])
    for task in ("sis", "cosod"):
        with pytest.raises(
            UserError, match="expected a set that serves the task, or one for each task, as data.sod=duts"
        ):
            build.make_dataset(config, task, "train")
    config = composition.compose(["env=cosod", "data=ecssd", f"data.root={photo_folder}"])
    with pytest.raises(UserError, match="data=ecssd: holds single photos, and cosod shows groups"):
        build.make_dataset(config, "cosod", "train")


def test_a_set_to_train_on_names_the_ways_to_do_without_held_out_samples(colours):
    root = colours("CoCoSeg", range(6), folders=("img", "gt"), group="cat")
    colours("CoCA", range(4, 12), folders=("image", "binary"), group="dog")
    alone = composition.compose(["env=cosod", "data=cocoseg", f"data.root={root}/CoCoSeg"])
    words = r"to train without held-out samples: evaluation\.samples=0; to evaluate on other sets: data\.cosod=…"
    with pytest.raises(UserError, match=words):
        build.make_held_out_dataset(alone, "cosod")
    assert len(build.make_dataset(alone, "cosod", "train")) == 2
    config = composition.compose(
        ["env=cosod", "data.cosod=cocoseg", "data.held_out.cosod=coca", f"data.root={root}", "env.group_size=2"]
    )
    assert build.make_dataset(config, "cosod", "train").keys == (
        "cocoseg/cat/0",
        "cocoseg/cat/1",
    )  # 2 has photos of CoCA
    held_out = build.make_held_out_dataset(config, "cosod")
    assert held_out.keys[0] == "coca/dog/0" and {len(held_out[index].images) for index in range(4)} == {2}


def test_a_held_out_group_is_shown_whole_up_to_a_size(colours):
    root = colours("CoCoSeg", range(100, 106), folders=("img", "gt"), group="cat")
    colours("CoCA", range(7), folders=("image", "binary"), group="dog")
    colours("CoCA", range(20, 23), folders=("image", "binary"), group="owl")
    given = ["env=cosod", "data.cosod=cocoseg", "data.held_out.cosod=coca", f"data.root={root}", "env.group_size=2"]
    config = composition.compose([*given, "env.held_out_group_size=5", "env.image_size=16", "env.num_envs=3"])
    parts = build.make_parts(config)
    env = build.make_held_out_env(config, "cosod", parts)
    observations, _ = env.reset(options={"index": [0, 1, 2]})
    assert keys([env]) == [("coca/dog/0", "coca/dog/1", "coca/owl/0")]
    assert [len(images) for images in observations["images"]] == [5, 2, 3]  # without repeats
    assert env.observation_space.contains(observations)
    (train,) = build.make_train_envs(config, parts).values()
    assert train.reset()[0]["images"].shape == (3, 2, 16, 16, 3)
    with pytest.raises(UserError, match=r"env\.held_out_group_size=0: expected a whole number, at least 1"):
        build.check_numbers(composition.compose([*given, "env.held_out_group_size=0"]))


def test_scenes_as_a_set_are_the_scenes():
    config = composition.compose([*SCENES, "algo=random"])
    found = build.make_dataset(config, "sis", "train")
    scenes = Scenes("sis", size=12, image_size=32)
    assert found.keys == tuple(f"scenes/{key}" for key in scenes.keys)
    np.testing.assert_array_equal(found[3].images[0], scenes[3].images[0])
