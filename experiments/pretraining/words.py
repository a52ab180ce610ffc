"""Need encoders for UserSOD's Table 7: a tiny text-only BERT, and a bag of words matched with images.

The bundled CLIP is the third need encoder. All three give three features of the same width, and read the same kind of
captions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange
from transformers import BertConfig, BertForMaskedLM, CLIPModel, PreTrainedTokenizerFast

from maskgym.data.scenes import Scenes, vocabulary
from maskgym.experiments.pretraining.clip import (
    CLIP_WIDTH,
    EFFECTS,
    LONGEST_CAPTION,
    SURGERED_BLOCKS,
    CaptionPool,
    caption_loss,
    draw_caption,
)
from maskgym.experiments.pretraining.loop import descend, training
from maskgym.policies.needs.bag_of_words import BagOfWords
from maskgym.segmenters.attention.clip_surgery import EMBEDDED, project, surgered_tokens
from maskgym.segmenters.text import tokenize, word_tokenizer

MASKED = 0.3  # share of hidden words; BERT hides 0.15, but captions are short
UNASKED = -100  # label that the cross-entropy ignores


def tiny_bert() -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:
    """Build a randomly initialised BERT of the width and depth of the tiny CLIP's text tower, and its tokenizer."""
    tokenizer = word_tokenizer([*vocabulary(), *EFFECTS])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LONGEST_CAPTION,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return BertForMaskedLM(config), tokenizer


def mask_words(ids: Tensor, padding: Tensor, mask_id: int, special: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask words; return the masked ids, and the original ids with `UNASKED` elsewhere, both int64 (B, T).

    Args:
        ids: int64 (B, T).
        padding: bool (B, T).
        mask_id: Id that replaces a hidden word.
        special: Number of special tokens, which have the lowest ids.
        rng: Random generator for the hidden words.
    """
    hidden = (torch.rand(ids.shape, generator=rng) < MASKED) & ~padding & (ids >= special)
    return ids.masked_fill(hidden, mask_id), ids.masked_fill(~hidden, UNASKED)


def train_bert(out: Path, steps: int, scenes: int, texts: int, rate: float) -> None:
    """Train a tiny BERT to predict the hidden words of captions (Devlin et al., 2019), which ``<unk>`` replaces."""
    model, tokenizer = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    source = Scenes("semantic", "train", size=scenes, image_size=32)  # only the scene graphs are used
    objects = [source.scene(index).objects for index in trange(scenes, desc="scenes", disable=None)]
    for step, bar in training(out, model, optimizer, steps, rate):
        draws = np.random.default_rng([7, step])
        drawn = [draw_caption(objects[i], "", draws).text for i in draws.integers(scenes, size=texts)]
        ids, padding = tokenize(tokenizer, drawn, LONGEST_CAPTION)
        rng = torch.Generator().manual_seed(step)
        shown, asked = mask_words(ids, padding, tokenizer.unk_token_id, len(tokenizer.all_special_ids), rng)
        logits = model(input_ids=shown, attention_mask=(~padding).long()).logits
        loss = F.cross_entropy(logits.flatten(0, 1), asked.flatten(), ignore_index=UNASKED)
        descend(model, optimizer, loss)
        if step % 20 == 0:
            right = (logits.argmax(-1) == asked)[asked != UNASKED].float().mean()
            bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.2f}")
    model.bert.save_pretrained(out / "bert_tiny")
    tokenizer.save_pretrained(out / "bert_tiny")


class Matcher(nn.Module):
    """A bag of words, and a layer, dropped after training, that projects it into the tiny CLIP's embedding space."""

    def __init__(self) -> None:
        super().__init__()
        self.words = BagOfWords(width=CLIP_WIDTH)
        self.project = nn.Linear(self.words.levels * CLIP_WIDTH, CLIP_WIDTH)

    def forward(self, texts: list[str]) -> Tensor:
        """Encode texts to unit vectors (N, C)."""
        return F.normalize(self.project(self.words.embed(texts).flatten(1)), dim=-1)


def train_bag_of_words(out: Path, steps: int, scenes: int, images: int, captions: int, rate: float) -> None:
    """Train the table of words with the losses of the bundled CLIP, whose vision tower is frozen."""
    torch.manual_seed(0)
    model, clip = Matcher(), CLIPModel.from_pretrained(EMBEDDED).float().eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    pool = CaptionPool.render(scenes)
    for step, bar in training(out, model, optimizer, steps, rate):
        batch = pool.batch(np.random.default_rng([8, step]), images, captions)
        with torch.no_grad():
            tokens = project(clip, surgered_tokens(clip.vision_model, batch.pixels, SURGERED_BLOCKS))  # (B, 1 + P, C)
            regions = torch.einsum("rp,rpc->rc", batch.shares, tokens[batch.images, 1:])
            seen = clip.logit_scale.exp() * F.normalize(torch.cat([tokens[:, 0], regions]), dim=-1)
        whole, parts = (seen @ model(batch.texts).T).split([images, len(batch.images)])  # (B, N), (R, N)
        loss = caption_loss(whole, batch.fits) + caption_loss(parts, batch.region_fits)
        descend(model, optimizer, loss)
        if step % 20 == 0:
            right = batch.region_fits.gather(0, parts.argmax(0, keepdim=True)).float().mean()
            bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.2f}")
    model.words.save(out / "bag_of_words")
