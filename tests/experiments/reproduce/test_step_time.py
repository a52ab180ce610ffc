"""The computed seconds of a step: the goals at the paper's shape, and what each part depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskgym.experiments.planning.devices import DEVICES
from maskgym.experiments.planning.models import published
from maskgym.experiments.planning.work import Work
from maskgym.experiments.reproduce.step_time import PAPER, estimate, table, unified

MODEL = published("7b")


@pytest.mark.parametrize("device", ["a100", "h100", "h200"])
@pytest.mark.parametrize("task", PAPER)
def test_the_segmenter_takes_little_of_a_step_at_the_papers_shape(task, device):
    found = estimate(PAPER[task], DEVICES[device], MODEL)
    assert found.share(warm=False) <= 0.15 and found.share(warm=True) <= 0.03
    assert unified(DEVICES[device], MODEL) <= 0.15


def test_computed_steps_stay_below_the_measured_one():
    measured = 50.6  # Table 2: CGPO, seconds of a step on one H20
    assert all(estimate(replace(work, answers=3), DEVICES["h20"], MODEL).training < measured for work in PAPER.values())


def test_each_part_grows_with_what_it_depends_on():
    def step(device="a100", model=MODEL, **sizes):
        return estimate(Work(4, **sizes), DEVICES[device], model)

    plain = step()
    assert step(answer=800).generation > 1.9 * plain.generation
    assert step(prompts=1).cold < plain.cold / 3
    assert step(phrases=20).warm > 5 * plain.warm
    assert step(image=(896, 896)).training > plain.training
    assert step("h100").cold < plain.cold
    assert step(model=published("3b")).training < plain.training / 2
    assert estimate(Work(8), DEVICES["a100"], MODEL).training == pytest.approx(2 * plain.training)
    assert table().count("\n") == 1 + 6 * 4
