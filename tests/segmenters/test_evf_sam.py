"""EVF-SAM against values of the reference implementation (see parity/evf_sam_tiny.json for their source)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from maskgym.segmenters.beit3 import Beit3Config
from maskgym.segmenters.evf_sam import EvfSam, EvfSamConfig, SamConfig, beit3_pixels, resized_size, sam_pixels
from safetensors.torch import load_file

PARITY = Path(__file__).parent / "parity"
ABOUT = json.loads((PARITY / "evf_sam_tiny.json").read_text())
ATOL = ABOUT["tolerance"]["atol"]


def parity_config() -> EvfSamConfig:
    """Return the settings of the stored tiny model in our names."""
    sam, beit3 = ABOUT["config"]["sam"], ABOUT["config"]["beit3"]
    return EvfSamConfig(
        sam=SamConfig(
            image_size=sam["image_size"],
            patch_size=sam["patch_size"],
            embed_dim=sam["encoder_embed_dim"],
            depth=sam["encoder_depth"],
            num_heads=sam["encoder_num_heads"],
            mlp_ratio=sam["encoder_mlp_ratio"],
            window_size=sam["window_size"],
            global_attention_layers=tuple(sam["encoder_global_attn_indexes"]),
            use_rel_pos=sam["use_rel_pos"],
            prompt_embed_dim=sam["prompt_embed_dim"],
            mask_channels=sam["mask_in_chans"],
            decoder_depth=sam["decoder_depth"],
            decoder_num_heads=sam["decoder_num_heads"],
            decoder_mlp_dim=sam["decoder_mlp_dim"],
            iou_head_dim=sam["iou_head_hidden_dim"],
        ),
        beit3=Beit3Config(
            image_size=beit3["img_size"],
            patch_size=beit3["patch_size"],
            vocabulary_size=beit3["vocab_size"],
            embed_dim=beit3["embed_dim"],
            num_heads=beit3["num_heads"],
            feed_forward_dim=beit3["ffn_dim"],
            depth=beit3["layers"],
            max_text_positions=beit3["max_source_positions"],
        ),
    )


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    """Return the stored inputs, intermediate values and outputs."""
    return load_file(PARITY / "evf_sam_tiny_io.safetensors")


def build(weights: dict[str, torch.Tensor]) -> EvfSam:
    """Return the stored tiny model; the names must agree one by one."""
    model = EvfSam(parity_config())
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Return the stored weights."""
    return load_file(PARITY / "evf_sam_tiny.safetensors")


@pytest.fixture(scope="module")
def model(weights) -> EvfSam:
    """Return the stored tiny model."""
    return build(weights)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def assert_same(value: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare within the stored tolerance."""
    torch.testing.assert_close(value, expected, atol=ATOL, rtol=0)


def test_single_steps_agree_with_the_reference(model, io):
    seen = {}
    encoder = model.visual_model.image_encoder
    beit3 = model.mm_extractor["beit3"]
    watched = {
        "sam_patch_embed": encoder.patch_embed,
        "beit3_text_embed": beit3.text_embed,
        "beit3_vision_embed": beit3.vision_embed,
        "encoder_out": beit3,
        **{f"sam_block_{i}": block for i, block in enumerate(encoder.blocks)},
        **{f"beit3_layer_{i}": layer for i, layer in enumerate(beit3.encoder.layers)},
    }
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, module in watched.items()
    ]
    first = beit3.encoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: seen.__setitem__("beit3_input", inputs[0])
    )
    index = torch.zeros(1, dtype=torch.int64)
    seen["image_embeddings"] = model.encode_images(io["image0.sam_input"][None])
    prompt = model.embed_prompts(io["image0.beit3_input_pixels"][None], io["single.input_ids"], None, index)
    seen["prompt_embedding"] = prompt[:, None]
    low = model.decode(seen["image_embeddings"], prompt, index)
    seen["low_res_logits"] = low[:, None]
    seen["mask_logits"] = model.resize(low, tuple(io["image0.original_hw"].tolist()))
    seen["image_pe"] = model.visual_model.prompt_encoder.get_dense_pe()
    for handle in [*handles, first]:
        handle.remove()
    unseen = {"input_ids", "iou_predictions", "dense_embeddings", "sparse_embeddings"}
    assert set(seen) == {name.removeprefix("single.") for name in io if name.startswith("single.")} - unseen
    for name, value in seen.items():
        assert_same(value, io[f"single.{name}"])


def test_several_prompts_of_one_image(model, io):
    index = torch.zeros(2, dtype=torch.int64)
    prompts = model.embed_prompts(io["image0.beit3_input_pixels"][None], io["prompts.input_ids"], None, index)
    low = model.decode(model.encode_images(io["image0.sam_input"][None]), prompts, index)
    assert_same(prompts[:, None], io["prompts.prompt_embedding"])
    assert_same(low[:, None], io["prompts.low_res_logits"])
    assert_same(model.resize(low, tuple(io["image0.original_hw"].tolist())), io["prompts.mask_logits"])


def test_padded_prompts_of_two_images_in_one_batch(model, io):
    pixels = torch.stack([io["image0.beit3_input_pixels"], io["image1.beit3_input_pixels"]])
    index = torch.tensor([0, 0, 1])
    padding = ~io["batch.attention_mask"]
    assert_same(model.mm_extractor["beit3"](pixels, io["batch.input_ids"], padding, index), io["batch.encoder_out"])
    prompts = model.embed_prompts(pixels, io["batch.input_ids"], padding, index)
    assert_same(prompts[:, None], io["batch.prompt_embedding"])
    embeddings = model.encode_images(torch.stack([io["image0.sam_input"], io["image1.sam_input"]]))
    low = model.decode(embeddings, prompts, index)
    for image in range(2):
        mine = low[index == image]
        assert_same(mine[:, None], io[f"batch.low_res_logits_{image}"])
        original = tuple(io[f"image{image}.original_hw"].tolist())
        assert_same(model.resize(mine, original), io[f"batch.mask_logits_{image}"])


def test_small_variances_show_the_epsilon_of_every_norm(weights, io):
    patterns = [re.compile(pattern) for pattern in ABOUT["lowvar"]["patterns"]]
    scaled = {
        name: value * ABOUT["lowvar"]["factor"] if any(p.search(name) for p in patterns) else value
        for name, value in weights.items()
    }
    model = build(scaled)
    index = torch.zeros(1, dtype=torch.int64)
    pixels = io["image0.beit3_input_pixels"][None]
    assert_same(model.mm_extractor["beit3"](pixels, io["single.input_ids"]), io["lowvar.encoder_out"])
    embeddings = model.encode_images(io["image0.sam_input"][None])
    assert_same(embeddings, io["lowvar.image_embeddings"])
    prompts = model.embed_prompts(pixels, io["single.input_ids"], None, index)
    assert_same(prompts[:, None], io["lowvar.prompt_embedding"])
    low = model.decode(embeddings, prompts, index)
    assert_same(low[:, None], io["lowvar.low_res_logits"])
    assert_same(model.resize(low, tuple(io["image0.original_hw"].tolist())), io["lowvar.mask_logits"])


def test_sam_half_takes_text_with_points_box_and_mask(model, io):
    sam, text = model.visual_model, io["single.prompt_embedding"]
    points = (io["mixed.point_coords"], io["mixed.point_labels"])
    for case, box, mask in (("points_text", None, None), ("all", io["mixed.box"], io["mixed.mask_input"])):
        sparse, dense = sam.prompt_encoder(points=points, boxes=box, masks=mask)
        sparse = torch.cat([sparse, text], dim=1)
        low, quality = sam.mask_decoder(
            io["single.image_embeddings"], sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True
        )
        assert_same(sparse, io[f"mixed.{case}.sparse_embeddings"])
        assert_same(low, io[f"mixed.{case}.low_res_logits"])
        assert_same(quality, io[f"mixed.{case}.iou_predictions"])


def test_batched_decode_equals_the_stock_decoder_image_by_image(model):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 64, 16, 16, generator=generator)
    prompts = torch.randn(5, 64, generator=generator)
    index = torch.tensor([2, 0, 1, 2, 0])
    batched = model.decode(embeddings, prompts, index)
    sam = model.visual_model
    for image in range(3):
        mine = prompts[index == image][:, None]
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        stock, _ = sam.mask_decoder(
            embeddings[image : image + 1], sam.prompt_encoder.get_dense_pe(), mine, dense, multimask_output=False
        )
        torch.testing.assert_close(batched[index == image], stock[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("image", ["image0", "image1"])
def test_preprocessing_at_the_reduced_size(io, image):
    raw = io[f"{image}.raw_rgb_uint8"].numpy()
    assert list(resized_size(raw.shape[:2], 256)) == io[f"{image}.resized_hw"].tolist()
    torch.testing.assert_close(sam_pixels(raw, 256), io[f"{image}.sam_input"], atol=0.02, rtol=0)
    torch.testing.assert_close(beit3_pixels(raw, 64), io[f"{image}.beit3_input_pixels"], atol=1e-5, rtol=0)


def test_preprocessing_that_shrinks(io):
    raw = io["downscale.raw_rgb_uint8"].numpy()
    assert list(resized_size(raw.shape[:2], 256)) == io["downscale.sam_resized_hw"].tolist()
    mine = sam_pixels(raw, 256)[:, ::2, ::2]
    torch.testing.assert_close(mine, io["downscale.sam_input_every_2nd"], atol=0.02, rtol=0)
    torch.testing.assert_close(beit3_pixels(raw, 64), io["downscale.beit3_input_pixels"], atol=1e-5, rtol=0)


def test_preprocessing_at_the_released_sizes(io):
    raw = io["image0.raw_rgb_uint8"].numpy()
    assert list(resized_size(raw.shape[:2], 1024)) == io["full_preprocess.sam_resized_hw"].tolist()
    mine = sam_pixels(raw, 1024)[:, ::16, ::16]
    torch.testing.assert_close(mine, io["full_preprocess.sam_1024_every_16th"], atol=0.02, rtol=0)
    mine = beit3_pixels(raw, 224)[:, ::4, ::4]
    torch.testing.assert_close(mine, io["full_preprocess.beit3_224_every_4th"], atol=1e-5, rtol=0)


def test_official_config_has_the_published_names_and_shapes():
    expected = json.loads((PARITY / "evf_sam_keys.json").read_text())["state_dict"]
    with torch.device("meta"):
        model = EvfSam(EvfSamConfig.official())
    state = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert len(state) == 1569
    assert state == {name: entry["shape"] for name, entry in expected.items()}


def test_config_survives_json():
    config = parity_config()
    assert EvfSamConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
