"""EVF-SAM against values of the reference implementation (see parity/evf_sam_tiny.json for their source)."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgym import segmenters
from maskgym.errors import UserError
from maskgym.segmenters.encodings import CacheLimits
from maskgym.segmenters.phrases import evf_sam
from maskgym.segmenters.phrases.beit3 import Beit3Config
from maskgym.segmenters.phrases.evf_sam import (
    EvfSam,
    EvfSamConfig,
    EvfSamSegmenter,
    SamConfig,
    beit3_pixels,
    resized_size,
    sam_pixels,
    save_checkpoint,
)
from maskgym.segmenters.text import tokenize, word_tokenizer

PARITY = Path(__file__).parent / "parity"
ABOUT = json.loads((PARITY / "evf_sam_tiny.json").read_text())
ATOL = ABOUT["tolerance"]["atol"]


def parity_config() -> EvfSamConfig:
    """Load the settings of the stored tiny model in our names."""
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
    """Load the stored inputs, intermediate values and outputs."""
    return load_file(PARITY / "evf_sam_tiny_io.safetensors")


def build(weights: dict[str, torch.Tensor]) -> EvfSam:
    """Load the stored tiny model; the names must agree one by one."""
    model = EvfSam(parity_config())
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Load the stored weights."""
    return load_file(PARITY / "evf_sam_tiny.safetensors")


@pytest.fixture(scope="module")
def model(weights) -> EvfSam:
    """Load the stored tiny model."""
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


def test_multimask_takes_the_mask_of_the_highest_predicted_iou(model, io):
    sam = model.visual_model
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    sparse = torch.cat([sparse, io["single.prompt_embedding"]], dim=1)
    assert_same(sparse, io["single.sparse_embeddings"])
    assert_same(dense, io["single.dense_embeddings"])
    for case, multimask in (("single", False), ("single_multimask", True)):
        low, quality = sam.mask_decoder(
            io["single.image_embeddings"], sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=multimask
        )
        assert_same(low, io[f"{case}.low_res_logits"])
        assert_same(quality, io[f"{case}.iou_predictions"])
        best = low[:, quality[0].argmax()]
        assert_same(model.resize(best, tuple(io["image0.original_hw"].tolist())), io[f"{case}.mask_logits"])


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
        model = EvfSam(EvfSamConfig())
    state = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert len(state) == 1569
    assert state == {name: entry["shape"] for name, entry in expected.items()}


def test_config_survives_json(tmp_path):
    config, file = parity_config(), tmp_path / "config.json"
    file.write_text(json.dumps(asdict(config)))
    assert evf_sam.read_config(file) == config


WORDS = ["[semantic] a red dog", "blue car on the left side"]
PHRASES = [["a red dog", "the blue car on the left side"], [], ["[semantic]dog"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model) -> Path:
    """Write a folder with the stored tiny model and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("checkpoints") / "evf"
    save_checkpoint(folder, model, word_tokenizer(WORDS))
    return folder


@pytest.fixture(scope="module")
def images(io) -> list[np.ndarray]:
    """Build three images of different sizes."""
    third = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return [io["image0.raw_rgb_uint8"].numpy(), third, io["image1.raw_rgb_uint8"].numpy()]


def count_encoded(segmenter: EvfSamSegmenter) -> list[int]:
    """List the number of images per call of the image encoder."""
    counts: list[int] = []
    encoder = segmenter.network.visual_model.image_encoder
    encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def test_segment_is_the_reference_pipeline_phrase_by_phrase(checkpoint, model, images):
    masks = EvfSamSegmenter(checkpoint, device="cpu").segment(images, PHRASES)
    tokenizer = word_tokenizer(WORDS)
    expected_phrases = [PHRASES[0], [], ["[semantic] dog"]]
    for image, phrases, mine in zip(images, expected_phrases, masks, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == (len(phrases), *image.shape[:2])
        for phrase, mask in zip(phrases, mine, strict=True):
            ids, _ = tokenize(tokenizer, [phrase], 99)
            index = torch.zeros(1, dtype=torch.int64)
            prompt = model.embed_prompts(beit3_pixels(image, 64)[None], ids, None, index)
            low = model.decode(model.encode_images(sam_pixels(image, 256)[None]), prompt, index)
            expected = model.resize(low, image.shape[:2]).sigmoid()[0]
            np.testing.assert_allclose(mask, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_bounds_batches_and_changes_no_mask(checkpoint, images, batch_size):
    reference = EvfSamSegmenter(checkpoint, device="cpu").segment(images, PHRASES)
    segmenter = EvfSamSegmenter(checkpoint, device="cpu", batch_size=batch_size)
    counts = count_encoded(segmenter)
    for mine, expected in zip(segmenter.segment(images, PHRASES), reference, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)
    assert counts == ([1, 1] if batch_size == 1 else [2])  # the image without phrases is not encoded


def test_equal_images_are_encoded_once_and_every_copy_gets_its_own_masks(checkpoint, images):
    segmenter = EvfSamSegmenter(checkpoint, device="cpu")
    counts = count_encoded(segmenter)
    copies = [images[0], images[2], images[0].copy(), images[0]]
    masks = segmenter.segment(copies, [["dog"], ["dog"], ["car", "dog", "car"], ["red"]])
    assert counts == [2]
    assert [len(mask) for mask in masks] == [1, 1, 3, 1]
    np.testing.assert_array_equal(masks[0][0], masks[2][1])
    np.testing.assert_array_equal(masks[2][0], masks[2][2])
    assert not np.allclose(masks[2][0], masks[2][1])


def test_segment_nothing(checkpoint, images):
    segmenter = EvfSamSegmenter(checkpoint, device="cpu")
    assert segmenter.segment([], []) == []
    assert segmenter.segment(images[:1], [[]])[0].shape == (0, *images[0].shape[:2])
    assert "network" not in vars(segmenter)


def test_segment_takes_empty_long_and_unknown_phrases(checkpoint, images):
    phrases = ["", "dog " * 5000, "ĵ 🙂 <s>"]
    masks = EvfSamSegmenter(checkpoint, device="cpu").segment(images[:1], [phrases])[0]
    assert masks.shape[0] == 3
    assert np.isfinite(masks).all()
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.parametrize(
    ("bad_images", "phrases", "error"),
    [
        ([np.zeros((4, 4, 3), np.uint8)], [], "1 images but 0 lists"),
        ([np.zeros((4, 4, 3), np.float32)], [["dog"]], "image 0 is float32"),
        ([np.zeros((3, 4, 4), np.uint8)], [["dog"]], "expected uint8"),
        ([np.zeros((4, 4, 3), np.uint8)], ["dog"], "one string"),
    ],
)
def test_wrong_arguments_are_named(checkpoint, bad_images, phrases, error):
    with pytest.raises((ValueError, TypeError), match=error):
        EvfSamSegmenter(checkpoint, device="cpu").segment(bad_images, phrases)


def test_half_precision_on_disk_and_in_memory(tmp_path, checkpoint, model, images):
    save_checkpoint(tmp_path, model, word_tokenizer(WORDS), dtype=torch.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (checkpoint, tmp_path)]
    assert sizes[1] < 0.52 * sizes[0]
    assert load_file(tmp_path / "model.safetensors")[evf_sam.GAUSSIAN_MATRIX].dtype == torch.float32
    full = EvfSamSegmenter(checkpoint, device="cpu").segment(images, PHRASES)
    stored_half = EvfSamSegmenter(tmp_path, device="cpu")
    assert stored_half.network.text_hidden_fcs[0][0].weight.dtype == torch.float32
    run_half = EvfSamSegmenter(checkpoint, device="cpu", dtype="bfloat16")
    assert run_half.network.text_hidden_fcs[0][0].weight.dtype == torch.bfloat16
    for mask, expected in zip(stored_half.segment(images, PHRASES), full, strict=True):
        np.testing.assert_allclose(mask, expected, atol=0.02)
    for mask, expected in zip(run_half.segment(images, PHRASES), full, strict=True):
        assert mask.dtype == np.float32
        np.testing.assert_allclose(mask, expected, atol=0.1)


def test_the_fingerprint_follows_weights_and_precision_only(tmp_path, checkpoint, model):
    first = EvfSamSegmenter(checkpoint, device="cpu")
    assert first.fingerprint == EvfSamSegmenter(checkpoint, device="cpu", batch_size=9).fingerprint
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert first.fingerprint == EvfSamSegmenter(tmp_path / "copy").fingerprint
    assert first.fingerprint != EvfSamSegmenter(checkpoint, dtype="bfloat16").fingerprint
    changed = EvfSam(parity_config())
    changed.load_state_dict(model.state_dict())
    changed.visual_model.mask_decoder.iou_token.weight[0, 0] += 1
    save_checkpoint(tmp_path / "changed", changed, word_tokenizer(WORDS))
    assert first.fingerprint != EvfSamSegmenter(tmp_path / "changed").fingerprint
    assert "network" not in vars(first)


def test_a_segmenter_is_pickled_without_its_network(checkpoint, images):
    segmenter = EvfSamSegmenter(checkpoint, device="cpu")
    before = segmenter.segment(images, PHRASES)
    stored = pickle.dumps(segmenter)
    assert len(stored) < 5000
    for mask, expected in zip(pickle.loads(stored).segment(images, PHRASES), before, strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_input_size_and_device(checkpoint):
    segmenter = EvfSamSegmenter(checkpoint, device="cpu")
    assert segmenter.input_size == 256
    assert next(segmenter.network.parameters()).device.type == "cpu"
    with pytest.raises(UserError, match="device 'abacus'"):
        EvfSamSegmenter(checkpoint, device="abacus").device  # noqa: B018


def as_published(folder: Path, checkpoint: Path) -> Path:
    """Turn a checkpoint of ours into files as other tools write them, and return the folder."""
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["visual_model.pixel_mean"] = torch.zeros(3, 1, 1)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_pytorch_files_shards_and_single_files_load_alike(tmp_path, checkpoint, images):
    expected = EvfSamSegmenter(checkpoint, device="cpu").segment(images[:1], [["dog"]])[0]
    folder = as_published(tmp_path / "bin", checkpoint)
    variants = [EvfSamSegmenter(folder, device="cpu"), EvfSamSegmenter(folder / "pytorch_model.bin", device="cpu")]
    state = list(load_file(checkpoint / "model.safetensors").items())
    shards = tmp_path / "shards"
    shutil.copytree(checkpoint, shards)
    (shards / "model.safetensors").unlink()
    save_file(dict(state[:100]), shards / "model-1.safetensors")
    save_file(dict(state[100:]), shards / "model-2.safetensors")
    weight_map = {name: f"model-{1 if i < 100 else 2}.safetensors" for i, (name, _) in enumerate(state)}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    variants.append(EvfSamSegmenter(shards, device="cpu"))
    apart = Path(shutil.copytree(folder, tmp_path / "apart"))
    (apart / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    variants.append(EvfSamSegmenter(apart, tokenizer=tmp_path, device="cpu"))
    for segmenter in variants:
        # Not equal to the bit: how the file aligns the weights in memory picks the kernels.
        np.testing.assert_allclose(segmenter.segment(images[:1], [["dog"]])[0], expected, atol=1e-6)


def test_a_published_config_means_the_published_sizes(tmp_path, checkpoint):
    shutil.copytree(checkpoint, tmp_path / "evf")
    config = tmp_path / "evf" / "config.json"
    config.write_text(json.dumps({"model_type": "evf", "sam_scale": "huge", "mm_extractor_scale": "large"}))
    segmenter = EvfSamSegmenter(tmp_path / "evf", device="cpu")
    assert segmenter.config == EvfSamConfig()
    with pytest.raises(UserError, match="1569|missing|misshaped"):
        segmenter.network  # noqa: B018
    config.unlink()
    assert EvfSamSegmenter(tmp_path / "evf" / "model.safetensors").config == EvfSamConfig()
    config.write_text(json.dumps({"sam_scale": "huge", "mm_extractor_scale": "base"}))
    with pytest.raises(UserError, match="base"):
        EvfSamSegmenter(tmp_path / "evf")


def refused(tmp_path: Path, checkpoint: Path, change) -> str:
    """Read the one-line error for a changed copy of a checkpoint."""
    folder = tmp_path / "evf"
    shutil.copytree(checkpoint, folder)
    change(folder)
    with pytest.raises(UserError) as caught:
        EvfSamSegmenter(folder, device="cpu").segment([np.zeros((4, 4, 3), np.uint8)], [["dog"]])
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", "no such file"), ("model.safetensors", "no weights there"), ("tokenizer.json", "no tokenizer")],
)
def test_a_missing_file_is_named(tmp_path, checkpoint, name, message):
    assert message in refused(tmp_path, checkpoint, lambda folder: (folder / name).unlink())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x80garbage", b"{}", b"[1]"])
def test_an_unreadable_file_is_named(tmp_path, checkpoint, name, content):
    message = refused(tmp_path, checkpoint, lambda folder: (folder / name).write_bytes(content))
    # An empty config is that of a published checkpoint, whose weights these are not.
    expected = "does not fit" if (name, content) == ("config.json", b"{}") else name
    assert expected in message


def test_unknown_settings_in_a_config_are_named(tmp_path, checkpoint):
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values["beit3"]["wings"] = 2
        (folder / "config.json").write_text(json.dumps(values))

    assert "wings" in refused(tmp_path, checkpoint, change)


def test_missing_unexpected_and_misshaped_names_are_counted(tmp_path, checkpoint):
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        for index in range(3):
            del state[f"mm_extractor.beit3.encoder.layers.{index}.ffn.A.fc1.bias"]
        del state["text_hidden_fcs.0.2.bias"]
        state["wing"] = torch.zeros(1)
        state["text_hidden_fcs.0.0.bias"] = torch.zeros(5)
        save_file(state, folder / "model.safetensors")

    message = refused(tmp_path, checkpoint, change)
    assert "4 missing (" in message
    assert "layers.0.ffn.A.fc1.bias" in message
    assert message.count("fc1.bias") + message.count("fcs.0.2.bias") == 3
    assert "1 unexpected (wing)" in message
    assert "1 misshaped (text_hidden_fcs.0.0.bias (5,) instead of (64,))" in message


def test_settings_that_cannot_be_used_are_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="checkpoint=PATH"):
        segmenters.make("evf_sam")
    with pytest.raises(UserError, match="nowhere: no such checkpoint"):
        EvfSamSegmenter(tmp_path / "nowhere")
    with pytest.raises(UserError, match="dtype 'int8'"):
        EvfSamSegmenter(checkpoint, dtype="int8")
    with pytest.raises(UserError, match="batch_size=0"):
        EvfSamSegmenter(checkpoint, batch_size=0)


def test_the_bundled_model_is_the_same_class(checkpoint, monkeypatch, images):
    monkeypatch.setattr(evf_sam, "EMBEDDED", checkpoint)
    segmenter = segmenters.make("evf_sam_tiny", device="cpu")
    assert isinstance(segmenter, EvfSamSegmenter)
    expected = EvfSamSegmenter(checkpoint, device="cpu").segment(images, PHRASES)
    for mask, other in zip(segmenter.segment(images, PHRASES), expected, strict=True):
        np.testing.assert_allclose(mask, other, atol=1e-5)
    monkeypatch.setattr(evf_sam, "EMBEDDED", checkpoint / "nothing")
    with pytest.raises(UserError, match="bundled weights are missing"):
        segmenters.make("evf_sam_tiny")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_masks_with_a_cache_are_those_without(two_images, tmp_path, batch_size):
    photos = [*two_images, np.roll(two_images[0], 7, axis=1)]
    asked = [[["red disc", "star"], ["disc"], ["[semantic] red"]], [["red star"], ["red disc", "disc"], []]]

    def tiny(**limits):
        made = evf_sam.evf_sam_tiny(device="cpu", batch_size=batch_size)
        made.cache_limits = CacheLimits(**limits)
        return made

    plain, kept, stored = tiny(), tiny(cache_bytes=2**24), tiny(cache_folder=tmp_path)
    for turn, phrases in enumerate([*asked, *asked]):
        masks = plain.segment(photos, phrases)
        for segmenter in (kept, stored, tiny(cache_folder=tmp_path)):  # the last one reads what another process wrote
            for one, other in zip(masks, segmenter.segment(photos, phrases), strict=True):
                if batch_size == 1 or turn % 2 == 0:  # the same images were encoded together
                    np.testing.assert_array_equal(one, other)
                np.testing.assert_allclose(one, other, atol=1e-5)
    assert (kept.encodings.hits, kept.encodings.misses) == (3 + 2 + 2, 3)
