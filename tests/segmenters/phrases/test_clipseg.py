"""CLIPSeg: the adapter against transformers' own computation with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from maskgym import segmenters
from maskgym.errors import UserError
from maskgym.segmenters.phrases.clipseg import ClipSegSegmenter

PHRASES = [["a red dog", "cat"], ["cat"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, letters_tokenizer):
    """Write a folder with a small CLIPSeg of random weights."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

    end = len(letters_tokenizer) - 1
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **sizes,
            "num_hidden_layers": 1,
            "vocab_size": end + 1,
            "max_position_embeddings": 16,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**sizes, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        projection_dim=8,
        extract_layers=[0, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        initializer_factor=2.0,
    )
    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(0)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    letters_tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_masks_are_those_of_the_model_called_directly(checkpoint, two_images, letters_tokenizer):
    from transformers import CLIPSegForImageSegmentation, ViTImageProcessor

    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint).eval()
    processor = ViTImageProcessor.from_pretrained(checkpoint)
    for batch_size in (1, 4):
        segmenter = ClipSegSegmenter(checkpoint, device="cpu", batch_size=batch_size)
        masks = segmenter.segment(two_images, PHRASES)
        for image, phrases, mine in zip(two_images, PHRASES, masks, strict=True):
            assert mine.shape == (len(phrases), *image.shape[:2])
            assert mine.dtype == np.float32
            assert mine.std() > 1e-4
            for phrase, mask in zip(phrases, mine, strict=True):
                text = letters_tokenizer([phrase], return_tensors="pt")
                pixels = processor([image], return_tensors="pt").pixel_values
                with torch.no_grad():
                    logits = model(pixel_values=pixels, **text).logits.reshape(1, 1, 64, 64)
                expected = F.interpolate(logits, image.shape[:2], mode="bilinear").sigmoid()[0, 0]
                # Rounding depends on threads and batch, and random weights amplify it (4e-4 seen).
                np.testing.assert_allclose(mask, expected.numpy(), atol=2e-3)


def test_the_prefix_is_taken_off(checkpoint, two_images):
    masks = ClipSegSegmenter(checkpoint, device="cpu").segment(two_images[:1], [["[semantic] cat", "cat", "dog"]])[0]
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-6)
    assert not np.allclose(masks[1], masks[2], atol=1e-6)


def test_long_and_empty_phrases_and_no_phrases(checkpoint, two_images):
    segmenter = ClipSegSegmenter(checkpoint, device="cpu")
    masks = segmenter.segment(two_images, [["cat " * 100, ""], []])
    assert np.isfinite(masks[0]).all()
    assert masks[1].shape == (0, 41, 20)
    assert segmenter.input_size == 64


def test_precision_and_fingerprint(checkpoint, two_images):
    full, half = (ClipSegSegmenter(checkpoint, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert full.fingerprint != half.fingerprint
    assert half.network.dtype == torch.bfloat16
    difference = half.segment(two_images, PHRASES)[0] - full.segment(two_images, PHRASES)[0]
    assert 0 < np.abs(difference).mean() < 0.02


def copy(folder, target):
    """Copy a flat folder and return the copy."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_missing_weights_are_refused_instead_of_drawn(checkpoint, tmp_path, two_images):
    folder = copy(checkpoint, tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "film" not in name}, folder / "model.safetensors")
    with pytest.raises(UserError, match="4 missing .decoder.film_add.bias"):
        ClipSegSegmenter(folder, device="cpu").segment(two_images, PHRASES)


@pytest.mark.parametrize("content", [None, b"garbage"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_broken_checkpoint_ends_with_one_line(checkpoint, tmp_path, two_images, name, content):
    folder = copy(checkpoint, tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        ClipSegSegmenter(folder, device="cpu").segment(two_images, PHRASES)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_another_model_and_no_model_are_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="'clipseg' model: expected sam3"):
        segmenters.make("sam3", checkpoint=checkpoint)
    with pytest.raises(UserError, match="neither a folder nor a model"):
        segmenters.make("clipseg", checkpoint=tmp_path / "no" / "where")


def test_masks_with_a_cache_are_those_without_and_the_image_processor_is_in_the_fingerprint(checkpoint, two_images):
    plain, cached = (ClipSegSegmenter(checkpoint, device="cpu", batch_size=1, cache_bytes=n) for n in (0, 2**24))
    for phrases in (PHRASES, PHRASES, [["dog"], []]):
        for one, other in zip(plain.segment(two_images, phrases), cached.segment(two_images, phrases), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (cached.encodings.hits, cached.encodings.misses) == (3, 2)
    before = cached.fingerprint
    changed = ClipSegSegmenter(checkpoint, device="cpu")
    changed.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert changed.fingerprint != before
