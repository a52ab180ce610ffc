"""The table of measures against what evaluations report."""

from __future__ import annotations

import pytest

from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluation, measures
from maskgym.experiments.wiring import build, composition

FEW = ("algo=random", "evaluation.samples=2", "env.num_envs=2", "data.size=4")


@pytest.mark.parametrize(
    "arguments",
    [
        ("env=sis",),
        ("env=sod", "reward=weighted", "reward.terms={iou: 0.5, one_minus_mae: 0.5}"),
        ("env=cosod", "env.group_size=2"),
        ("env=point_prompt", "env.horizon=5", "env.label_source=positive"),
        ("env=user_need_point", "env.horizon=1", "env.label_source=positive"),
        ("env=user_need", "reward=iou"),
        ("env=ranking",),
    ],
)
def test_what_a_run_is_said_to_report_it_reports(arguments, tmp_path):
    config = composition.compose([*arguments, *FEW])
    built = build.untrained(config, tmp_path)
    found = {task: evaluation.evaluate(built.agent, env, [0, 1]) for task, env in built.envs.items()}
    told = measures.offered(config)
    undefined = {"sor", "sor_mean", "sa_sor"} if "env=ranking" in arguments else {"n_acc", "t_acc"}  # on these samples
    assert set(told) - undefined == set(evaluation.scores(found)) - undefined
    assert measures.main_of(config["env"]["name"], evaluation.scores(found))[0] == "reward"
    measures.check_offered(config, ["reward"], "here")
    with pytest.raises(UserError, match=f"here: measure 'iouu': expected one of {told[0]}, "):
        measures.check_offered(config, ["reward", "iouu"], "here")


def test_several_tasks_have_prefixes():
    config = composition.compose(["env=saliency"])
    assert {"sis/iasm", "sod/s_measure", "cosod/reward"} <= set(measures.offered(config))
    assert not {"iasm", "sod/iasm"} & set(measures.offered(config))
    assert measures.main_of("saliency", ["sis/iasm", "sis/mae", "sod/reward", "sod/iasm"]) == ["sis/iasm", "sod/reward"]


def test_average_precision_of_the_older_rule_is_told():
    now, older = ({"after": {"sis/ap50": 0.5}, **rule} for rule in ({"average_precision": "equal scores jointly"}, {}))
    none = {"after": {"iasm": 0.5}}
    assert measures.older_notes([now, none]) == measures.older_notes([none]) == []
    (line,) = measures.older_notes([now, older, none])
    assert "AP50 and AP70 of 1 of 2 runs are of the older rule" in line
    assert "of the runs are" in measures.older_notes([older, older])[0]
