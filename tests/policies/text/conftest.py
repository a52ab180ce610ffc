"""Small folders of vision-language models of several families, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from maskgym.experiments.reproduce.miniature_models import CHAT_TEMPLATE, write_policy

INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {"hidden_size": 32, "intermediate_size": 64}


def write_qwen3_vl(folder: Path, tokens: Path) -> None:
    """Write a Qwen3-VL, whose image features enter several layers of the language part."""
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    own = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e6, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={"vocab_size": 152064, "rope_parameters": rope, **TEXT, **ends(tokenizer)},
        vision_config={
            "depth": 3,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
            **VISION,
        },
        tie_word_embeddings=True,
        **dict(zip(names, tokenizer.convert_tokens_to_ids(list(own)), strict=True)),
    )
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, min_pixels=4096, max_pixels=16777216, **halves),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_internvl(folder: Path, tokens: Path) -> None:
    """Write an InternVL, whose processor cuts an image into tiles of 112 pixels, on a Qwen2."""
    tokenizer = AutoTokenizer.from_pretrained(tokens, extra_special_tokens=INTERN)
    side, cells = {"height": 112, "width": 112}, 16
    config = InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT, **ends(tokenizer)},
        vision_config={
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [112, 112],
            "patch_size": [14, 14],
            **VISION,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(INTERN["context_image_token"]),
        image_seq_length=cells,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        chat_template=CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\\n"),
        image_seq_length=cells,
    )
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def ends(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's model, by ``model_type``, written once."""
    root = tmp_path_factory.mktemp("families")

    def find(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            torch.manual_seed(0)
            if family == "qwen2_5_vl":
                write_policy(folder, dtype=torch.float32)
            else:
                {"qwen3_vl": write_qwen3_vl, "internvl": write_internvl}[family](folder, find("qwen2_5_vl"))
        return folder

    return find
