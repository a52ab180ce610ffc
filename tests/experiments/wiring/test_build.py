"""Building the parts of a run: whose rationales are imitated, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskgym.data import Dataset, Sample
from maskgym.data.sample import Subset
from maskgym.data.scenes import Scenes
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
from maskgym.experiments.reproduce.miniature_sets import Sizes, write_sets
from maskgym.experiments.wiring import build, composition
from maskgym.policies.clicks.recalibration import SemanticRecalibration


class Sparse(Subset):
    """Scenes of which a rationale is known only where ``known`` says so; the first sample is no example for all."""

    def __init__(self, size: int, known: set[int]) -> None:
        super().__init__(Scenes("sis"), range(size))
        self.known = known

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample if index in self.known else replace(sample, rationale=None)

    with_rationale = Dataset.with_rationale


def supervised(size: int, known: set[int], *arguments: str):
    """Return what supervised steps would imitate, and the line of the results about it."""
    config = composition.compose(["env=sis", *arguments])
    envs = {"sis": ReasoningVectorEnv(1, "sis", Sparse(size, known))}
    found = build.make_supervised(config, envs, build.make_parts(config))
    return found, build.describe_rationales(config, envs if found is None else dict(zip(envs, found, strict=True)))


@pytest.mark.parametrize("algo", ["cgpo", "sft"])
def test_rationales_are_the_datas_own(algo):
    for choice in ("auto", "own"):
        found, told = supervised(3, {0, 1, 2}, f"algo={algo}", f"algo.rationales={choice}")
        assert found is None
        assert told == {"sis": {"data": "scenes", "file": None, "used": 3, "skipped": 0}}


@pytest.mark.parametrize("algo", ["cgpo", "sft"])
def test_samples_without_one_are_skipped_and_counted_or_refused(algo, capsys):
    words = "2 of the 4 training samples of data=scenes have no rationale to imitate"
    found, told = supervised(4, {0, 3}, f"algo={algo}")
    assert found is None and told["sis"] == {"data": "scenes", "file": None, "used": 2, "skipped": 2}
    assert f"sis: {words}: supervised steps skip them" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"algo.rationales=own: sis: {words}: expected data.rationales=FILE"):
        supervised(4, {0, 3}, f"algo={algo}", "algo.rationales=own")


@pytest.mark.parametrize("algo", ["cgpo", "sft"])
def test_those_of_scenes_are_imitated_by_name_only(algo, capsys):
    with pytest.raises(UserError, match="algo.rationales=auto: sis: 4 of the 4 .*algo.rationales=scenes") as caught:
        supervised(4, set(), f"algo={algo}")
    assert "\n" not in str(caught.value)
    found, told = supervised(4, set(), f"algo={algo}", "algo.rationales=scenes", "data.image_size=32")
    assert [unwrap(env, SampleVectorEnv).dataset.split for env in found] == ["train"]
    assert told["sis"] == {"data": "scenes", "file": None, "used": 2000, "skipped": 0}
    assert "rationales to imitate: those of scenes" in capsys.readouterr().out


@pytest.mark.parametrize("without", ["algo.isr_sft_steps=0", "algo.updates=0", "algo=grpo"])
def test_a_run_without_supervised_steps_needs_no_rationale(without):
    assert supervised(4, set(), without) == (None, {})


@pytest.mark.parametrize("segmenter", ["sam", "sam_hf", "sam2"])
@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["env=point_prompt", "env.text=category"], "env.attention.name"),
        (["env=user_need_point"], "env.encoder"),
        (["env=user_need_point", "env.encoder=clip_surgery", "env.text=need"], "env.attention.name"),
    ],
)
def test_the_bundled_clip_is_refused_beside_a_published_sam(segmenter, arguments, key):
    told = f"{key}=clip_tiny: the bundled CLIP knows the words of synthetic scenes alone, segmenter={segmenter} is for"
    with pytest.raises(UserError, match=told):
        build.make_parts(composition.compose([*arguments, f"segmenter={segmenter}"]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["env=point_prompt", "segmenter=sam"],  # no text, so no CLIP
        ["env=point_prompt", "env.text=category", "env.attention.name=clip_surgery", "segmenter=sam"],
        ["env=user_need_point", "env.need=false", "segmenter=sam"],  # no need is encoded
        ["env=user_need_point", "env.text=need"],  # both are bundled
    ],
)
def test_other_clips_and_sams_go_together(arguments):
    build._check_bundled(composition.compose(arguments))


def test_validation_stands_in_for_a_test_split_that_is_empty_not_for_one_that_is_broken(photo_folder, capsys):
    config = composition.compose(
        ["env=point_prompt", "data=folder", f"data.root={photo_folder}", "data.splits=validation"]
    )
    assert build.make_held_out_dataset(config, "point_prompt").split == "validation"
    assert "held-out samples are those of validation" in capsys.readouterr().err
    config["data"]["splits"] = "nonsense"
    with pytest.raises(UserError, match="data.splits=nonsense"):
        build.make_held_out_dataset(config, "point_prompt")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("registered", "expected"),
    [
        (
            {"entry_point": "gymnasium.envs.classic_control:CartPoleEnv"},
            "is registered without a vector_entry_point: exp",
        ),
        (
            {"vector_entry_point": "gymnasium.envs.classic_control:CartPoleEnv"},
            "its vector_entry_point is <class .*: exp",
        ),
        ({"vector_entry_point": "no_such_module:Env"}, "ModuleNotFoundError: No module named 'no_such_module'"),
        (None, "NameNotFound: Environment `"),
    ],
)
def test_an_id_without_a_vector_environment_of_ours_is_named(registered, expected, request):
    import gymnasium as gym

    gym_id = f"maskgym/Own{request.node.callspec.indices['registered']}-v0"
    if registered:
        gym.register(gym_id, **registered)
        request.addfinalizer(lambda: gym.registry.pop(gym_id))
    config = composition.compose(["env=sod"])
    config["env"]["gym_ids"] = {"sod": gym_id}
    with pytest.raises(UserError, match=f"^env.gym_ids: {gym_id}: {expected}"):
        build.make_env(config, "sod", "train", {})


def test_words_that_a_bundled_encoder_does_not_know_are_told(tmp_path, capsys):
    env = UserNeedVectorEnv(1, dataset=Scenes("need", "train", size=3))
    samples = [
        replace(env.dataset[index], need=need) for index, need in enumerate(["find the zebra", "a red star", ""])
    ]
    env.dataset = Fixed(samples)
    given = ["env=user_need", "algo=usersal", "data=coco", "data.root=x"]
    for more, told in (
        ([], "policy.encoder.name=bag_of_words: knows the words of synthetic scenes alone: 2 of 5 words"),
        (["policy.encoder.name=clip_tiny"], "policy.encoder.name=clip_tiny: knows"),
        (["policy.encoder.name=clip"], ""),
        (["+policy.encoder.checkpoint=DIR"], ""),
        (["env.need=false"], ""),
    ):
        build._tell_unknown_words(composition.compose([*given, *more]), env)
        error = capsys.readouterr().err
        assert told in error and bool(told) == bool(error) == ("such as the, zebra" in error)
    build._tell_unknown_words(composition.compose(given[:2]), env)  # scenes
    assert capsys.readouterr().err == ""


class Fixed(Dataset):
    """A list of samples."""

    task, split = "sod", "train"

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_recalibration_module_is_on_the_segmenters_device(monkeypatch, device):
    placed = []
    monkeypatch.setattr(SemanticRecalibration, "to", lambda module, where: placed.append(where))
    build.make_parts(composition.compose(["env=point_prompt", "algo=ppo", f"segmenter.device={device}"]))
    assert placed == [device]


def composed(*arguments: str):
    return composition.compose(["env=user_need", "algo=usersal", "data.size=20", "algo.batch_size=8", *arguments])


def test_epochs_give_the_number_of_updates():
    config = composed("algo.epochs=3")
    build.set_updates(config)
    assert config["algo"]["updates"] == 8  # 60 samples in batches of 8
    config = composed("algo.epochs=3", "train_samples=5")
    build.set_updates(config)
    assert config["algo"]["updates"] == 2
    config = composed("algo.updates=7")
    build.set_updates(config)
    assert config["algo"]["updates"] == 7
    ppo = composition.compose(["env=point_prompt", "algo=ppo", "algo.epochs=3", "algo.updates=7"])  # over a rollout
    build.set_updates(ppo)
    assert ppo["algo"]["updates"] == 7


def test_a_length_in_epochs_and_in_updates_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"algo\.epochs and algo\.updates both give the length"):
        composed("algo.epochs=3", "algo.updates=7")
    config = composed("algo.epochs=0")
    with pytest.raises(UserError, match="algo.epochs=0: expected at least 1"):
        build.set_updates(config)
    with pytest.raises(UserError, match=r"algo\.epochs=1\.5: expected a whole number"):
        composed("algo.epochs=1.5")
    monkeypatch.setenv("MASKGYM_UPDATES", "2")  # a trial of a command is short
    assert composed("algo.epochs=3")["algo"]["epochs"] is None and composed("algo.epochs=3")["algo"]["updates"] == 2


def test_processes_that_load_are_for_agents_that_use_them(tmp_path):
    config = composed("+data.workers=2", "algo.updates=0")
    parts = build.make_parts(config)
    envs = build.make_train_envs(config, parts)
    assert build.make_agent(config, tmp_path, envs["user_need"], parts).workers == 2
    with pytest.raises(UserError, match=r"data\.workers=-1: expected a whole number, at least 0"):
        build.check(composed("+data.workers=-1"))
    with pytest.raises(UserError, match=r"data\.workers=2: algo=random loads its samples itself: expected 0"):
        build.check(composition.compose(["env=user_need", "algo=random", "+data.workers=2"]))


def test_a_frozen_backbone_of_random_weights_is_told(tmp_path, capsys):
    config = composed("+policy.backbone.pretrained=false", "algo.updates=0")
    parts = build.make_parts(config)
    env = build.make_train_envs(config, parts)["user_need"]
    build.make_agent(config, tmp_path, env, parts)
    assert (
        "policy.backbone.name=vst_tiny: the whole network has random weights, and is frozen" in capsys.readouterr().err
    )
    build.make_agent(composed("algo.updates=0"), tmp_path, env, parts)
    assert capsys.readouterr().err == ""


class Asked:
    """Attends nowhere, and notes the texts that it is asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def attend(self, images, texts, size) -> np.ndarray:
        self.texts += texts
        return np.zeros((len(images), *size), np.float32)


@pytest.mark.parametrize(("name", "word"), [("sbu", "shadow"), ("msd", "glass"), ("cuhk_blur", "blur"), ("duts", None)])
def test_a_published_set_is_asked_for_what_it_shows(tmp_path, name, word):
    (root,) = write_sets(tmp_path, [name], Sizes(train=3, validation=2, test=3), writers=LAYOUTS)
    given = ["env=point_prompt", f"data={name}", f"data.root={root}", "env.text=category", "env.num_envs=1"]
    config, asked = composition.compose(given), Asked()
    env = build.make_held_out_env(config, "point_prompt", build.make_parts(config) | {"attention": asked})
    env.reset(options={"index": np.array([0])})
    assert set(asked.texts) == {word or "salient object"}
