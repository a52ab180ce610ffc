"""What the recalibration module learns of a patch: the ground truth under its click, or the patch's share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskgym.agents.clicks.acting import TRUTHS, RecalibrationTrainer, centre_truth, patch_shares
from maskgym.data.scenes import Scenes
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks import recalibration
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny


def test_a_perfect_module_labels_every_click_as_the_ground_truth_does():
    """The share of a thin shadow's patch is often below a half where its centre is foreground, and the reverse."""
    sam, size = sam_tiny(device="cpu"), 4
    data = Scenes("shadow", "train", size=size)
    module = SemanticRecalibration("implicit", 128, channels=8, truth="centre")
    env = PointPromptVectorEnv(size, data, segmenter=sam, label_source="srm", recalibration=module)
    oracle = PointPromptVectorEnv(size, data, segmenter=sam, label_source="oracle", horizon=64)
    trainer = RecalibrationTrainer(env)
    order = {"index": list(range(size))}
    env.reset(seed=0, options=order)
    trainer.begin([data[index].masks for index in range(size)])
    oracle.reset(seed=0, options=order)
    for patch in range(env.grid**2 - 1):  # the last click would end the episode
        labels = oracle.step(np.full(size, patch))[4]["label"]
        assert trainer.truth.flatten(1)[:, patch].tolist() == labels.tolist()
    shares = torch.stack([patch_shares(data[index].union(), env.grid) for index in range(size)])
    assert ((shares > 0.5).float() != trainer.truth).any()


def test_truths_of_a_mask_of_any_size():
    mask = np.zeros((6, 9), bool)
    mask[:3, :4] = True
    assert centre_truth(mask, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]  # clicks at x 1, 4, 7 and y 1, 3, 5
    assert patch_shares(mask, 3).tolist() == [[1, pytest.approx(1 / 3), 0], [0.5, pytest.approx(1 / 6), 0], [0, 0, 0]]


@pytest.mark.parametrize("truth", TRUTHS)
def test_void_is_neither_foreground_nor_background(truth):
    class WithVoid(Scenes):
        def __getitem__(self, index):
            void = np.zeros((128, 128), bool)
            void[:, :66] = True
            return replace(super().__getitem__(index), void=(void,))

    module = SemanticRecalibration("implicit", 128, channels=8, truth=truth)
    shown = WithVoid("sod", "train", size=2)
    env = PointPromptVectorEnv(2, shown, segmenter=sam_tiny(device="cpu"), label_source="srm", recalibration=module)
    trainer = RecalibrationTrainer(env)
    env.reset(seed=0, options={"index": [0, 1]})
    (loss,) = trainer.begin([shown[index].masks for index in range(2)])
    assert np.isfinite(loss)
    unknown = trainer.truth.isnan()
    assert unknown[:, :, :4].all() and not unknown[:, :, 4:].any()  # of 16 pixels each; the fifth has two of void


def test_the_choice_is_a_setting_of_the_module():
    assert tuple(TRUTHS) == recalibration.TRUTHS
    with pytest.raises(UserError, match="truth='mean': expected one of centre, share"):
        SemanticRecalibration("implicit", 4, channels=8, truth="mean")
