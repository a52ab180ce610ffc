"""Shared parts of the few-shot baselines: frozen and trained weights, the loss and the schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from maskgym.data import Sample, Subset
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.policies.few_shot import BASELINES, MSA, PerSAM, SAMed
from maskgym.policies.few_shot.adapted_sam import to_grid, to_image
from maskgym.policies.few_shot.trained_sam import schedule
from maskgym.segmenters.points.sam import decode_prompts, sam_pixels, sam_tiny


def unprompted(sam, images):
    """Compute the logits of a SAM without a prompt."""
    embeddings = sam.image_encoder(torch.stack([sam_pixels(image, 96) for image in images]))
    return decode_prompts(sam, embeddings, torch.zeros(len(images), 0, embeddings.shape[1]))


# --- what all share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [SAMed, MSA])
def test_at_first_it_is_the_sam_that_was_given(segmenter, samples, baseline, pictures):
    with torch.no_grad():
        expected = unprompted(segmenter.network, pictures)
        found = unprompted(baseline(segmenter).sam, pictures)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("baseline", "added", "also"),
    [
        (SAMed, ("query.lora_", "value.lora_"), ("prompt_encoder.no_mask_embed.weight",)),
        (MSA, ("adapter",), ()),
    ],
)
def test_only_the_intended_weights_train(segmenter, samples, baseline, added, also):
    given = {name: value.clone() for name, value in segmenter.network.state_dict().items()}
    model = baseline(segmenter, steps=3, batch_size=2)
    before = {name: value.clone() for name, value in model.sam.state_dict().items()}
    model.fit(samples)
    changed = {name for name, value in model.sam.state_dict().items() if not torch.equal(value, before[name])}
    of_encoder = {name for name in before if name.startswith("image_encoder") and any(part in name for part in added)}
    assert of_encoder and of_encoder <= changed
    others = {name for name in changed - of_encoder if not name.startswith("mask_decoder.")}
    assert others == set(also)
    assert any(name.startswith("mask_decoder.transformer") for name in changed)
    assert all(torch.equal(value, given[name]) for name, value in segmenter.network.state_dict().items())


@pytest.mark.parametrize("baseline", [SAMed, MSA])
def test_training_lowers_the_loss_and_finds_the_objects(segmenter, samples, baseline, pictures):
    model = baseline(segmenter, steps=40, batch_size=4)
    untrained = np.mean([iou(*pair) for pair in zip(model.predict(pictures), unions(samples), strict=True)])
    losses = model.fit(samples)
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    trained = np.mean([iou(*pair) for pair in zip(model.predict(pictures), unions(samples), strict=True)])
    assert trained > max(0.6, untrained + 0.2)


def unions(samples):
    return [sample.union() for sample in samples]


def test_the_same_seed_gives_the_same_numbers(segmenter, samples):
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    first = SAMed(segmenter, steps=2, batch_size=2).fit(samples)
    assert torch.rand(1) == drawn, "the seed of others was touched"
    assert SAMed(segmenter, steps=2, batch_size=2).fit(samples) == first
    assert SAMed(segmenter, steps=2, batch_size=2, seed=1).fit(samples) != first


@pytest.mark.parametrize(
    ("baseline", "changes"),
    [
        (SAMed, {"rank": 1}),
        (SAMed, {"batch_size": 3}),
        (SAMed, {"learning_rate": 1e-3}),
        (SAMed, {"weight_decay": 0.5}),
        (MSA, {"bottleneck": 8}),
        (MSA, {"weight_decay": 0.5}),
    ],
)
def test_every_setting_matters(segmenter, samples, baseline, changes):
    usual = {"steps": 3, "batch_size": 2}
    assert baseline(segmenter, **usual).fit(samples) != baseline(segmenter, **usual | changes).fit(samples)


@pytest.mark.parametrize("baseline", [SAMed, MSA])
@pytest.mark.parametrize(
    "memory", [{"micro_batch": 2}, {"micro_batch": 1, "checkpointing": True}, {"checkpointing": True}]
)
def test_less_memory_gives_the_same_gradients_to_rounding(segmenter, samples, baseline, memory):
    """Images of different sizes score different numbers of cells, so means of micro-batches would differ."""
    cut = [replace(one, images=(one.images[0][: 128 - 40 * i],), masks=(one.masks[0][:, : 128 - 40 * i],)) for i, one in
           enumerate(samples[:3])]  # fmt: skip
    found = []
    for settings in ({}, memory):
        model = baseline(segmenter, batch_size=3, **settings)
        batch = model._batch(cut, np.random.default_rng(0))
        assert len(set(batch[2].sum((1, 2)).tolist())) > 1
        loss = model._accumulate(*batch)
        gradients = {name: weight.grad for name, weight in model.sam.named_parameters() if weight.grad is not None}
        found.append((loss, gradients))
    (whole, expected), (parts, gradients) = found
    assert parts == pytest.approx(whole, rel=1e-6) and gradients.keys() == expected.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-3, atol=1e-6 + 1e-4 * float(expected[name].abs().max())
        )
    assert any(value.abs().max() > 1e-4 for name, value in expected.items() if name.startswith("image_encoder"))


def test_checkpointing_keeps_less_for_the_backward_pass(segmenter, samples):
    kept = {}
    for checkpointing in (False, True):
        model, sizes = MSA(segmenter, batch_size=2, checkpointing=checkpointing), []

        def keep(value, sizes=sizes):
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model._compute([sample.images[0] for sample in samples[:2]], torch.ones(2, 48, 48))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize("name", BASELINES)
def test_bfloat16_is_the_precision_of_products_and_not_of_weights(samples, pictures, name):
    settings = {} if name == "persam" else {"steps": 3, "batch_size": 2}
    if name == "persam":
        settings = {"refinements": 0}
    masks, losses = [], []
    for dtype in ("float32", "bfloat16"):
        model = BASELINES[name](sam_tiny(device="cpu", dtype=dtype), **settings)
        losses.append(model.fit(samples))
        masks.append(model.predict(pictures))
        assert {weight.dtype for weight in model.sam.parameters()} == {torch.float32}
        assert model._encode(pictures[:1]).dtype == torch.float32
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and (name == "persam" or losses[0] != losses[1])
    assert np.mean([iou(*pair) for pair in zip(*masks, strict=True)]) > 0.8


def test_predictions_do_not_depend_on_their_batch(segmenter, samples, pictures):
    one, all_ = (PerSAM(segmenter, refinements=0, predict_batch=size) for size in (1, 4))
    for model in (one, all_):
        model.fit(samples)
    assert np.mean([iou(*pair) for pair in zip(one.predict(pictures), all_.predict(pictures), strict=True)]) > 0.99


def test_a_data_set_is_read_as_it_is_used(segmenter, samples):
    scenes = Subset(Scenes("sod", "train"), range(4))
    assert SAMed(segmenter, steps=2, batch_size=2).fit(scenes) == SAMed(segmenter, steps=2, batch_size=2).fit(samples)


@pytest.mark.parametrize("name", BASELINES)
def test_images_of_any_size(segmenter, samples, name):
    settings = {"refinements": 1} if name == "persam" else {"steps": 1, "batch_size": 3}
    model = BASELINES[name](segmenter, **settings)
    rng, sizes = np.random.default_rng(0), [(20, 30), (100, 60), (64, 64)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    halves = [np.arange(size[0] * size[1]).reshape(1, *size) % 2 == 0 for size in sizes]
    model.fit([Sample(f"{i}", (image,), (half,)) for i, (image, half) in enumerate(zip(images, halves, strict=True))])
    masks = model.predict(images)
    assert [mask.shape for mask in masks] == sizes and {mask.dtype for mask in masks} == {np.dtype(bool)}
    with pytest.raises(UserError, match="image 1 is float64"):
        model.predict([images[0], images[1] / 255])


def test_wide_and_high_masks_go_to_the_padded_square_and_back():
    wide = np.zeros((2, 4), bool)
    wide[:, :3] = True
    expected = torch.tensor([[1, 0.5], [0, 0]])
    torch.testing.assert_close(to_grid(wide, 2), expected)
    torch.testing.assert_close(to_grid(wide.T, 2), expected.T)
    logits = torch.tensor([[5.0, -5], [-9, -9]])
    np.testing.assert_array_equal(to_image(logits, (1, 2)) > 0, [[True, False]])
    np.testing.assert_array_equal(to_image(logits.T, (2, 1)) > 0, [[True], [False]])


@pytest.mark.parametrize("name", BASELINES)
def test_samples_that_cannot_be_learned_from(segmenter, samples, name):
    model = BASELINES[name](segmenter)
    with pytest.raises(UserError, match="no sample to learn from"):
        model.fit([])
    void = replace(samples[0], void=(samples[0].union(),))
    with pytest.raises(UserError, match=f"'{void.key}' cannot be learned from: its mask is empty"):
        model.fit([void])


@pytest.mark.parametrize(
    ("baseline", "arguments", "expected"),
    [
        (PerSAM, {"refinements": 3}, "refinements=3: expected 0, 1 or 2"),
        (SAMed, {"steps": 0}, "steps=0: expected at least 1"),
        (SAMed, {"rank": -1}, "rank=-1: expected at least 0"),
        (MSA, {"micro_batch": 0}, "micro_batch=0: expected at least 1"),
        (PerSAM, {"predict_batch": 0}, "predict_batch=0: expected at least 1"),
        (MSA, {"bottleneck": 0}, "bottleneck=0"),
        (MSA, {"learning_rate": 0.0}, r"learning_rate=0\.0"),
    ],
)
def test_wrong_arguments(segmenter, baseline, arguments, expected):
    with pytest.raises(UserError, match=expected):
        baseline(segmenter, **arguments)


# --- loss and schedule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("baseline", "cross_entropy", "dice"), [(SAMed, 0.2, 0.8), (MSA, 1.0, 1.0)])
def test_the_loss_by_hand(segmenter, baseline, cross_entropy, dice):
    truth = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    scored = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    found = baseline(segmenter).loss(torch.zeros(1, 2, 2), truth, scored)
    # Three cells at 0.5, one of them true: Dice 1 - (2 · 0.5 + 1) / (1.5 + 1 + 1).
    assert found.item() == pytest.approx(cross_entropy * math.log(2) + dice * (1 - 2 / 3.5))


def test_what_is_not_scored_takes_no_part(segmenter):
    model, logits = SAMed(segmenter), torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    truth, scored = (logits > 0.3).float(), torch.ones(2, 4, 4)
    scored[:, 2:] = 0
    other = logits.clone()
    other[:, 2:] = 7
    assert model.loss(other, 1 - truth * (1 - scored), scored) == model.loss(logits, 1 - truth * (1 - scored), scored)
    assert model.loss(other, truth, torch.ones(2, 4, 4)) != model.loss(logits, truth, torch.ones(2, 4, 4))


def test_a_batch_turns_image_and_truth_together(segmenter):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:4, :4] = 255
    sample = Sample("corner", (image,), (image[None, ..., 0] > 0,), void=(np.arange(128).reshape(8, 16) >= 112,))
    rng, seen = np.random.default_rng(0), set()
    for _ in range(30):
        (shown,), truth, share = SAMed(segmenter)._batch([sample], rng)
        np.testing.assert_array_equal(truth[0] > 0.5, (to_grid(shown[..., 0] > 0, 48) > 0.5))
        assert share.sum() == pytest.approx(48 * 48 * 112 / 256, rel=1e-3)
        seen.add(shown.tobytes() + bytes(shown.shape))
    assert len(seen) == 8


def test_the_schedule():
    values = [schedule(step, 100) for step in range(100)]
    assert values[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert values[5:] == sorted(values[5:], reverse=True) and 0 < values[-1] < 0.02
    assert schedule(52, 100) == pytest.approx((1 - 47 / 95) ** 0.9)
