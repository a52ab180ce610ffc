"""What each scale of UserSal+ hears of a need, after a few updates on scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.policies.needs.usersal import UserSalPlus

COUNT, UPDATES = 4, 10


@dataclass
class Heard:
    """Of each scale: relative difference of the adapted features of two needs, gradient norms of the two parts."""

    difference: dict[int, float]
    siamese: dict[int, float]
    adder: dict[int, float]


def train(backbone: SaliencyBackbone, side: int) -> UserSalPlus:
    """Train UserSal+ for some updates; its gradients are those of the last."""
    torch.manual_seed(0)
    policy = UserSalPlus(backbone, policies.make_need_encoder("bag_of_words"), device="cpu", width=16, heads=2)
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 3e-3)
    pixels, targets, needs = batch(side)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        policy.loss(pixels, needs, targets)[0].backward()
        optimizer.step()
    return policy


def batch(side: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return pixels, targets and needs of scenes."""
    samples = [Scenes("need", "train")[index] for index in range(COUNT)]
    pixels = torch.from_numpy(np.stack([sample.images[0] for sample in samples])).permute(0, 3, 1, 2) / 255
    targets = torch.from_numpy(np.stack([sample.union()[None] for sample in samples])).float()
    needs = [sample.need or "" for sample in samples]
    return F.interpolate(pixels, (side, side)), F.interpolate(targets, (side, side)), needs


@pytest.fixture
def hear() -> Callable[[SaliencyBackbone, int], Heard]:
    """Return a function that trains on a backbone, whose images have a side, and measures each scale."""

    def hear(backbone: SaliencyBackbone, side: int) -> Heard:
        policy = train(backbone, side)
        pixels, _, _ = batch(side)
        with torch.no_grad():
            one, other = (policy._run(pixels, [need] * COUNT)[2] for need in ("find a red star", "find a blue ring"))

        def norm(module: torch.nn.Module) -> float:
            return float(torch.stack([p.grad.square().sum() for p in module.parameters() if p.grad is not None]).sum())

        adders = {int(scale): adder for scale, adder in policy.adders.items()}
        return Heard(
            difference={n: float((one[n] - other[n]).norm() / one[n].norm()) for n in adders},
            siamese={n: norm(adder.siamese) ** 0.5 for n, adder in adders.items()},
            adder={n: norm(adder.adder) ** 0.5 for n, adder in adders.items()},
        )

    return hear
