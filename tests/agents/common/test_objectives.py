"""Advantages and the clipped loss, which clicks and masks share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym.agents.common.objectives import clipped_loss, confidence_advantages, group_advantages


def test_a_group_is_compared_with_itself_alone():
    found = group_advantages(np.array([1.0, 3.0, 2.0, 2.0, 10.0, 30.0]), 2)
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]), atol=2e-4, rtol=0)
    three = group_advantages(np.array([0.0, 0.3, 0.9]), 3)
    torch.testing.assert_close(three, torch.tensor([-1.0690, -0.2673, 1.3363]), atol=1e-3, rtol=0)


def test_confidence_is_taken_from_the_return_in_its_range():
    confidence = torch.tensor([0.3, 0.75])
    found = confidence_advantages(np.array([-4.0, 2.0]), (-4.0, 4.0), confidence)
    torch.testing.assert_close(found, torch.tensor([-0.3, 0.0]))
    centred = confidence_advantages(np.array([-4.0, 2.0]), (-4.0, 4.0), confidence, center=True)
    torch.testing.assert_close(centred, torch.tensor([-0.15, 0.15]))


def test_the_ratio_is_clipped_where_it_would_pay():
    old = torch.tensor([0.5, 0.3, 0.2, 0.4]).log()
    new = torch.tensor([0.55, 0.6, 0.1, 0.8]).log().requires_grad_()  # ratios 1.1, 2, 0.5 and 2
    loss, out = clipped_loss(new, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2)
    assert loss.item() == pytest.approx(-(1.1 + 1.2 - 0.8 - 2.0) / 4) and out == pytest.approx(0.75)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([-1.1, 0.0, 0.0, 2.0]) / 4)
