"""The appearance similarity adder: Eq. 3 and 4 derived again in plain PyTorch, and each Siamese network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.needs.appearance import (
    SIAMESE,
    AppearanceSimilarityAdder,
    CrossAttentionAdder,
    ShiftedWindowLayer,
    appearance_loss,
    from_windows,
    pooled,
    windows,
)


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturb(module, seed=1):
    """Give a module weights as training might, none of them zero; return it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("siamese", SIAMESE)
@pytest.mark.parametrize("size", [(3, 5), (9, 8)])
def test_equation_3_with_each_network(siamese, size):
    module = disturb(AppearanceSimilarityAdder(8, siamese, width=8, heads=2, window=4))
    features, images = maps(2, 8, *size), maps(2, 8, *size, seed=1)
    one, other = module.siamese(features), module.siamese(images)
    expected = (one * other).sum(1) / (one.square().sum(1).sqrt() * other.square().sum(1).sqrt())
    similarity = module.similarity(features, images)
    torch.testing.assert_close(similarity, expected[:, None])
    assert similarity.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(module.similarity(features, features), torch.ones(2, 1, *size))

    # Cross-attention in plain words: every position of F over all of S ⊙ IF, both in the size of F.
    aia, attention = module.adder, module.adder.attention
    scale = features.square().mean((1, 2, 3), keepdim=True).sqrt()
    added = torch.zeros_like(features)
    for row in range(2):
        context = (similarity[row] * images[row] / scale[row]).flatten(1).T  # (positions, C)
        asking = F.layer_norm(features[row].flatten(1).T, (8,), aia.norm.weight, aia.norm.bias)
        query, (key, value) = attention.query(asking), attention.key_value(context).split(8, dim=1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (query[:, head] @ key[:, head].T / 2).softmax(dim=1)
            heads.append(weights @ value[:, head])
        added[row] = attention.out(torch.cat(heads, dim=1)).T.reshape(8, *size)
    torch.testing.assert_close(module(features, images), features + scale * added, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adder", [True, False])
def test_training_starts_at_the_features_themselves_and_leaves_them(adder):
    module = AppearanceSimilarityAdder(8, adder=adder, width=8, heads=2)
    features, images = maps(2, 8, 5, 5), maps(2, 8, 5, 5, seed=1)
    torch.testing.assert_close(module(features, images), features, atol=0, rtol=0)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (module(features, images) * images).sum().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.siamese[1].parameters() if parameter.ndim > 1)
    assert (module(features, images) - features).abs().max() > 0.01


def test_each_switch_matters():
    features, images = maps(1, 8, 5, 5), maps(1, 8, 5, 5, seed=1)
    found = {}
    for similarity in (True, False):
        for adder in (True, False):
            torch.manual_seed(0)
            module = disturb(AppearanceSimilarityAdder(8, "linear", similarity, adder, width=8, heads=2))
            found[similarity, adder] = module(features, images)
            if not similarity:
                torch.testing.assert_close(module.similarity(features, images), torch.ones(1, 1, 5, 5))
            if not adder:
                weighted = module.adder.gate * module.similarity(features, images) * images
                torch.testing.assert_close(found[similarity, adder], features + weighted)
    values = list(found.values())
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(values) for b in values[i + 1 :])


def test_the_adder_works_alike_in_features_of_any_size():
    adder = disturb(CrossAttentionAdder(8, 8, 2, 1024))
    features, appearance = maps(1, 8, 5, 5), maps(1, 8, 5, 5, seed=1)
    larger = adder(50 * features, 50 * appearance)
    torch.testing.assert_close(larger, 50 * adder(features, appearance), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(adder(features, appearance), adder(features, 0.5 * appearance), atol=1e-3)


def test_windows_are_those_of_a_rolled_and_masked_map():
    """Swin's own way, in words: roll by half a window, cut, attend among positions of one region, roll back."""
    layer = disturb(ShiftedWindowLayer(4, 8, 2, window=4))
    given = maps(2, 4, 8, 8)
    inner = layer.project(given)
    tokens = F.layer_norm(inner.permute(0, 2, 3, 1), (8,), layer.norm.weight, layer.norm.bias)  # (B, 8, 8, D)
    shift = 2
    # The padded form cuts windows at 2 and 6: rolling by -2 puts these cuts at 0 and 4, with 6, 7, 0, 1 as the last.
    rolled = tokens.roll((-shift, -shift), (1, 2))
    region = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])  # of a rolled row or column: what came round is apart
    expected = torch.zeros_like(tokens)
    for top in (0, 4):
        for left in (0, 4):
            cut = rolled[:, top : top + 4, left : left + 4].flatten(1, 2)  # (B, 16, D)
            where = torch.stack(torch.meshgrid(region[top : top + 4], region[left : left + 4], indexing="ij")).flatten(
                1
            )
            apart = (where[:, :, None] != where[:, None]).any(0)
            query, key, value = layer.qkv(cut).chunk(3, dim=2)
            heads = []
            for n, head in enumerate((slice(0, 4), slice(4, 8))):
                scores = query[..., head] @ key[..., head].transpose(1, 2) / 2
                for i in range(16):
                    for j in range(16):
                        scores[:, i, j] += layer.relative[n, i // 4 - j // 4 + 3, i % 4 - j % 4 + 3]
                heads.append(scores.masked_fill(apart, -torch.inf).softmax(dim=2) @ value[..., head])
            expected[:, top : top + 4, left : left + 4] = layer.out(torch.cat(heads, dim=2)).unflatten(1, (4, 4))
    expected = inner + expected.roll((shift, shift), (1, 2)).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(given), expected, atol=1e-4, rtol=1e-4)


def test_windows_come_back():
    given = maps(2, 3, 8, 12)
    cut = windows(given, 4)
    assert cut.shape == (2, 6, 16, 3)
    torch.testing.assert_close(cut[0, 1, 5], given[0, :, 1, 5])  # second window, second row, second column
    torch.testing.assert_close(from_windows(cut, 4, 12), given)


def test_pooling_leaves_small_maps_alone():
    given = maps(1, 2, 6, 10)
    assert pooled(given, 60) is given
    assert pooled(given, 59).shape == (1, 2, 6, 7)
    torch.testing.assert_close(pooled(given, 1), given.mean((2, 3), keepdim=True))


def test_equation_4_on_each_axis():
    target, features = maps(2, 3, 2, 2), maps(2, 3, 2, 2, seed=1)

    def divergence(wanted, found):
        p, q = (values.exp() / values.exp().sum() for values in (wanted / 2, found / 2))
        return (p * (p / q).log()).sum()

    expected = {"channels": torch.zeros(2), "positions": torch.zeros(2), "all": torch.zeros(2)}
    for row in range(2):
        for y in range(2):
            for x in range(2):
                expected["channels"][row] += divergence(target[row, :, y, x], features[row, :, y, x]) / 4
        for channel in range(3):
            expected["positions"][row] += divergence(target[row, channel], features[row, channel]) / 3
        expected["all"][row] = divergence(target[row], features[row])
    for axis, values in expected.items():
        torch.testing.assert_close(appearance_loss(target, features, axis, temperature=2.0), values)
        torch.testing.assert_close(appearance_loss(target, target, axis), torch.zeros(2), atol=1e-6, rtol=0)
    # PyTorch's own has the arguments the other way round.
    theirs = F.kl_div(features.flatten(1).log_softmax(1), target.flatten(1).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(appearance_loss(target, features, "all"), theirs)


def test_equation_4_where_objects_are():
    target, features = maps(2, 3, 2, 2), maps(2, 3, 2, 2, seed=1)
    weights = torch.tensor([[0.0, 1, 0.5, 0], [0, 0, 0, 0]]).reshape(2, 1, 2, 2)
    each = F.kl_div(features.log_softmax(1), target.softmax(1), reduction="none").sum(1).flatten(1)
    expected = torch.stack([(each[0, 1] + 0.5 * each[0, 2]) / 1.5, torch.tensor(0.0)])
    torch.testing.assert_close(appearance_loss(target, features, weights=weights), expected)
    everywhere = torch.ones(2, 1, 2, 2)
    torch.testing.assert_close(appearance_loss(target, features, weights=everywhere), appearance_loss(target, features))
    with pytest.raises(UserError, match="kl_axis='positions': has no positions to weigh: expected channels"):
        appearance_loss(target, features, "positions", weights=everywhere)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"siamese": "rnn"}, "siamese='rnn': expected one of linear, convolution, attention, swin"),
        ({"width": 6, "heads": 4}, "width=6: expected a multiple of heads=4"),
        ({"window": 0}, "window=0: expected at least 1"),
    ],
)
def test_wrong_arguments(arguments, expected):
    with pytest.raises(UserError, match=expected):
        AppearanceSimilarityAdder(8, **arguments)
    with pytest.raises(UserError, match="kl_axis='x': expected one of channels, positions, all"):
        appearance_loss(maps(1, 2, 2, 2), maps(1, 2, 2, 2), "x")
