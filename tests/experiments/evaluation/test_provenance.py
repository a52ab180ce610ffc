"""What results are of: each part changes its fingerprint, and results that differ in one are told apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from maskgym import manifest
from maskgym.data import Subset, few_shot
from maskgym.data.sample import Dataset, Sample
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Provenance, Result
from maskgym.experiments.wiring import composition

SCENES = {"name": "scenes"}


class Listed(Dataset):
    """Samples of a list, whose keys are known."""

    task, split = "sod", "test"

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.keys = tuple(sample.key for sample in samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class Unlisted(Scenes):
    """Scenes that are counted when they are read, and whose keys are not known without reading."""

    keys = Dataset.keys
    read = 0

    def __getitem__(self, index: int) -> Sample:
        Unlisted.read += 1
        return super().__getitem__(index)


def fingerprint(dataset: Dataset, indices: list[int] | None = None) -> str:
    return provenance.samples(SCENES, dataset, indices)["fingerprint"]


def test_a_fingerprint_is_of_everything_in_a_sample() -> None:
    whole = Sample(
        key="a",
        images=(np.zeros((4, 6, 3), np.uint8),),
        masks=(np.zeros((1, 4, 6), bool),),
        void=(np.zeros((4, 6), bool),),
        phrases=(("one",),),
        category="car",
        need="find",
        ranks=(np.ones(1),),
        rationale="why",
    )
    image, mask = whole.images[0].copy(), whole.masks[0].copy()
    image[3, 5, 2], mask[0, 0, 0] = 1, True
    others = {"key": "b", "images": (image,), "masks": (mask,), "void": None, "phrases": None, "category": None}
    others |= {"need": "", "ranks": (np.zeros(1),), "rationale": None}
    assert others.keys() == {field.name for field in dataclasses.fields(Sample)}
    made = [dataclasses.replace(whole, **{name: value}) for name, value in others.items()]
    turned = dataclasses.replace(whole, images=(whole.images[0].reshape(6, 4, 3),))
    found = [fingerprint(Listed([one])) for one in (whole, *made, turned)]
    assert len(set(found)) == len(found) and all(len(one) == 16 for one in found)
    assert fingerprint(Listed([dataclasses.replace(whole)])) == found[0]


def test_samples_are_named_by_order_keys_split_and_settings() -> None:
    test = Scenes("sod", "test", size=40)
    named = provenance.samples({"name": "duts", "root": Path("d")}, test, [0, 3])
    assert {**named, "fingerprint": ""} == {
        "name": "duts",
        "root": "d",
        "split": "test",
        "samples": 2,
        "fingerprint": "",
    }
    others = [Scenes("sod", "train", size=40), Scenes("sod", "test", size=41), Scenes("blur", "test", size=40)]
    others += [Scenes("sod", "test", size=40, image_size=64), few_shot(test, 20), few_shot(test, 20, 1)]
    found = [fingerprint(test), fingerprint(test, [0, 3]), fingerprint(test, [3, 0]), *map(fingerprint, others)]
    assert len(set(found)) == len(found)
    assert fingerprint(Subset(test, [0, 3])) == found[1]
    # The key of a sample whose pixels are not looked at.
    samples = [test[index] for index in range(40)]
    renamed = [*samples[:1], dataclasses.replace(samples[1], key="other"), *samples[2:]]
    assert fingerprint(Listed(samples)) != fingerprint(Listed(renamed))


def test_no_data_set_is_read_whole_for_its_keys() -> None:
    Unlisted.read = 0
    fingerprint(Unlisted("sod", "test", size=200))
    fingerprint(few_shot(Unlisted("sod", "test", size=200), 100))
    assert Unlisted.read == 2 * provenance.LOOKED_AT


def test_weights_are_named_by_their_bytes_and_a_manifest_saves_reading_them(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
    first, second = manifest.fingerprint(tmp_path / "a"), manifest.fingerprint(tmp_path / "b")
    assert first == second and len(first) == 16
    (tmp_path / "b" / "model.safetensors").write_bytes(b"2")
    assert manifest.fingerprint(tmp_path / "b") != first
    manifest.write(tmp_path / "a", step=3)
    (tmp_path / "a" / "model.safetensors").unlink()
    assert manifest.fingerprint(tmp_path / "a") == first


def of(held_out: str = "h", train: str = "t", **weights: str) -> Provenance:
    samples = {"name": "duts", "root": None, "samples": 5}
    return {
        "held_out": {"sod": {**samples, "split": "test", "fingerprint": held_out}},
        "train": {"sod": {**samples, "split": "train", "fingerprint": train}},
        "weights": {
            part: {"name": "x", "fingerprint": value, "random": value.startswith("random")}
            for part, value in weights.items()
        },
    }


def result(label: str, found: Provenance | None, *settings: str, seed: int = 0, run: str = "") -> Result:
    return Result(label, seed, composition.compose(["env=user_need", "algo=usersal", *settings]), found, run)


def test_data_and_segmenters_must_always_be_the_same() -> None:
    same = [result("a", of(segmenter="s"), seed=seed) for seed in (0, 1)]
    assert provenance.differences([*same, result("b", of(segmenter="s"))]) == []
    other_data = result("b", of(held_out="g", segmenter="s"), "data.image_size=64")
    assert provenance.differences([*same, other_data]) == [
        "held-out data: not comparable: duts, test, 5 samples (h) in 'a'; duts, test, 5 samples (g) in 'b'"
    ]
    asked = result("b", of(segmenter="r"), "segmenter=sam_tiny")
    assert provenance.differences([*same, asked]) == ["segmenter: not comparable: x (s) in 'a'; x (r) in 'b'"]
    one_seed = [same[0], result("a", of(held_out="g", segmenter="s"), seed=1)]
    assert "(h) in 'a' of seed 0; duts, test, 5 samples (g) in 'a' of seed 1" in provenance.differences(one_seed)[0]
    assert provenance.differences([*same, result("no segmenter", of())]) == []


def test_other_weights_and_training_data_may_differ_where_the_settings_do() -> None:
    one = result("a", of(backbone="vst", encoder="words"))
    asked = [
        result("b", of(backbone="swin", encoder="words"), "policy.tokens=2"),
        result("c", of(train="u", backbone="vst", encoder="words"), "train_samples=5"),
    ]
    assert provenance.differences([one, *asked]) == []
    silently = result("b", of(train="u", backbone="other", encoder="words"))
    assert provenance.differences([one, silently]) == [
        "training data: not comparable: duts, train, 5 samples (t) in 'a'; duts, train, 5 samples (u) in 'b'",
        "backbone: not comparable: x (vst) in 'a'; x (other) in 'b'",
    ]
    drawn = [result("a", of(train=f"t{seed}"), "train_samples=5", seed=seed) for seed in (0, 1)]
    assert provenance.differences(drawn) == []  # every seed draws its own
    random = [result("a", of(backbone=f"random {seed}"), seed=seed) for seed in (0, 1)]
    assert provenance.differences(random) == []


def test_a_policy_is_that_of_its_run() -> None:
    runs = [result("a", of(policy="p"), run="1"), result("b", of(policy="q"), run="2")]
    assert provenance.differences(runs) == []
    again = result("c", of(policy="q"), "algo=random", run="1")
    assert provenance.differences([*runs, again]) == ["trained policy: not comparable: x (p) in 'a'; x (q) in 'c'"]


def test_results_that_do_not_name_what_they_are_of_are_counted() -> None:
    (line,) = provenance.differences([result("a", of()), result("b", None), result("c", None)])
    assert line == "2 of 3 results do not name their data, segmenter and weights"


def test_results_of_other_tasks_are_not_compared() -> None:
    one, other = result("a", of()), result("b", of(held_out="g"), "env.task=need_fine")
    assert provenance.differences_by_task([one, other]) == [] != provenance.differences([one, other])


@pytest.mark.parametrize("place", [("held_out", "sod", "samples"), ("train", "sod"), ("weights", "backbone", "random")])
def test_a_file_that_holds_something_else_is_told(place) -> None:
    assert provenance.read({}) is None
    found = of(backbone="b")
    assert provenance.read({"provenance": found}) == found
    inner: dict = {"provenance": found}
    for name in ("provenance", *place[:-1]):
        inner = inner[name]
    inner[place[-1]] = "x"
    without = of(backbone="b")
    del without["weights"]["backbone"]["fingerprint"]  # which may be null, but not absent
    for wrong in (found, 1, [], {}, of(unknown="b"), without):
        with pytest.raises(UserError, match="provenance: expected held_out, train, weights, as a run writes them"):
            provenance.read({"provenance": wrong})


def test_changes_name_then_and_now() -> None:
    then = of(segmenter="s", backbone="b")
    assert provenance.changes(then, of(segmenter="s", backbone="b")) == []
    assert provenance.changes(then, of(held_out="g", train="u", segmenter="r", backbone="c")) == [
        "held-out data, sod: duts, test, 5 samples (h) then, duts, test, 5 samples (g) now",
        "training data, sod: duts, train, 5 samples (t) then, duts, train, 5 samples (u) now",
        "segmenter: x (s) then, x (r) now",
        "backbone: x (b) then, x (c) now",
    ]
    assert provenance.changes(then, {"held_out": {}, "train": {}, "weights": {}}) == []  # nothing is compared
    on_gpu = of(segmenter="r", backbone="b")
    on_gpu["weights"]["segmenter"]["dtype"] = "bfloat16"
    assert provenance.changes(then, on_gpu) == []


def test_lines_of_several_results_name_each_part_once() -> None:
    found = [("a", of(segmenter="s", policy="p")), ("b", of(held_out="g", segmenter="s", policy="q"))]
    assert provenance.shown_of_several(found) == [
        "a: held-out data: duts, test, 5 samples (h)",
        "segmenter: x (s)",
        "b: held-out data: duts, test, 5 samples (g)",
    ]
    assert "a: trained policy: x (p)" in provenance.shown_of_several(found, policies=True)
    assert provenance.shown(of(backbone="random 1"))[-1] == "backbone: x (random 1, random weights)"


@pytest.mark.parametrize(
    "settings",
    [
        ["env=sis"],
        ["env=point_prompt", "algo=ppo", "env.text=category"],
        ["env=user_need", "algo=usersal"],
        ["env=user_need_point", "algo=ppo"],
    ],
)
def test_names_of_parts_have_a_title(settings, tmp_path) -> None:
    from maskgym.experiments.wiring import build

    config = composition.compose([*settings, "env.num_envs=2"])
    built = build.untrained(config, tmp_path)
    found = provenance.weights(config, built.parts, built.agent, built.envs.values())
    assert found and found.keys() <= provenance.TITLES.keys()
    assert all(one["fingerprint"] is not None and len(one["fingerprint"]) == 16 for one in found.values())
