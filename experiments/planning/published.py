"""Sizes of the published policies, Qwen2.5-VL 3B and 7B, and the ``config.json`` of a Qwen2.5-VL of any size."""

from __future__ import annotations

from dataclasses import dataclass

from maskgym.aliases import JsonObject

BASE_IDS = 151643  # ids below the special tokens
SPECIAL = (  # from id 151,643 on, in this order
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)


@dataclass(frozen=True)
class PolicySizes:
    """Sizes of a Qwen2.5-VL; the defaults are those of the 7B model.

    Attributes:
        vocab_size: Rows of the embedding; those above 151,665 are no tokens.
        tied: Whether the output layer shares the embedding.
    """

    hidden_size: int = 3584
    layers: int = 28
    heads: int = 28
    key_value_heads: int = 4
    intermediate_size: int = 18944
    vocab_size: int = 152064
    tied: bool = False
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    vision_depth: int = 32
    vision_hidden_size: int = 1280
    vision_heads: int = 16
    vision_intermediate_size: int = 3420
    vision_full_attention: tuple[int, ...] = (7, 15, 23, 31)


POLICIES = {
    "7b": PolicySizes(),
    "3b": PolicySizes(2048, 36, 16, 2, 11008, vocab_size=151936, tied=True),
}
HUB = {"Qwen/Qwen2.5-VL-7B-Instruct": "7b", "Qwen/Qwen2.5-VL-3B-Instruct": "3b"}  # names on the hub


def policy_config(sizes: PolicySizes) -> JsonObject:
    """Build the ``config.json`` of a Qwen2.5-VL, in the flat form of the published checkpoints."""
    number = {token: BASE_IDS + place for place, token in enumerate(SPECIAL)}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": number["<|endoftext|>"],
        "eos_token_id": number["<|im_end|>"],
        "vision_start_token_id": number["<|vision_start|>"],
        "vision_end_token_id": number["<|vision_end|>"],
        "vision_token_id": number["<|vision_pad|>"],
        "image_token_id": number["<|image_pad|>"],
        "video_token_id": number["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": 128000,
        "max_window_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_value_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": sizes.tied,
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": sizes.vision_depth,
            "hidden_act": "silu",
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": sizes.vision_intermediate_size,
            "num_heads": sizes.vision_heads,
            "in_chans": 3,
            "out_hidden_size": sizes.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": list(sizes.vision_full_attention),
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(sizes.mrope_section)},
        "vocab_size": sizes.vocab_size,
    }
