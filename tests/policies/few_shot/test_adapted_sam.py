"""Baselines from a few samples: what each leaves as it was, what it trains, and PerSAM's steps by hand."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling.transformer import Attention
from torch import nn

from maskgym.data import Sample
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.policies.few_shot.adapted_sam import (
    BASELINES,
    MSA,
    Adapter,
    AdapterAfter,
    AdapterBeside,
    GuidedAttention,
    PerSAM,
    SAMed,
    schedule,
    to_grid,
    to_image,
)
from maskgym.segmenters.points.sam import decode_prompts, sam_pixels, sam_tiny


@pytest.fixture(scope="module")
def segmenter():
    return sam_tiny(device="cpu")


@pytest.fixture(scope="module")
def samples():
    scenes = Scenes("sod", "train")
    return [scenes[index] for index in range(4)]


def pictures(samples):
    return [sample.images[0] for sample in samples]


def unprompted(sam, images):
    """Return the logits of a SAM that is given no prompt."""
    embeddings = sam.image_encoder(torch.stack([sam_pixels(image, 96) for image in images]))
    return decode_prompts(sam, embeddings, torch.zeros(len(images), 0, embeddings.shape[1]))


# --- what all share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [SAMed, MSA])
def test_at_first_it_is_the_sam_that_was_given(segmenter, samples, baseline):
    with torch.no_grad():
        expected = unprompted(segmenter.network, pictures(samples))
        found = unprompted(baseline(segmenter).sam, pictures(samples))
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
def test_training_lowers_the_loss_and_finds_the_objects(segmenter, samples, baseline):
    model = baseline(segmenter, steps=40, batch_size=4)
    untrained = np.mean([iou(*pair) for pair in zip(model.predict(pictures(samples)), unions(samples), strict=True)])
    losses = model.fit(samples)
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    trained = np.mean([iou(*pair) for pair in zip(model.predict(pictures(samples)), unions(samples), strict=True)])
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
        (SAMed, {"rank": 0}, "rank=0: expected at least 1"),
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


# --- low rank and adapters --------------------------------------------------------------------------------------------


def test_low_rank_updates_leave_the_keys_alone(segmenter):
    model, tokens = SAMed(segmenter, rank=2), torch.randn(2, 3, 3, 96)
    before = segmenter.network.image_encoder.blocks[0].attn.qkv
    after = model.sam.image_encoder.blocks[0].attn.qkv
    torch.testing.assert_close(after(tokens), before(tokens))
    for name, part in (("query", 0), ("value", 2)):
        down, up = (getattr(getattr(after, name), f"lora_{end}")["default"].weight for end in "AB")
        nn.init.normal_(up)
        change = (after(tokens) - before(tokens))[..., 96 * part : 96 * part + 96]
        torch.testing.assert_close(change, tokens @ (up @ down).T, atol=1e-4, rtol=1e-4)
        assert torch.linalg.matrix_rank(up @ down) == 2
    assert (after(tokens) - before(tokens))[..., 96:192].abs().max() < 1e-5


def test_adapters_by_hand():
    adapter, tokens = Adapter(8, bottleneck=4), torch.full((1, 8), 3.0)
    assert adapter[0].out_features == 2
    nn.init.ones_(adapter[2].bias)
    double = nn.Linear(8, 8, bias=False)
    nn.init.eye_(double.weight)
    double.weight.data *= 2
    torch.testing.assert_close(AdapterAfter(double, adapter)(tokens), torch.full((1, 8), 7.0))
    torch.testing.assert_close(AdapterBeside(double, adapter)(tokens), torch.full((1, 8), 6.5))


# --- PerSAM -----------------------------------------------------------------------------------------------------------


def test_it_finds_the_reference_in_its_own_image(segmenter):
    scenes, found = Scenes("sod", "train"), []
    references = [sample for sample in map(scenes.__getitem__, range(40)) if len(sample.masks[0]) == 1][:5]
    for reference in references:
        model = PerSAM(segmenter, refinements=0)
        assert model.fit([reference]) == []
        found.append(iou(model.predict(reference.images)[0], reference.union()))
    assert len(found) == 5 and np.mean(found) > 0.65, found


def test_the_reference_is_the_first_sample(segmenter, samples):
    targets = []
    for shots in (samples, samples[:1], samples[1:]):
        model = PerSAM(segmenter, refinements=0)
        model.fit(shots)
        targets.append(model.target)
    assert torch.equal(targets[0], targets[1]) and not torch.equal(targets[0], targets[2])


def test_the_target_is_the_mean_over_the_mask(segmenter, samples):
    model, mask = PerSAM(segmenter, refinements=0), np.zeros((1, 128, 128), bool)
    side = 128 / 12
    mask[:, : int(side), : int(3 * side)] = True  # three cells
    model.fit([replace(samples[0], masks=(mask,))])
    embedding = segmenter.encode(samples[0].images)[0]
    torch.testing.assert_close(model.target, embedding[:, 0, :3].mean(dim=1), atol=0.02, rtol=0.02)


def test_every_refinement_matters(segmenter, samples):
    masks = []
    for refinements in (0, 1, 2):
        model = PerSAM(segmenter, refinements=refinements)
        model.fit(samples)
        masks.append(np.stack(model.predict(pictures(samples))))
    assert all((masks[i] != masks[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_points_are_the_extremes_inside_the_image(segmenter):
    model = PerSAM(segmenter)
    similarity, inside = torch.zeros(1, 12, 12), torch.ones(1, 12, 12, dtype=torch.bool)
    similarity[0, 2, 5], similarity[0, 7, 1] = 0.9, -0.5
    similarity[0, 11, 0], similarity[0, 11, 1] = 1, -1  # in the padding
    inside[0, 10:] = False
    points, labels = model._location_prior(similarity, inside)
    assert points.tolist() == [[[44, 20], [12, 60]]] and labels.tolist() == [[1, 0]]


def test_boxes_hold_what_is_above_zero(segmenter):
    logits = torch.full((2, 48, 48), -1.0)
    logits[0, 10:20, 5:8] = 1
    assert PerSAM(segmenter)._boxes(logits).tolist() == [[10, 20, 16, 40], [0, 0, 96, 96]]


def test_guidance_is_what_moves_the_mask(segmenter, samples):
    model = PerSAM(segmenter, refinements=0)
    model.fit(samples)
    transformer, plain = model.sam.mask_decoder.transformer, segmenter.network.mask_decoder.transformer
    generator = torch.Generator().manual_seed(0)
    image, position = torch.randn(1, 128, 12, 12, generator=generator), torch.randn(1, 128, 12, 12, generator=generator)
    tokens, bias = torch.randn(1, 7, 128, generator=generator), torch.rand(1, 144, generator=generator)
    expected = plain(image, position, tokens)[0]
    torch.testing.assert_close(transformer(image, position, tokens)[0], expected)
    for guidance in ((bias, None), (None, model.target)):
        transformer.guide(*guidance)
        assert (transformer(image, position, tokens)[0] - expected).abs().max() > 1e-3
    transformer.guide(None, None)
    torch.testing.assert_close(transformer(image, position, tokens)[0], expected)


def test_a_strong_bias_decides_where_attention_looks():
    torch.manual_seed(0)
    layer = Attention(16, 4, downsample_rate=2)
    guided = GuidedAttention(layer)
    queries, keys, values = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(guided(queries, keys, values), layer(queries, keys, values))
    guided.bias = torch.zeros(2, 5)
    guided.bias[0, 3] = guided.bias[1, 1] = 1000
    expected = layer.out_proj(layer.v_proj(torch.stack([values[0, 3], values[1, 1]])))[:, None].expand(2, 3, 16)
    torch.testing.assert_close(guided(queries, keys, values), expected)
    guided.bias = torch.zeros(2, 5)  # the second softmax flattens what the first one found
    flat = layer.out_proj(layer.v_proj(values).mean(dim=1, keepdim=True)).expand(2, 3, 16)
    assert (guided(queries, keys, values) - flat).abs().max() < (layer(queries, keys, values) - flat).abs().max()


def test_the_attention_that_is_written_again_has_not_changed():
    assert list(inspect.signature(Attention.forward).parameters) == ["self", "q", "k", "v"]


def test_predicting_before_fitting_is_a_fault(segmenter, samples):
    with pytest.raises(RuntimeError, match="before fit"):
        PerSAM(segmenter).predict(pictures(samples))
