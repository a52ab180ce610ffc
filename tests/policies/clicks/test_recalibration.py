"""The semantic recalibration module: Eq. 13 by hand, and the inputs of each branch."""

from __future__ import annotations

import math

import pytest
import torch

from maskgym.errors import UserError
from maskgym.policies.clicks.recalibration import SemanticRecalibration, recalibration_loss


def test_the_loss_is_dice_plus_cross_entropy():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    truth = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    dice = 1 - (2 * 0.5 + 1) / (2 + 1 + 1)
    assert recalibration_loss(logits, truth).item() == pytest.approx(dice + math.log(2))
    assert recalibration_loss(40 * (2 * truth - 1), truth).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("branch", "updates"), [("implicit", 1), ("explicit", 5)])
def test_each_branch_learns_what_its_states_show(branch, updates):
    generator = torch.Generator().manual_seed(0)
    truth = (torch.rand(8, 5, 5, generator=generator) > 0.6).float()
    hidden = torch.zeros(8, 4, 5, 5)
    shown = hidden + truth[:, None]
    states = {"state": shown if branch == "implicit" else hidden, "semantic": shown, "mask": truth[:, None] * 0}
    module = SemanticRecalibration(branch, 4, channels=16, learning_rate=1e-2)
    assert module.updates == updates
    first = module.learn(states, truth)
    for _ in range(60):
        last = module.learn(states, truth)
    assert last < 0.3 * first
    probabilities = module.probabilities(states)
    assert probabilities.shape == (8, 5, 5) and ((probabilities > 0.5) == truth.bool()).float().mean() > 0.95


def test_the_implicit_branch_reads_no_text():
    states = {"state": torch.randn(2, 4, 5, 5), "semantic": torch.randn(2, 4, 5, 5)}
    module = SemanticRecalibration("implicit", 4, channels=8)
    torch.testing.assert_close(module(states), module({"state": states["state"]}))


def test_its_weights_come_from_its_seed_alone():
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    first = SemanticRecalibration("explicit", 4, channels=8)
    assert torch.rand(1) == before
    second = SemanticRecalibration("explicit", 4, channels=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "expected"), [(("x", 4), "branch='x': expected one of"), (("implicit", 4, 12), "channels=12")]
)
def test_wrong_arguments(arguments, expected):
    with pytest.raises(UserError, match=expected):
        SemanticRecalibration(*arguments)
