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


def test_patches_without_truth_count_in_no_term_of_the_loss():
    logits = torch.tensor([[[0.5, -1.0], [2.0, 3.0]]], requires_grad=True)
    truth = torch.tensor([[[1.0, 0.0], [math.nan, math.nan]]])
    found = recalibration_loss(logits, truth)
    torch.testing.assert_close(found, recalibration_loss(logits[:, :1], truth[:, :1]))
    found.backward()
    assert logits.grad[0, 1].tolist() == [0, 0] and logits.grad[0, 0].abs().min() > 0
    assert recalibration_loss(logits, torch.full_like(truth, math.nan)).item() == 0


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


class Moved:
    """Input on another device, which notes where it is asked for."""

    def __init__(self, value):
        self.value, self.places = value, []

    def to(self, device):
        """Note the device."""
        self.places.append(device)
        return self.value


@pytest.mark.parametrize("branch", ["implicit", "explicit"])
def test_inputs_move_to_the_device_of_the_weights(branch):
    module = SemanticRecalibration(branch, 4, channels=8)
    inputs = {name: Moved(torch.rand(2, 4, 5, 5)) for name in ("state", "semantic")}
    module.probabilities(inputs)
    truth = Moved(torch.ones(2, 5, 5))
    module.learn(inputs, truth)
    used = [*([inputs["semantic"]] if branch == "explicit" else []), inputs["state"], truth]
    assert all(one.places and set(one.places) == {module.device} for one in used)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("branch", ["implicit", "explicit"])
def test_weights_optimizer_and_checkpoints_cross_devices(branch):
    states, truth = {"state": torch.rand(2, 4, 5, 5), "semantic": torch.rand(2, 4, 5, 5)}, torch.ones(2, 5, 5)
    gpu, cpu = (SemanticRecalibration(branch, 4, channels=8, device=device) for device in ("cuda", "cpu"))
    for module, other in ((gpu, cpu), (cpu, gpu)):
        module.learn(states, truth)
        moments = module.optimizer.state[next(module.parameters())]["exp_avg"]
        assert moments.device == module.device
        other.load_state_dict(module.state_dict())
        other.optimizer.load_state_dict(module.optimizer.state_dict())
        assert all(value.device == other.device for value in other.parameters())
        torch.testing.assert_close(other.learn(states, truth), module.learn(states, truth), atol=1e-4, rtol=1e-4)


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
