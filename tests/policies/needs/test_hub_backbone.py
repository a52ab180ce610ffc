"""Swin and DINOv3 as backbones: features as transformers has them, prompts in every block, the light decoder."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel, SwinConfig, SwinForImageClassification, SwinModel

from maskgym import policies
from maskgym.errors import UserError
from maskgym.policies.needs.hub_backbone import PROMPTED, Dinov3Backbone, LightDecoder, SwinBackbone, attend_prompted
from maskgym.policies.needs.prompted import normalise
from maskgym.policies.needs.usersal import UserSalPlus
from maskgym.segmenters.weights import write_state

KINDS = {"swin": SwinBackbone, "dinov3": Dinov3Backbone}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a folder of each kind with a small model of random weights."""
    torch.manual_seed(0)
    # A grid of 16 in windows of 3, shifted and padded; then 8 and 4.
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 2, 1], num_heads=[1, 2, 4], window_size=3, drop_path_rate=0
    )
    dinov3 = DINOv3ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=5, num_attention_heads=2
    )
    dinov3.num_register_tokens = 2
    made = {"swin": SwinForImageClassification(swin), "dinov3": DINOv3ViTModel(dinov3)}
    folders = {}
    for name, model in made.items():
        with torch.no_grad():
            for weights in model.parameters():  # drawn small, they would hide what is wrong
                weights.add_(torch.randn(weights.shape) * 0.1)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module", params=["swin", "dinov3"])
def backbone(request, folders):
    torch.manual_seed(0)
    given = {"checkpoint": folders[request.param], "width": 16, "heads": 2, "random_decoder": True}
    return policies.make_backbone(request.param, **given).eval()


@pytest.fixture
def pixels(backbone):
    side = 64 if isinstance(backbone, SwinBackbone) else 32
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def draw(dims: tuple[int, ...], tokens: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, tokens, dim, generator=generator) for dim in dims]


def test_shapes(backbone, pixels):
    features = backbone.encode(pixels)
    swin = isinstance(backbone, SwinBackbone)
    assert [tuple(maps.shape[1:]) for maps in features] == (
        [(8, 16, 16), (16, 8, 8), (32, 4, 4)] if swin else [(16, 4, 4)] * 4
    )
    assert tuple(maps.shape[1] for maps in features) == backbone.feature_dims
    assert backbone.encoder_prompt_dims == ((8, 16, 16, 32) if swin else (16,) * 5)
    assert backbone.decoder_prompt_dims == (16,) * (2 if swin else 3)
    assert backbone.size_divisor == (16 if swin else 8)
    assert backbone(pixels).shape == (2, 1, *pixels.shape[2:])


def test_without_prompts_swin_is_that_of_transformers(folders):
    backbone = SwinBackbone(folders["swin"], width=16, heads=2, random_decoder=True).eval()
    original = SwinModel.from_pretrained(folders["swin"], attn_implementation="eager").eval()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = original(
        normalise(pixels, 1),
        output_hidden_states=True,
        always_partition=True,
        output_hidden_states_before_downsampling=True,
    )
    features = backbone.encode(pixels)
    torch.testing.assert_close(features[:2], list(expected.reshaped_hidden_states[1:3]), atol=1e-4, rtol=1e-4)
    last = features[2].flatten(2).transpose(1, 2)
    torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert backbone.encoder.config._attn_implementation == PROMPTED
    assert original.config._attn_implementation == "eager"


def test_without_prompts_dinov3_is_that_of_transformers(folders):
    backbone = Dinov3Backbone(folders["dinov3"], width=16, heads=2, random_decoder=True).eval()
    original = DINOv3ViTModel.from_pretrained(folders["dinov3"]).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = original(normalise(pixels, 1), output_hidden_states=True)
    features = [maps.flatten(2).transpose(1, 2) for maps in backbone.encode(pixels)]
    # The class token and two registers come first. Of five blocks, those after which a quarter more is done.
    torch.testing.assert_close(features[3], expected.last_hidden_state[:, 3:], atol=1e-5, rtol=1e-5)
    hidden = [expected.hidden_states[depth][:, 3:] for depth in (1, 2, 3)]
    torch.testing.assert_close(features[:3], hidden, atol=1e-5, rtol=1e-5)


def test_every_prompt_of_the_encoder_matters(backbone, pixels):
    prompts, plain = draw(backbone.encoder_prompt_dims), backbone.encode(pixels)
    features = backbone.encode(pixels, prompts)
    assert [maps.shape for maps in features] == [maps.shape for maps in plain]
    for place in range(len(prompts)):
        changed = [-prompt if number == place else prompt for number, prompt in enumerate(prompts)]
        assert (backbone.encode(pixels, changed)[-1] - features[-1]).abs().max() > 1e-4, place


def test_every_prompt_of_the_decoder_matters(backbone, pixels):
    features, prompts = backbone.encode(pixels), draw(backbone.decoder_prompt_dims)
    logits = backbone.decode(features, prompts)
    assert logits.shape == (2, 1, *pixels.shape[2:])
    for place in range(len(prompts)):
        changed = [-prompt if number == place else prompt for number, prompt in enumerate(prompts)]
        assert (backbone.decode(features, changed) - logits).abs().max() > 1e-4, place


def test_every_scale_hears_the_need(hear, backbone, pixels):
    heard = hear(backbone, pixels.shape[-1])
    # With random weights the attention to prompts is weak: a trained Swin has 0.21 and more (docs/results/usersod.md).
    assert len(heard.difference) == len(backbone.feature_dims) and min(heard.difference.values()) > 4e-3
    for norms in (heard.siamese, heard.adder):
        assert min(norms.values()) * 100 >= max(norms.values()) > 0


def test_every_feature_matters_to_the_decoder(backbone, pixels):
    features, plain = backbone.encode(pixels), backbone(pixels)
    for level in range(len(features)):
        changed = [-maps if number == level else maps for number, maps in enumerate(features)]
        assert (backbone.decode(changed) - plain).abs().max() > 1e-4


def test_a_prompt_of_no_tokens_is_none(backbone, pixels):
    features = backbone.encode(pixels, draw(backbone.encoder_prompt_dims, tokens=0))
    torch.testing.assert_close(features, backbone.encode(pixels))
    logits = backbone.decode(features, draw(backbone.decoder_prompt_dims, tokens=0))
    torch.testing.assert_close(logits, backbone(pixels))


def test_images_of_a_batch_do_not_see_each_other(backbone, pixels):
    prompts = draw(backbone.encoder_prompt_dims), draw(backbone.decoder_prompt_dims)
    both = backbone.decode(backbone.encode(pixels, prompts[0]), prompts[1])
    alone = [[prompt[1:] for prompt in part] for part in prompts]
    last = backbone.decode(backbone.encode(pixels[1:], alone[0]), alone[1])
    torch.testing.assert_close(both[1:], last, atol=1e-5, rtol=1e-5)


def test_prompts_learn_while_the_network_is_frozen(backbone, pixels):
    prompts = [prompt.requires_grad_() for prompt in draw(backbone.encoder_prompt_dims + backbone.decoder_prompt_dims)]
    count = len(backbone.encoder_prompt_dims)
    backbone.decode(backbone.encode(pixels, prompts[:count]), prompts[count:]).sum().backward()
    assert all(prompt.grad.abs().max() > 0 for prompt in prompts)
    backbone.zero_grad()


def test_another_size_and_wrong_input(backbone, pixels):
    side = 2 * pixels.shape[-1]
    assert backbone(torch.zeros(1, 3, side, side)).shape == (1, 1, side, side)
    assert backbone(pixels).shape[-1] == pixels.shape[-1]  # a larger image leaves nothing behind
    with pytest.raises(ValueError, match=r"expected \(B, 3, S, S\)"):
        backbone(torch.zeros(1, 3, side + 1, side + 1))
    with pytest.raises(ValueError, match="1 prompts: expected"):
        backbone.encode(pixels, draw((16,)))


def test_a_window_sees_prompts_beside_its_tokens():
    """Worked out again for two images of two windows, one head."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Module()
    layer.k_proj, layer.v_proj = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    query, key, value = (torch.randn(4, 1, 3, 4, generator=generator) for _ in range(3))
    mask, prompts = torch.randn(4, 1, 3, 3, generator=generator), torch.randn(2, 2, 4, generator=generator)
    mixed, weights = attend_prompted(layer, query, key, value, mask, scaling=0.5, prompts=prompts)
    assert mixed.shape == (4, 3, 1, 4) and weights is None
    for window, image in enumerate((0, 0, 1, 1)):
        keys = torch.cat([key[window, 0], layer.k_proj(prompts[image])])
        values = torch.cat([value[window, 0], layer.v_proj(prompts[image])])
        logits = 0.5 * query[window, 0] @ keys.T
        logits[:, :3] += mask[window, 0]
        torch.testing.assert_close(mixed[window, :, 0], logits.softmax(-1) @ values)


@pytest.mark.parametrize("name", KINDS)
def test_random_weights_need_a_config_alone(folders, tmp_path, name):
    (tmp_path / "config.json").write_text((folders[name] / "config.json").read_text())
    torch.manual_seed(0)
    first = KINDS[name](tmp_path, pretrained=False, width=16, heads=2)
    second = KINDS[name](tmp_path, pretrained=False, width=16, heads=2)
    names = first.state_dict()
    whole = KINDS[name](folders[name], width=16, heads=2, random_decoder=True)
    assert names.keys() == whole.state_dict().keys()
    assert any(not torch.equal(value, second.state_dict()[key]) for key, value in names.items() if "encoder." in key)
    with pytest.raises(UserError, match="no weights there|cannot be read"):
        KINDS[name](tmp_path, width=16, heads=2, random_decoder=True)


def test_weights_of_encoder_and_decoder_load_strictly(backbone, pixels, folders, tmp_path):
    write_state(backbone.state_dict(), tmp_path / "whole.safetensors")
    name = "swin" if isinstance(backbone, SwinBackbone) else "dinov3"
    loaded = KINDS[name](folders[name], pretrained=False, width=16, heads=2, weights=tmp_path / "whole.safetensors")
    torch.testing.assert_close(loaded.eval()(pixels), backbone(pixels))
    with pytest.raises(UserError, match="does not fit the model: .*misshaped"):
        KINDS[name](folders[name], width=32, heads=2, weights=tmp_path / "whole.safetensors")
    torch.testing.assert_close(pickle.loads(pickle.dumps(backbone))(pixels), backbone(pixels))


def test_a_folder_with_the_trained_decoder_is_a_checkpoint(backbone, pixels, folders, tmp_path):
    name, given = backbone.name, {"width": 16, "heads": 2}
    config = (folders[name] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)  # the weights of the encoder are in the file of the whole backbone
    with pytest.raises(UserError, match="its decoder has no weights"):
        policies.make_backbone(name, checkpoint=tmp_path, **given)
    write_state(backbone.state_dict(), tmp_path / "backbone.safetensors")
    found = policies.make_backbone(name, checkpoint=tmp_path, **given).eval()
    torch.testing.assert_close(found(pixels), backbone(pixels))
    other = policies.make_backbone(name, checkpoint=folders[name], weights=tmp_path, **given).eval()
    torch.testing.assert_close(other(pixels), backbone(pixels))
    assert found.random_part == other.random_part == ""
    assert backbone.random_part == "the decoder"
    assert (
        policies.make_backbone(name, checkpoint=tmp_path, pretrained=False, **given).random_part == "the whole network"
    )


def test_under_autocast_the_loss_is_near_and_float32(backbone, pixels):
    torch.manual_seed(0)
    encoder = policies.make_need_encoder("bag_of_words")
    policy = UserSalPlus(backbone, encoder, device="cpu", width=16, heads=2)
    given = (pixels, ["find a red star", ""], (pixels[:, :1] > 0.5).float())  # one image goes without prompts
    exact, _ = policy.loss(*given)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = policy.loss(*given)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_what_cannot_be_used_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="holds a 'swin' model: expected dinov3_vit"):
        Dinov3Backbone(folders["swin"], random_decoder=True)
    with pytest.raises(UserError, match="neither a folder nor a model"):
        SwinBackbone(tmp_path / "no" / "where", random_decoder=True)
    with pytest.raises(UserError, match="width=20, heads=2: expected a multiple of 8"):
        SwinBackbone(folders["swin"], width=20, heads=2, random_decoder=True)
    for name, kind in KINDS.items():
        with pytest.raises(UserError, match=f"{name}: its decoder has no weights: expected weights=FILE"):
            kind(folders[name], width=16, heads=2)
    with pytest.raises(UserError, match="width=16, heads=3"):
        LightDecoder((8, 8), (1.0, 1.0), 16, 3)
    config = json.loads((folders["dinov3"] / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("out_")}
    for change, message in (
        ({"num_hidden_layers": 3}, "has 3 blocks: expected at least 4"),
        ({"hidden_size": "wide"}, "cannot be read"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            Dinov3Backbone(tmp_path, pretrained=False)


def test_the_decoder_goes_from_coarse_to_fine():
    """With blocks and convolutions that do nothing, what is left is a sum of resized projections."""
    decoder = LightDecoder((4, 4), (2.0, 1.0), 8, 1)
    decoder.blocks[0].forward = lambda tokens, prompt: tokens
    decoder.convolutions = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    features = [torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2)]
    projected = [
        layer(maps.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, maps.shape[2:])
        for layer, maps in zip(decoder.projections, features, strict=True)
    ]
    up = [F.interpolate(maps, (8, 8), mode="bilinear", align_corners=False) for maps in projected]
    torch.testing.assert_close(decoder(features, [None]), decoder.head(up[0] + up[1]))
