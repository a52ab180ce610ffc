"""PerSAM's steps by hand."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything.modeling.transformer import Attention

from maskgym.data.scenes import Scenes
from maskgym.metrics import iou
from maskgym.policies.few_shot.persam import GuidedAttention, PerSAM


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


def test_every_refinement_matters(segmenter, samples, pictures):
    masks = []
    for refinements in (0, 1, 2):
        model = PerSAM(segmenter, refinements=refinements)
        model.fit(samples)
        masks.append(np.stack(model.predict(pictures)))
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


def test_predicting_before_fitting_is_a_fault(segmenter, samples, pictures):
    with pytest.raises(RuntimeError, match="before fit"):
        PerSAM(segmenter).predict(pictures)
