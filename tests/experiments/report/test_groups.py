"""Groups of runs that differ in their seed only: how they are made, scored and concluded on."""

from __future__ import annotations

import pytest

from maskgym.experiments.report import run_data
from maskgym.experiments.report.groups import Group, conclusions, differing, group_runs, settings


def groups_of(folders):
    return group_runs([run_data.read(folder) for folder in folders])


def test_runs_are_grouped_by_what_differs_except_for_the_seed(several):
    groups = groups_of(several)
    assert [(group.name, [run.results["seed"] for run in group.runs]) for group in groups] == [
        ("cgpo", [0, 1, 2]),
        ("grpo", [0]),
    ]
    assert "algo.name" in (keys := differing([group.settings for group in groups]))
    assert not {"seed", "out", "env.name"} & set(keys)
    assert settings(groups)[-1] == ["seeds", "0, 1, 2", "0"]
    first, second = (run_data.read(folder) for folder in several[:2])
    second.config["algo"] = dict(reversed(second.config["algo"].items()))  # an older version wrote another order
    assert len(group_runs([first, second])) == 1


def test_groups_of_one_algorithm_are_named_by_their_settings(make_run, tmp_path):
    rates = [
        make_run(
            tmp_path / rate, ("env=sis", "algo=cgpo", f"algo.learning_rate={rate}", f"evaluation.pictures={count}")
        )
        for count, rate in enumerate(("1e-4", "1e-5"))
    ]
    groups = groups_of(rates)
    assert [group.name for group in groups] == ["cgpo, learning_rate=0.0001", "cgpo, learning_rate=1e-05"]
    assert settings(groups) == [["algo.learning_rate", "0.0001", "1e-05"], ["seeds", "0", "0"]]


def test_intervals_are_over_three_seeds_otherwise_over_samples(several):
    three, one = groups_of(several)
    assert three.values("iasm", "after") == pytest.approx([0.75, 0.755, 0.76]) and three.over_seeds
    assert three.values("iasm", "gain") == pytest.approx([0.5, 0.505, 0.51])
    assert one.values("iasm", "gain") == pytest.approx([0.1, 0.1]) and not one.over_seeds
    two = Group("two", {}, three.runs[:2])
    assert two.values("iasm", "after") == pytest.approx([0.705, 0.8])  # a sample's mean over both seeds
    assert one.values("ap50", "after") is None and one.score("ap50", "gain").value is None


@pytest.mark.parametrize(
    ("name", "verdict"), [("iasm", "bad"), ("noc85", "good"), ("sod/mae", "good"), ("characters", "")]
)
def test_a_loss_is_bad_where_higher_is_better(several, name, verdict):
    (group,) = groups_of(several[:1])
    last = name.rpartition("/")[2]
    for row, low in zip(group.runs[0].samples, (1.0, 2.0), strict=True):
        row["before"][last], row["after"][last] = 5.0, low
    for when, value in (("before", 5.0), ("after", 1.5)):
        group.runs[0].results[when][name] = value
    found = group.score(name, "gain")
    assert (found.value, found.verdict) == (-3.5, verdict) and found.interval[1] < 0
    assert group.score(name, "after").verdict == ""


def test_the_conclusion_says_no_more_than_the_intervals_allow(make_run, several, tmp_path):
    def told(*folders):
        return conclusions(groups_of(folders))

    assert told(*several)[1] == (
        "iasm: cgpo ends best, at 0.755 [0.750, 0.760], ahead of grpo, at 0.350 [0.300, 0.400]. "
        "The intervals, over seeds or samples, do not overlap; other seeds may end otherwise."
    )
    near = make_run(tmp_path / "near", ("env=sis", "algo=sft"), after=(0.35, 0.4))
    assert "over samples, overlap: the order may be chance" in told(several[3], near)[0]
    close = [
        make_run(tmp_path / f"close{seed}", ("env=sis", "algo=dapo"), seed=seed, after=(0.7 + seed / 100, 0.806))
        for seed in range(3)
    ]
    assert (
        "over seeds, overlap: the order may be chance. 0.015 is the smallest difference that these seeds would show in "
        "four of five cases (t-test, 5 %); the one that is seen takes 45 seeds of each."
    ) in told(*several[:3], *close)[1]
    same = make_run(tmp_path / "same", ("env=sis", "algo=rloo"), after=(0.3, 0.4))
    assert "end the same, at 0.350" in told(several[3], same)[0]
    assert "there is nothing to compare" in told(several[0])[0]
    asked = ("env=sis", "algo=chat_model", "algo.model=m", "env.instruction=paper")
    served = make_run(tmp_path / "served", asked, after=(0.1, 0.2))
    words = "(asked by other words: grpo by maskgym, chat_model by paper with a hint at the form)"
    assert words in told(several[3], served)[0] and "asked by" not in told(several[3], near)[0]
    alike = make_run(tmp_path / "alike", (*asked, "env.hint=false"), after=(0.3, 0.3))
    other = make_run(tmp_path / "other_algo", ("env=sis", "algo=dapo", "env.instruction=paper"))
    assert "asked by" not in told(alike, other)[0]
