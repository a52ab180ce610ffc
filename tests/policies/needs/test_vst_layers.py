"""The layers of VST, computed again by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskgym.policies.needs.vst_layers import Performer, SplitAttention, TokenInference, Upsampling, sinusoids


def test_positions_are_sines_and_cosines():
    table = sinusoids(5, 6)[0]
    assert table[3].tolist() == pytest.approx(
        [
            f(torch.tensor(3 / 10000 ** (2 * k / 6), dtype=torch.float64)).item()
            for k in range(3)
            for f in (torch.sin, torch.cos)
        ]
    )


def test_upsampling_adds_up_where_patches_overlap():
    upsampling = Upsampling(1, (3, 2, 1))
    with torch.no_grad():
        upsampling.project.weight.fill_(1)
        upsampling.project.bias.zero_()
        tokens = upsampling(torch.tensor([[[1.0], [2], [3], [4]]]))  # a grid of 2 × 2
    # Token (r, c) covers rows 2r−1 to 2r+1 and columns alike; row and column 1 are covered twice.
    expected = torch.tensor([[1, 3, 2, 2], [4, 10, 6, 6], [3, 7, 4, 4], [3, 7, 4, 4.0]])
    torch.testing.assert_close(tokens[0, 0], expected)


@pytest.mark.parametrize("patch", [(3, 2, 1), (7, 4, 2)])
def test_upsampling_is_a_projection_and_a_fold(patch):
    layer, last = Upsampling(6, patch), torch.nn.Linear(6, 2)
    tokens, (kernel, stride, padding) = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0)), patch
    side = 3 * stride
    expected = F.fold(layer.project(tokens).mT, (side, side), kernel, padding=padding, stride=stride)
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)
    narrowed = last(expected.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer(tokens, last), narrowed, atol=1e-5, rtol=1e-5)


def test_the_split_attends_at_the_scale_of_its_patches():
    layer, patches = SplitAttention(18, 4), torch.randn(1, 5, 18, generator=torch.Generator().manual_seed(0))
    query, key, value = layer.attn["qkv"](layer.norm1(patches)).chunk(3, dim=-1)
    weights = (query @ key.transpose(1, 2) / 18**0.5).softmax(-1)
    tokens = value + layer.attn["proj"](weights @ value)
    torch.testing.assert_close(layer(patches), tokens + layer.mlp(layer.norm2(tokens)))


def test_the_performer_weighs_by_positive_features():
    layer = Performer(8, 0.0)
    tokens = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    key, query, value = layer.kqv(layer.norm1(tokens))[0].split(8, dim=-1)
    assert layer.w.shape == (4, 8)
    torch.testing.assert_close(layer.w @ layer.w.T, 4 * torch.eye(4), atol=1e-5, rtol=0)
    weights = torch.empty(6, 6)
    for asking in range(6):
        for told in range(6):
            exponents = (
                layer.w @ (query[asking] + key[told]) - (query[asking].square().sum() + key[told].square().sum()) / 2
            )
            weights[asking, told] = exponents.exp().mean()
    mixed = tokens + layer.proj(weights / weights.sum(1, keepdim=True) @ value)
    torch.testing.assert_close(layer(tokens), mixed + layer.mlp(layer.norm2(mixed)), atol=1e-5, rtol=1e-5)


def test_a_task_token_is_taken_in_as_a_sigmoid_says():
    layer, (places, task) = TokenInference(4), (torch.randn(1, 3, 4), torch.randn(1, 1, 4))
    told = layer.norm(task)
    shares = torch.stack([torch.sigmoid(layer.q(layer.norm(place)) @ layer.k(told)[0, 0] / 2) for place in places[0]])
    expected = places + layer.proj(shares[None, :, None] * layer.v(told))
    torch.testing.assert_close(layer(places, task), expected)
