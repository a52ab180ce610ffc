"""Random checkpoints in the published layouts: Qwen2.5-VL and EVF-SAM, at full size or reduced.

Reduced checkpoints keep the classes, the files, the number of token ids, the special tokens and the form of a
conversation of the published ones; only depth and width differ. A run on them takes the code paths of a run on the
published weights, in seconds. Their answers are noise.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from maskgym import files
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.experiments.planning.published import BASE_IDS, POLICIES, SPECIAL, PolicySizes, policy_config
from maskgym.segmenters.phrases.beit3 import Beit3Config
from maskgym.segmenters.phrases.evf_sam import EvfSam, EvfSamConfig
from maskgym.segmenters.points.sam import SamConfig
from maskgym.segmenters.weights import Network, write_state

PLAIN = (  # added tokens after the special ones, which decoding keeps
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
# Gives the text of the published template for conversations without tools.
CHAT_TEMPLATE = """\
{%- set shown = namespace(images=0, videos=0) -%}
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set shown.images = shown.images + 1 -%}
{{ ('Picture ' ~ shown.images ~ ': ' if add_vision_id else '') + '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set shown.videos = shown.videos + 1 -%}
{{ ('Video ' ~ shown.videos ~ ': ' if add_vision_id else '') + '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
IMAGE_PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
# As published: evaluation has to drop the penalty and the sampling, as training does.
GENERATION = {
    "bos_token_id": BASE_IDS,
    "pad_token_id": BASE_IDS,
    "do_sample": True,
    "eos_token_id": [BASE_IDS + SPECIAL.index("<|im_end|>"), BASE_IDS],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
}
README = """\
# Random weights

Made by maskgym for tests: {what}. The weights are random numbers of seed {seed}; they have learned nothing.

{tokens}
"""


MINIATURES = {
    name: replace(
        sizes,
        hidden_size=32,
        layers=2,
        heads=4,
        key_value_heads=2,
        intermediate_size=64,
        mrope_section=(1, 1, 2),
        vision_depth=2,
        vision_hidden_size=32,
        vision_heads=2,
        vision_intermediate_size=64,
        vision_full_attention=(1,),
    )
    for name, sizes in POLICIES.items()
}
SEGMENTER = EvfSamConfig()  # as published
MINIATURE_SEGMENTER = EvfSamConfig(
    SamConfig(
        image_size=256,
        embed_dim=32,
        depth=2,
        num_heads=2,
        window_size=7,
        global_attention_layers=(1,),
        prompt_embed_dim=32,
        decoder_num_heads=2,
        decoder_mlp_dim=64,
        iou_head_dim=32,
    ),
    Beit3Config(embed_dim=32, num_heads=2, feed_forward_dim=64, depth=2),
)


def write_policy(
    folder: str | Path,
    sizes: PolicySizes = MINIATURES["7b"],
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "5GB",
) -> None:
    """Write a Qwen2.5-VL with random weights, in the files of the published checkpoints.

    Args:
        folder: Target folder, created if missing.
        sizes: Sizes of the model.
        seed: Seed of the weights.
        dtype: Precision of the stored weights.
        shard: Largest size of a file of weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    for name, content in (
        ("preprocessor_config.json", IMAGE_PROCESSOR),
        ("chat_template.json", {"chat_template": CHAT_TEMPLATE}),
    ):
        _write_json(folder / name, content)
    config = Qwen2_5_VLConfig(**policy_config(sizes))
    model = _random(partial(Qwen2_5_VLForConditionalGeneration, config), seed, dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    _write_json(folder / "config.json", policy_config(sizes) | {"torch_dtype": str(dtype).removeprefix("torch.")})
    _write_json(folder / "generation_config.json", GENERATION)
    what = f"a Qwen2.5-VL of {sum(value.numel() for value in model.parameters()) / 1e6:,.0f} M parameters"
    tokens = (
        f"Its tokenizer has the {BASE_IDS + len(SPECIAL) + len(PLAIN):,} ids, the special tokens and the form of a\n"
        "conversation of the published one. Its merges were trained on the instructions and rationales of maskgym, and "
        "the ids\nthat they leave stand for words that no text has."
    )
    files.write(folder / "README.md", README.format(what=what, seed=seed, tokens=tokens))


def write_segmenter(
    folder: str | Path,
    config: EvfSamConfig = MINIATURE_SEGMENTER,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an EVF-SAM with random weights, in the files of the published checkpoints.

    The published ``config.json`` names scales; that of other sizes lists them, as `save_checkpoint` does.

    Args:
        folder: Target folder, created if missing.
        config: Sizes of the model.
        seed: Seed of the weights.
        dtype: Precision of the stored weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = _random(partial(EvfSam, config), seed, dtype)
    write_state(model.state_dict(), folder / "model.safetensors")
    scales = {"sam_scale": "huge", "mm_extractor_scale": "large"}
    sizes = scales if config == SEGMENTER else asdict(config)
    _write_json(folder / "config.json", {"model_type": "evf", "torch_dtype": "float16", **sizes})
    files.write(folder / "sentencepiece.bpe.model", _sentencepiece())
    what = f"an EVF-SAM of {sum(value.numel() for value in model.parameters()) / 1e6:,.0f} M parameters"
    tokens = (
        "Its SentencePiece model was trained on the instructions and rationales of maskgym; the embedding has the\n"
    )
    tokens += f"{config.beit3.vocabulary_size:,} rows of the published one."
    files.write(folder / "README.md", README.format(what=what, seed=seed, tokens=tokens))


def texts() -> Iterator[str]:
    """Yield the instructions, and rationales of scenes."""
    yield from INSTRUCTIONS.values()
    for task in ("sod", "sis"):
        scenes = Scenes(task, image_size=32)
        yield from (str(scenes[index].rationale) for index in range(40))


def _random(build: Callable[[], Network], seed: int, dtype: torch.dtype) -> Network:
    """Build a network with random weights in a precision; at full size, a detour by float32 would double the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()
    finally:
        torch.set_default_dtype(before)


def _write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer with the ids of Qwen2.5."""
    trained = Qwen2Tokenizer().train_new_from_iterator(texts(), vocab_size=BASE_IDS, show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    words = [word for word in model["vocab"] if word not in SPECIAL]
    words += [f"Ġunused{number:06d}" for number in range(BASE_IDS - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=[])
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": BASE_IDS + place, "content": token, **plain, "special": token in SPECIAL}
        for place, token in enumerate((*SPECIAL, *PLAIN))
    ]
    backend["added_tokens"] = added
    _write_json(folder / "vocab.json", vocabulary, indent=None)
    files.write(folder / "merges.txt", "".join(f"{first} {second}\n" for first, second in merges))
    _write_json(folder / "tokenizer.json", backend, indent=None)
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(one["id"]): {key: one[key] for key in one if key != "id"} for one in added},
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _sentencepiece() -> bytes:
    """Train a SentencePiece model with the ids 0 to 2 of the published one."""
    from sentencepiece import SentencePieceTrainer

    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=texts(),
        model_writer=stream,
        vocab_size=1000,
        hard_vocab_limit=False,
        model_type="bpe",
        num_threads=1,
        minloglevel=2,
    )
    return stream.getvalue()


def _write_json(file: Path, content: Mapping[str, object], indent: int | None = 2) -> None:
    files.write(file, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
