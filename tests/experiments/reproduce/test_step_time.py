"""The computed seconds of a step: counts against the models themselves, and the goals at the paper's shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from maskgym.experiments.reproduce.miniature_models import POLICIES, policy_config
from maskgym.experiments.reproduce.step_time import (
    DEVICES,
    PAPER,
    Shape,
    estimate,
    language_weights,
    segmenter_flops,
    table,
    unified,
    vision_flops,
)


@pytest.mark.parametrize("size", POLICIES)
def test_counts_are_those_of_the_model(size):
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**policy_config(POLICIES[size])))

    def weights(part):
        return sum(layer.weight.numel() for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv3d))

    assert language_weights(POLICIES[size]) == weights(model.model.language_model) + model.lm_head.weight.numel()
    patches = (448 // 14) ** 2
    visual = model.model.visual
    expected = 2 * patches * (weights(visual) - weights(visual.merger)) + 2 * patches // 4 * weights(visual.merger)
    assert vision_flops(POLICIES[size], 448) == expected


def test_the_segmenters_operations_are_those_published():
    encode, prompt, decode = segmenter_flops()
    assert encode == pytest.approx(2 * 2.973e12, rel=0.01)  # SAM ViT-H: 2,973 billion multiplications with additions
    assert prompt < encode / 40 and decode < prompt / 10


@pytest.mark.parametrize("device", ["a100", "h100", "h200"])
@pytest.mark.parametrize("task", PAPER)
def test_the_segmenter_takes_little_of_a_step_at_the_papers_shape(task, device):
    found = estimate(PAPER[task], DEVICES[device])
    assert found.share(warm=False) <= 0.15 and found.share(warm=True) <= 0.03
    assert unified(DEVICES[device]) <= 0.15


def test_computed_steps_stay_below_the_measured_one():
    measured = 50.6  # Table 2: CGPO, seconds of a step on one H20
    assert all(estimate(replace(shape, answers=3), DEVICES["h20"]).training < measured for shape in PAPER.values())


def test_each_part_grows_with_what_it_depends_on():
    plain = estimate(Shape(4), DEVICES["a100"])
    assert estimate(Shape(4, answer=800), DEVICES["a100"]).generation > 1.9 * plain.generation
    assert estimate(Shape(8), DEVICES["a100"]).training == pytest.approx(2 * plain.training)
    assert estimate(Shape(4, prompts=1), DEVICES["a100"]).cold < plain.cold / 3
    assert estimate(Shape(4, phrases=20), DEVICES["a100"]).warm > 5 * plain.warm
    assert estimate(Shape(4, side=896), DEVICES["a100"]).training > plain.training
    assert estimate(Shape(4), DEVICES["h100"]).cold < plain.cold
    assert estimate(Shape(4), DEVICES["a100"], POLICIES["3b"]).training < plain.training / 2
    assert table().count("\n") == 1 + 6 * 4
