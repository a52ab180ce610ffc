"""The tiny policy: a Qwen2.5-VL that learns to see, to describe clearly, and finally to answer as annotators do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from maskgym.data import Sample
from maskgym.data.scenes import COLOURS, SHAPES, TEXTURES, SceneObject, Scenes, vocabulary
from maskgym.envs.instructions import INSTRUCTIONS, instruction
from maskgym.experiments.pretraining.loop import STATE, descend, learning_rate_factor, save, training
from maskgym.rewards import without_reasoning

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<unk>"),
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<rg>", "</rg>", "<ins>", "</ins>", "[semantic]")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
PATCH, MERGE, SIDE = 14, 3, 126  # 9 x 9 patches, merged 3 x 3: one token for each cell of a scene's grid


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer for the instructions and the annotators' answers."""
    words = {*"0123456789:,.;?", "user", "assistant", "system", "scene", "salient", "common", "nothing"}
    return word_tokenizer(" ".join(INSTRUCTIONS.values()), words, TAGS)


def word_tokenizer(text: str, words: set[str], marks: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with a chat template.

    Args:
        text: Text whose words it knows, marks apart, beside those of scenes.
        words: Further words.
        marks: Words with punctuation inside, which stay whole.
    """
    for mark in marks:
        text = text.replace(mark, " ")
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    words = words | {word for word, _ in splitter.pre_tokenize_str(text.lower())} | set(vocabulary()) - set(marks)
    numbers = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *marks, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in marks])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens={
            "turn_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_policy(
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Build a randomly initialised Qwen2.5-VL of 2 M parameters and its processor."""
    number = tokenizer.convert_tokens_to_ids
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "min_pixels": SIDE**2, "max_pixels": SIDE**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 384,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": SIDE,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "out_hidden_size": 128,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def answers_batch(
    processor: Qwen2_5_VLProcessor, samples: list[Sample], task: str, reasoning: bool = True
) -> dict[str, Tensor]:
    """Build the model's inputs for prompts with their rationales; labels are the rationale and the end token.

    Without ``reasoning``, the instruction and the rationale cover the answer only.
    """
    pictures = [{"type": "image"}] * len(samples[0].images)
    question = [{"role": "user", "content": [*pictures, {"type": "text", "text": instruction(task, reasoning)}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    answers = [sample.rationale if reasoning else without_reasoning(sample.rationale or "") for sample in samples]
    texts = [f"{prompt}{answer}{processor.tokenizer.eos_token}" for answer in answers]
    images = [list(sample.images) for sample in samples]
    batch = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    ids = batch["input_ids"]
    # The instruction names this tag too; its last occurrence opens the answer.
    start = processor.tokenizer.convert_tokens_to_ids("<think>" if reasoning else "<answer>")
    labelled = ((ids == start).flip(1).cumsum(1).flip(1) == 0) | ((ids == start).cumsum(1) == 2) & (ids == start)
    batch["labels"] = ids.masked_fill(~labelled | (batch["attention_mask"] == 0), -100)
    return batch


CELL_LABELS = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "pale": (False, True)}


def cell_targets(objects: Sequence[SceneObject]) -> Tensor:
    """Build int64 (9, 5): for each cell of the grid whether it holds an object, and its `CELL_LABELS` or -100."""
    targets = torch.full((9, 1 + len(CELL_LABELS)), -100)
    targets[:, 0] = 0
    for item in objects:
        values = [options.index(getattr(item, name)) for name, options in CELL_LABELS.items()]
        targets[3 * item.row + item.column] = torch.tensor([1, *values])
    return targets


def train_vision(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, steps: int) -> None:
    """Train the vision encoder to classify the object in each cell of the grid; one of its tokens sees one cell.

    Without this stage, the language loss teaches counts and places in a thousand steps, but colours and shapes only in
    many more.
    """
    widths = [2, *map(len, CELL_LABELS.values())]
    # The directions are fixed unit vectors, so that every label changes the tokens enough for attention to use it.
    directions = torch.linalg.qr(torch.randn(128, sum(widths), generator=torch.Generator().manual_seed(0)))[0]
    scenes, rate = Scenes("sis", "train", size=10**6), 1.5e-3
    optimizer = torch.optim.AdamW(model.model.visual.parameters(), lr=rate, weight_decay=0.01)
    bar = trange(steps, desc="vision", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps, warmup=60)
        drawn = [scenes.scene(int(i)) for i in np.random.default_rng([3, step]).integers(len(scenes), size=64)]
        pixels = processor.image_processor([scene.image for scene in drawn], return_tensors="pt")
        tokens = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output  # (B·9, D)
        targets = torch.cat([cell_targets(scene.objects) for scene in drawn])  # (B·9, 5)
        # The tokens are normalised, because the language model's first layer normalises them too.
        logits = (F.rms_norm(tokens, (128,)) @ directions).split(widths, dim=1)
        loss = sum(F.cross_entropy(part, targets[:, k], ignore_index=-100) for k, part in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = [(part.argmax(1) == targets[:, k])[targets[:, k] >= 0] for k, part in enumerate(logits)]
        bar.set_postfix(
            {name: f"{hit.float().mean():.2f}" for name, hit in zip(("taken", *CELL_LABELS), right, strict=True)}
        )


def train_policy(out: Path, steps: int, rate: float, vision_steps: int, reasoning: bool = True) -> None:
    """Train the tiny Qwen2.5-VL to see, to describe clearly and, in the last quarter, to answer as annotators do.

    The last quarter is the fine-tuning of Saliency-R1 (Table 1), with or without reasoning. The stages before it stand
    for the pretrained model, which describes images clearly in ``<think>`` blocks, and are the same in both cases. The
    samples of the last quarter, their order and the learning rate are the same too; only the target text differs.

    The state before the last quarter is kept as ``out/base.pt``. A copy of it as ``state.pt`` in another folder skips
    the first stages.

    Args:
        out: Folder for the weights and ``state.pt``.
        steps: Total number of steps of the language loss.
        rate: Peak learning rate.
        vision_steps: Number of steps of the first stage, which trains vision.
        reasoning: Whether answers begin with reasoning; if not, the last quarter imitates only the answer.
    """
    model, processor = tiny_policy(policy_tokenizer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.95))
    if not (out / STATE).exists():
        train_vision(model, processor, vision_steps)
    model.model.visual.requires_grad_(False)  # the language loss would degrade its classification
    data = {
        (task, annotator): Scenes(task, "train", size=10**6, annotator=annotator)
        for task in ("sis", "sod", "cosod")
        for annotator in ("full", "varied")
    }
    tuned_from = math.ceil(0.75 * steps)
    for step, bar in training(out, model, optimizer, steps, rate, warmup=60):
        if step == tuned_from:
            save(out, model, optimizer, step, "base.pt")
        tuned = step >= tuned_from
        task = ("sis", "sod", "sis", "cosod")[step % 4]
        scenes = data[task, "varied" if tuned else "full"]
        chosen = np.random.default_rng([2, step]).integers(len(scenes), size=12 if task == "cosod" else 32)
        samples = [scenes[int(index)] for index in chosen]
        loss = model(**answers_batch(processor, samples, task, reasoning or not tuned)).loss
        descend(model, optimizer, loss)
        bar.set_postfix({f"{task}_loss": f"{loss.item():.3f}"})
    model.half().save_pretrained(out / "qwen2_5_vl_tiny")
    processor.save_pretrained(out / "qwen2_5_vl_tiny")
