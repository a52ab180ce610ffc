"""BEiT-3: properties; its values are compared with the reference in test_evf_sam."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskgym.segmenters.phrases.beit3 import Beit3, Beit3Config

CONFIG = Beit3Config(
    image_size=16,
    patch_size=8,
    vocabulary_size=20,
    embed_dim=16,
    num_heads=2,
    feed_forward_dim=32,
    depth=2,
    max_text_positions=12,
)
IDS = torch.tensor([[0, 7, 8, 2], [0, 9, 2, 1]])
PADDING = IDS == 1


@pytest.fixture
def model() -> Beit3:
    """Build a small encoder with random weights."""
    torch.manual_seed(0)
    return Beit3(CONFIG).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    """Build two images."""
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_padding_changes_nothing(model, pixels):
    padded = model(pixels, IDS, PADDING)
    alone = model(pixels[1:], IDS[1:, :3])
    assert padded.shape == (2, 5 + 4, 16)
    torch.testing.assert_close(padded[1, :8], alone[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(padded[:1], model(pixels[:1], IDS[:1]), atol=1e-6, rtol=1e-5)
    other = model(pixels, IDS.masked_fill(PADDING, 13), PADDING)
    torch.testing.assert_close(padded[:, :8], other[:, :8], atol=1e-6, rtol=1e-5)


def test_texts_take_the_image_that_their_index_names(model, pixels):
    index = torch.tensor([1, 0])
    torch.testing.assert_close(model(pixels, IDS, PADDING, index), model(pixels[index], IDS, PADDING))


def test_vision_and_text_have_weights_of_their_own(model, pixels):
    before = model(pixels, IDS)
    with torch.no_grad():
        model.encoder.layer_norm.B.weight.mul_(2)
    after = model(pixels, IDS)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    torch.testing.assert_close(after[:, 5:], 2 * before[:, 5:])


def test_gelu_runs_in_float32_in_half_precision(model, monkeypatch, pixels):
    seen = set()
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: seen.add(x.dtype) or gelu(x))
    full = model(pixels, IDS, PADDING)
    half = model.bfloat16()(pixels.bfloat16(), IDS, PADDING)
    assert seen == {torch.float32}
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float()[~_padded()], full[~_padded()], atol=0.1, rtol=0.1)


def _padded() -> torch.Tensor:
    return torch.cat([torch.zeros(2, 5, dtype=torch.bool), PADDING], dim=1)


def test_every_weight_that_pretraining_does_not_need_gets_a_gradient(model, pixels):
    model(pixels, IDS, PADDING).square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"vision_embed.mask_token"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"image_size": 24}, "encoder.embed_positions.A.weight"),
        ({"patch_size": 4}, "vision_embed.proj.weight"),
        ({"vocabulary_size": 21}, "text_embed.weight"),
        ({"embed_dim": 32}, "vision_embed.cls_token"),
        ({"feed_forward_dim": 8}, "encoder.layers.0.ffn.B.fc1.weight"),
        ({"depth": 1}, "encoder.layers.1.ffn.B.fc1.weight"),
        ({"max_text_positions": 13}, "encoder.embed_positions.B.weight"),
    ],
)
def test_each_size_shapes_the_model(model, change, name):
    shapes = [
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (model, Beit3(replace(CONFIG, **change)))
    ]
    assert shapes[0].get(name) != shapes[1].get(name)


def test_the_number_of_heads_changes_the_output(model, pixels):
    other = Beit3(replace(CONFIG, num_heads=4)).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(pixels, IDS), model(pixels, IDS), atol=1e-6)


def test_positions_of_the_text_end_where_the_config_says(model, pixels):
    assert CONFIG.max_text_tokens == 10
    assert model(pixels[:1], torch.zeros(1, 10, dtype=torch.int64)).shape[1] == 15
    with pytest.raises(RuntimeError):
        model(pixels[:1], torch.zeros(1, 11, dtype=torch.int64))
