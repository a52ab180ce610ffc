"""Building the parts of a run: whose rationales are imitated, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskgym.data import Dataset, Sample
from maskgym.data.sample import Subset
from maskgym.data.scenes import Scenes
from maskgym.envs.base import SampleVectorEnv, unwrap
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
