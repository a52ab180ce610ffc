"""The tiny policy of queries: a Qwen2.5-VL that learns to see, then to answer queries in JSON, in every form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from maskgym.aliases import Observation
from maskgym.data.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Scenes
from maskgym.data.scenes.queries import words
from maskgym.envs.instructions import refer_instruction
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.experiments.pretraining.loop import STATE, descend, learning_rate_factor, save, training
from maskgym.experiments.pretraining.policy import SIDE, tiny_policy, word_tokenizer
from maskgym.rewards import FORMS
from maskgym.rewards.truth import tight_box
from maskgym.segmenters import make

MARKS = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *('"bbox_2d"', '"point_2d"', '"points_2d"', '"labels"', '"phrase"'),
)
LABELS = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "size": tuple(SIZES)}
EDGES = 4  # sides of a box
CELL = SIDE / 3  # pixels
DEFAULT, *OTHERS = FORMS
BATCH, SEEN = 32, 64  # samples per step of the language loss, and of the vision loss


def refer_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: words of instructions, queries and answers, and one token per pixel of a side."""
    text = " ".join(refer_instruction("", form, "pixels") for form in FORMS)
    numbers = {str(number) for number in range(SIDE + 1)}
    return word_tokenizer(text, words() | numbers | {*'[]{}",:.', "user", "assistant", "system", "scene"}, MARKS)


def _targets(scene: Scene) -> tuple[Tensor, Tensor]:
    """Build int64 (9, 5), for each cell whether it holds an object, and its `LABELS` or -100; and float (9, 4), edges.

    Edges are the visible box in pixels of the shown image, from the centre of the cell, in units of a quarter cell.
    """
    labels, edges = torch.full((9, 1 + len(LABELS)), -100), torch.zeros(9, EDGES)
    labels[:, 0] = 0
    for item, mask in zip(scene.objects, scene.masks, strict=True):
        cell = 3 * item.row + item.column
        labels[cell] = torch.tensor([1, *(options.index(getattr(item, name)) for name, options in LABELS.items())])
        box = np.array(tight_box(mask)) * SIDE / mask.shape[0]
        centre = np.array([item.column, item.row] * 2) * CELL + CELL / 2
        edges[cell] = torch.from_numpy((box - centre) / (CELL / 4))
    return labels, edges


def train_vision(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, steps: int) -> None:
    """Train the vision encoder to name and to measure the object in each cell; one of its tokens sees one cell."""
    widths = [2, *map(len, LABELS.values()), EDGES]
    # Fixed unit vectors, so that every label changes the tokens enough for attention to use it.
    directions = torch.linalg.qr(torch.randn(128, sum(widths), generator=torch.Generator().manual_seed(0)))[0]
    scenes, rate = Scenes("refer", "train", size=10**6), 1.5e-3
    optimizer = torch.optim.AdamW(model.model.visual.parameters(), lr=rate, weight_decay=0.01)
    bar = trange(steps, desc="vision", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps, warmup=60)
        drawn = [scenes.scene(int(i)) for i in np.random.default_rng([3, step]).integers(len(scenes), size=SEEN)]
        pixels = processor.image_processor([scene.image for scene in drawn], return_tensors="pt")
        tokens = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output  # (B·9, D)
        labels, edges = (torch.cat(parts) for parts in zip(*map(_targets, drawn), strict=True))
        # The tokens are normalised, because the language model's first layer normalises them too.
        *logits, measured = (F.rms_norm(tokens, (128,)) @ directions).split(widths, dim=1)
        taken = labels[:, 0] == 1
        error = (measured - edges)[taken]
        named = sum(F.cross_entropy(part, labels[:, k], ignore_index=-100) for k, part in enumerate(logits))
        loss = named + F.smooth_l1_loss(measured[taken], edges[taken], beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = [(part.argmax(1) == labels[:, k])[labels[:, k] >= 0] for k, part in enumerate(logits)]
        told = {name: f"{hit.float().mean():.2f}" for name, hit in zip(("taken", *LABELS), right, strict=True)}
        bar.set_postfix(told | {"pixels": f"{error.abs().mean() * CELL / 4:.2f}"})


def answers_batch(
    processor: Qwen2_5_VLProcessor, observations: Sequence[Observation], answers: Sequence[str]
) -> dict[str, Tensor]:
    """Build the model's inputs for observations with answers; labels are the answer and the end token."""
    texts, counts = [], []
    for observation, answer in zip(observations, answers, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": observation["instruction"]}]
        question = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        own = f"{answer}{processor.tokenizer.eos_token}"
        texts.append(prompt + own)
        counts.append(len(processor.tokenizer(own, add_special_tokens=False)["input_ids"]))
    images = [[observation["image"]] for observation in observations]
    batch = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    lengths = batch["attention_mask"].sum(dim=1)
    places = torch.arange(batch["input_ids"].shape[1])
    labelled = (places < lengths[:, None]) & (places >= (lengths - torch.tensor(counts))[:, None])
    batch["labels"] = batch["input_ids"].masked_fill(~labelled, -100)
    return batch


def train_refer_policy(out: Path, steps: int, rate: float, vision_steps: int) -> None:
    """Train the tiny policy to see, to answer queries rightly and, in the last eighth, as simulated annotators do.

    Args:
        out: Folder for the weights and ``state.pt``.
        steps: Total number of steps of the language loss.
        rate: Peak learning rate.
        vision_steps: Number of steps of the first stage, which trains vision.
    """
    model, processor = tiny_policy(refer_tokenizer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.95))
    if not (out / STATE).exists():
        train_vision(model, processor, vision_steps)
    model.model.visual.requires_grad_(False)  # the language loss would degrade what it sees
    envs = {annotator: environments(annotator) for annotator in ("full", "varied")}
    tuned_from = math.ceil(0.875 * steps)
    for step, bar in training(out, model, optimizer, steps, rate, warmup=60):
        if step == tuned_from:
            save(out, model, optimizer, step, "base.pt")
        form = form_of(step)
        env = envs["varied" if step >= tuned_from else "full"][form]
        chosen = np.random.default_rng([2, step]).integers(env.num_samples, size=env.num_envs)
        batch, infos = env.reset(options={"index": chosen})
        observations = [{name: value[i] for name, value in batch.items()} for i in range(env.num_envs)]
        loss = model(**answers_batch(processor, observations, infos["rationale"])).loss
        descend(model, optimizer, loss)
        bar.set_postfix({f"{form}_loss": f"{loss.item():.3f}"})
    model.half().save_pretrained(out / "qwen2_5_vl_tiny_refer")
    processor.save_pretrained(out / "qwen2_5_vl_tiny_refer")


def form_of(step: int) -> str:
    """Choose the form of a step: the default one in every other step, and the others in turn."""
    return OTHERS[step // 2 % len(OTHERS)] if step % 2 else DEFAULT


def environments(annotator: str) -> dict[str, ReferVectorEnv]:
    """Make the environment of each form on the scenes of an annotator."""
    scenes = Scenes("refer", "train", size=10**6, annotator=annotator)
    boxes, phrases = make("sam_tiny"), make("evf_sam_tiny")
    return {
        form: ReferVectorEnv(BATCH, scenes, form=form, segmenter=phrases if form == "phrases" else boxes, reward="iou")
        for form in FORMS
    }
