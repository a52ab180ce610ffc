"""Building the parts of a run: whose rationales are imitated, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskgym.data import Dataset, Sample
from maskgym.data.sample import Subset
from maskgym.data.scenes import Scenes
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.wiring import build, composition


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
