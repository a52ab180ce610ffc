"""SAM 3: the adapter against transformers' own computation with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.phrases.sam3 import NOTHING_FOUND, Sam3Segmenter, combine

PHRASES = [["[semantic] a red dog", "cat"], ["[semantic] cat"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, letters_tokenizer):
    """Write a folder with a small SAM 3 of random weights."""
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model

    end = len(letters_tokenizer) - 1
    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    detr = {**sizes, "num_layers": 1, "intermediate_size": 32}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                **sizes,
                "model_type": "sam3_vit_model",
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "vocab_size": end + 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "projection_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        geometry_encoder_config=detr,
        detr_encoder_config=detr,
        detr_decoder_config={**detr, "num_queries": 5},
        mask_decoder_config=sizes,
    )
    folder = tmp_path_factory.mktemp("sam3")
    torch.manual_seed(0)
    model = Sam3Model(config)
    with torch.no_grad():  # at the usual initialisation every mask is nearly flat
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    letters_tokenizer.save_pretrained(folder)
    Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outputs(checkpoint, two_images, letters_tokenizer):
    """Compute the model's own output for each pair of image and phrase, without the prefix."""
    from transformers import Sam3ImageProcessor, Sam3Model, Sam3Processor

    model = Sam3Model.from_pretrained(checkpoint).eval()
    processor = Sam3Processor(Sam3ImageProcessor.from_pretrained(checkpoint), letters_tokenizer)
    found = []
    for image, phrases in zip(two_images, PHRASES, strict=True):
        for phrase in phrases:
            batch = processor(images=image, text=phrase.removeprefix("[semantic] "), return_tensors="pt")
            with torch.no_grad():
                output = model(
                    pixel_values=batch["pixel_values"],
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                )
            found.append((output, (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]))
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
def test_masks_are_those_of_the_model_called_directly(checkpoint, two_images, outputs, batch_size):
    middle = float(torch.cat([scores for _, scores in outputs]).median())
    segmenter = Sam3Segmenter(checkpoint, score_threshold=middle, device="cpu", batch_size=batch_size)
    masks = segmenter.segment(two_images, PHRASES)
    flat = [
        (image, phrase, mask)
        for image, phrases, row in zip(two_images, PHRASES, masks, strict=True)
        for phrase, mask in zip(phrases, row, strict=True)
    ]
    for (image, phrase, mask), (output, scores) in zip(flat, outputs, strict=True):
        kept = [query for query in range(5) if scores[query] > middle]
        if not phrase.startswith("[semantic]"):
            kept = [query for query in kept if scores[query] == scores.max()]
        nothing = torch.full((1, 16, 16), NOTHING_FOUND)
        low = torch.cat([nothing, output.pred_masks[0, kept]]).amax(dim=0)
        expected = F.interpolate(low[None, None], image.shape[:2], mode="bilinear").sigmoid()[0, 0]
        assert mask.shape == image.shape[:2]
        np.testing.assert_allclose(mask, expected.numpy(), atol=1e-4)


def test_nothing_above_the_threshold_is_an_empty_mask(checkpoint, two_images):
    segmenter = Sam3Segmenter(checkpoint, score_threshold=1.0, device="cpu")
    masks = segmenter.segment(two_images, [["cat", "[semantic] cat"], []])
    assert masks[0].shape == (2, 30, 50)
    assert masks[0].max() < 1e-8
    assert masks[1].shape == (0, 41, 20)
    assert segmenter.input_size == 56


def test_combine_by_hand():
    masks = torch.tensor([[[[1.0, -9.0]], [[-9.0, 2.0]], [[3.0, 3.0]]]]).expand(3, -1, -1, -1)  # three queries
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.2, 0.3, 0.1]])
    merged = combine(masks, scores, torch.tensor([True, False, True]), threshold=0.5)
    assert merged.tolist() == [[[1.0, 2.0]], [[1.0, -9.0]], [[NOTHING_FOUND, NOTHING_FOUND]]]


def test_long_and_empty_phrases(checkpoint, two_images):
    segmenter = Sam3Segmenter(checkpoint, score_threshold=0.0, device="cpu")
    assert np.isfinite(segmenter.segment(two_images[:1], [["cat " * 100, "", "[semantic]"]])[0]).all()


def test_the_threshold_is_part_of_the_fingerprint_and_checked(checkpoint):
    low, high = (Sam3Segmenter(checkpoint, score_threshold=value, device="cpu") for value in (0.3, 0.5))
    assert low.fingerprint != high.fingerprint
    with pytest.raises(UserError, match="score_threshold 2"):
        Sam3Segmenter(checkpoint, score_threshold=2)


def test_masks_with_a_cache_are_those_without_and_positions_are_not_kept(checkpoint, two_images):
    plain, cached = (Sam3Segmenter(checkpoint, 0.3, device="cpu", batch_size=1, cache_bytes=n) for n in (0, 2**24))
    for phrases in (PHRASES, PHRASES, [row[:1] for row in PHRASES]):
        for one, other in zip(plain.segment(two_images, phrases), cached.segment(two_images, phrases), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (cached.encodings.hits, cached.encodings.misses) == (4, 2)
    assert cached.encodings.kept.bytes == 2 * 4 * 32 * (16**2 + 8**2 + 4**2 + 2**2)
