"""VST: published names and counts, prompts in every block, weights loaded strictly."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskgym import policies
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError
from maskgym.policies.needs.vst import TINY, UNUSED, VST, vst_tiny
from maskgym.policies.needs.vst_layers import Carried
from maskgym.segmenters.weights import write_state

PARITY = json.loads((Path(__file__).parent / "parity" / "vst_keys.json").read_text())
SMALL = {
    "pretrained": False,
    "image_size": 32,
    "embed_dim": 16,
    "depth": 2,
    "heads": 2,
    "token_dim": 8,
    "converter_depth": 1,
    "decoder_depth": 2,
    "token_depth": 1,
}


def lively(backbone: VST) -> VST:
    """Scale the weights up so that every part of the network affects the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in backbone.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator) * 0.1)
    return backbone.eval()


@pytest.fixture(scope="module")
def small() -> VST:
    torch.manual_seed(0)
    return lively(VST(**SMALL))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def draw(dims: tuple[int, ...], tokens: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, tokens, dim, generator=generator) for dim in dims]


def test_published_sizes_have_the_published_names_shapes_and_counts():
    with torch.device("meta"):
        backbone = VST(pretrained=False)
    expected = {name: entry["shape"] for name, entry in PARITY["state_dict"].items() if name not in UNUSED}
    assert {name: list(value.shape) for name, value in backbone.state_dict().items()} == expected
    assert set(UNUSED) < set(PARITY["state_dict"]) and len(expected) == PARITY["numbers"]["keys"] - 2
    # The paper counts 44.48 M, the classifier of 1,000 classes included.
    trained = sum(weights.numel() for weights in backbone.parameters())
    assert trained == 44_090_862
    assert trained + 1000 * (384 + 1) == PARITY["numbers"]["trained_parameters"]
    assert sum(values.numel() for values in backbone.buffers()) == PARITY["numbers"]["fixed_values"]
    assert backbone.encoder_prompt_dims == (384,) * 14 and backbone.decoder_prompt_dims == (384,) * 12


def test_the_tiny_one_is_small_enough_to_ship():
    weights = vst_tiny(pretrained=False).state_dict().values()
    assert 1_000_000 < sum(value.numel() for value in weights) < 1_500_000


def test_shapes(small, pixels):
    features = small.encode(pixels)
    assert [tuple(maps.shape) for maps in features] == [(2, 8, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2)]
    assert tuple(maps.shape[1] for maps in features) == small.feature_dims
    predictions = small.predict(features)
    for logits in (predictions.saliency, predictions.contours):
        assert [tuple(maps.shape) for maps in logits] == [(2, 1, side, side) for side in (2, 4, 8, 32)]
    assert predictions.features.shape == (2, 16, 4, 4)
    torch.testing.assert_close(small(pixels), predictions.saliency[-1])


def test_images_of_a_batch_do_not_see_each_other(small, pixels):
    torch.testing.assert_close(small(pixels)[1:], small(pixels[1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["depth", "converter_depth", "decoder_depth", "token_depth"])
def test_every_depth_adds_places_for_prompts(name):
    before, after = VST(**SMALL), VST(**{**SMALL, name: 3})
    added = len(after.encoder_prompt_dims) + len(after.decoder_prompt_dims)
    added -= len(before.encoder_prompt_dims) + len(before.decoder_prompt_dims)
    assert added == (3 - SMALL[name]) * (2 if name == "token_depth" else 1)


def test_the_other_sizes_change_the_network():
    base = {name: value.shape for name, value in VST(**SMALL).state_dict().items()}
    for change in ({"image_size": 64}, {"embed_dim": 32}, {"mlp_ratio": 2.0}, {"token_dim": 16}):
        assert {name: value.shape for name, value in VST(**{**SMALL, **change}).state_dict().items()} != base


def test_heads_and_dropout_change_what_is_computed(small, pixels):
    other = VST(**{**SMALL, "heads": 4}).eval()
    other.load_state_dict(small.state_dict())
    assert not torch.allclose(other(pixels), small(pixels), atol=1e-4)
    for dropout, same in ((0.0, True), (0.5, False)):
        drops = VST(**{**SMALL, "dropout": dropout}).train()
        drops.load_state_dict(small.state_dict())
        assert torch.allclose(drops(pixels), small(pixels), atol=1e-4) == same


def test_every_prompt_of_the_encoder_changes_the_coarse_features(small, pixels):
    prompts, plain = draw(small.encoder_prompt_dims), small.encode(pixels)
    features = small.encode(pixels, prompts)
    assert [maps.shape for maps in features] == [maps.shape for maps in plain]
    torch.testing.assert_close(features[:2], plain[:2], rtol=0, atol=0)  # no block made these
    for place in range(len(prompts)):
        changed = [-prompt if number == place else prompt for number, prompt in enumerate(prompts)]
        assert (small.encode(pixels, changed)[2] - features[2]).abs().max() > 1e-3


def test_every_prompt_of_the_decoder_changes_the_map(small, pixels):
    features, prompts = small.encode(pixels), draw(small.decoder_prompt_dims)
    logits = small.decode(features, prompts)
    assert logits.shape == (2, 1, 32, 32)
    for place in range(len(prompts)):
        changed = [-prompt if number == place else prompt for number, prompt in enumerate(prompts)]
        assert (small.decode(features, changed) - logits).abs().max() > 1e-4, place


def test_a_prompt_of_no_tokens_is_none(small, pixels):
    features = small.encode(pixels, draw(small.encoder_prompt_dims, tokens=0))
    torch.testing.assert_close(features, small.encode(pixels))
    logits = small.decode(features, draw(small.decoder_prompt_dims, tokens=0))
    torch.testing.assert_close(logits, small(pixels))


def test_a_prompt_acts_as_tokens_that_go_through_the_block(small):
    block, (tokens, prompt) = small.rgb_backbone.blocks[0], draw((16, 16), tokens=5)
    whole = block(torch.cat([tokens, prompt], dim=1))
    torch.testing.assert_close(block(tokens, prompt), whole[:, :5], atol=1e-6, rtol=1e-5)


def test_features_of_each_scale_are_those_that_enter_the_decoder(small, pixels):
    entering = {}
    logits = small.decode(small.encode(pixels), adapt=entering.setdefault)
    torch.testing.assert_close(logits, small(pixels), atol=0, rtol=0)
    found = small.scales(pixels)
    assert tuple(maps.shape[1] for maps in found) == small.feature_dims
    for scale, maps in enumerate(found):
        torch.testing.assert_close(maps, entering[scale], atol=0, rtol=0)
        changed = small.decode(small.encode(pixels), adapt=lambda n, own, at=scale: own.flip(3) if n == at else own)
        assert (changed - logits).abs().max() > 1e-4


def test_every_scale_hears_the_need(hear):
    heard = hear(vst_tiny(), 128)
    assert set(heard.difference) == {0, 1, 2} and min(heard.difference.values()) >= 0.05
    for norms in (heard.siamese, heard.adder):
        assert min(norms.values()) * 100 >= max(norms.values()) > 0


def test_prompts_learn_while_the_network_is_frozen(small, pixels):
    prompts = [prompt.requires_grad_() for prompt in draw(small.encoder_prompt_dims + small.decoder_prompt_dims)]
    count = len(small.encoder_prompt_dims)
    small.decode(small.encode(pixels, prompts[:count]), prompts[count:]).sum().backward()
    assert all(prompt.grad.abs().max() > 0 for prompt in prompts)
    small.zero_grad()


def test_wrong_prompts_and_pixels_are_refused(small, pixels):
    with pytest.raises(ValueError, match="1 prompts: expected 2"):
        small.encode(pixels, draw((16,)))
    with pytest.raises(ValueError, match=r"prompt 1 is \(2, 3, 8\): expected \(B, T, 16\)"):
        small.encode(pixels, draw((16, 8)))
    with pytest.raises(ValueError, match="5 prompts: expected 1"):
        VST(**{**SMALL, "converter_depth": 0, "decoder_depth": 1, "token_depth": 0}).decode([], draw((16,) * 5))
    for shape in ((2, 3, 40, 40), (2, 3, 32, 48), (3, 32, 32), (2, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, S, S\), S a multiple of 16"):
            small(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "image_size=100: expected a multiple of 16"),
        ({"heads": 3}, "heads=3.*expected heads that divide"),
        ({"token_dim": 7}, "token_dim=7.*an even token_dim"),
        ({"depth": -1}, "depth=-1.*expected none below 0"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        VST(**{**SMALL, **change})


def test_another_side_interpolates_the_positions(small):
    grid = small.rgb_backbone._positions(4)
    assert grid.shape == (1, 17, 16)
    torch.testing.assert_close(grid[:, :1], small.rgb_backbone.pos_embed[:, :1])
    table = small.rgb_backbone.pos_embed[0, 1:].T.reshape(1, 16, 2, 2)
    expected = F.interpolate(table, (4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(grid[0, 1:].T.reshape(1, 16, 4, 4), expected)
    assert small(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_both_task_tokens_travel_from_scale_to_scale(small, pixels):
    features = small.encode(pixels)
    coarsest = small.token_trans(features[2].flatten(2).transpose(1, 2), [None] * 2)

    def finest(state: Carried) -> torch.Tensor:
        return small.decoder.saliency(small.decoder(state, features[1], features[0], [None], [None])[-1])

    for changed in (coarsest._replace(saliency=-coarsest.saliency), coarsest._replace(contour=-coarsest.contour)):
        assert not torch.allclose(finest(changed), finest(coarsest), atol=1e-4)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RGB_VST.pth", "backbone.safetensors"])
def test_a_folder_is_a_checkpoint(small, pixels, tmp_path, name):
    with pytest.raises(UserError, match=r"no weights there: expected one of RGB_VST\.pth, backbone\.safetensors"):
        VST(tmp_path, **SMALL)
    if name.endswith(".pth"):
        torch.save(small.state_dict(), tmp_path / name)
    else:
        write_state(small.state_dict(), tmp_path / name)
    found = VST(tmp_path, **SMALL).eval()
    assert torch.equal(found(pixels), small(pixels))
    assert (found.random_part, VST(**SMALL).random_part) == ("", "the whole network")


@pytest.mark.parametrize("name", ["vst.pth", "model.safetensors"])
def test_a_published_checkpoint_loads(small, pixels, tmp_path, name):
    state = {f"module.{key}": value for key, value in small.state_dict().items()}
    state |= {f"module.{key}": torch.zeros(1000, 16) for key in UNUSED}  # as the published ones have it
    file = tmp_path / name
    torch.save(state, file) if name.endswith("pth") else write_state(state, file)
    loaded = VST(file, **SMALL).eval()
    torch.testing.assert_close(loaded(pixels), small(pixels))
    assert all(weights.requires_grad for weights in loaded.parameters())


def test_half_precision_is_read_as_single(small, tmp_path):
    write_state({name: value.half() for name, value in small.state_dict().items()}, tmp_path / "half.safetensors")
    loaded = VST(tmp_path / "half.safetensors", **SMALL)
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    torch.testing.assert_close(loaded.state_dict(), small.state_dict(), atol=1e-3, rtol=1e-3)


def test_what_does_not_fit_is_refused_in_one_line(small, tmp_path):
    with pytest.raises(UserError, match="none.pth: no such checkpoint: expected a file of weights, or a folder"):
        VST(tmp_path / "none.pth")
    state = dict(small.state_dict())
    state["strange"] = state.pop("token_trans.saliency_token")
    write_state(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(token_trans.saliency_token\); 1 unexpected \(strange\)"):
        VST(tmp_path / "a.safetensors", **SMALL)
    write_state(small.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="misshaped .*instead of") as caught:
        VST(tmp_path / "b.safetensors", **{**SMALL, "embed_dim": 32})
    assert "\n" not in str(caught.value)
    (tmp_path / "c.pth").write_bytes(b"garbage")
    with pytest.raises(UserError, match="c.pth: cannot be read as weights"):
        VST(tmp_path / "c.pth")


def test_the_bundled_one_says_how_it_is_made(monkeypatch, tmp_path, small):
    monkeypatch.setattr("maskgym.policies.needs.vst.EMBEDDED", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="make them with maskgym pretrain"):
        vst_tiny()
    made = vst_tiny(pretrained=False)
    write_state({name: value.half() for name, value in made.state_dict().items()}, tmp_path / "model.safetensors")
    torch.testing.assert_close(vst_tiny().state_dict(), made.state_dict(), atol=1e-3, rtol=1e-3)


def test_names_and_pickles(small, pixels):
    assert {"vst", "vst_tiny"} <= set(policies.backbone_names())
    assert policies.make_backbone("vst_tiny", pretrained=False).feature_dims == (TINY["token_dim"],) * 2 + (96,)
    assert policies.make_backbone("vst", **SMALL).feature_dims == small.feature_dims
    with pytest.raises(UserError, match="vst: has no weights: expected checkpoint=FILE or DIR, or pretrained=false"):
        policies.make_backbone("vst")
    torch.testing.assert_close(pickle.loads(pickle.dumps(small))(pixels), small(pixels))


def test_the_shipped_one_detects_what_is_salient_in_scenes():
    backbone, scenes = vst_tiny().eval(), Scenes("sod", "test")
    samples = [scenes[index] for index in range(24)]
    pixels = torch.from_numpy(np.stack([sample.images[0] for sample in samples])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        found = backbone(pixels)[:, 0].numpy() > 0
    truths = np.stack([sample.masks[0].any(axis=0) for sample in samples])
    assert ((found & truths).sum((1, 2)) / (found | truths).sum((1, 2))).mean() > 0.9
