"""Implement PerSAM, SAMed and MSA, the few-shot baselines of AlignSAM on a Segment Anything Model.

Each baseline learns from the same few samples (Section 4.1: 50) and predicts one mask per test image without a prompt.
The interface is ``fit(samples)``, then ``predict(images)``. As in SAM's code, the longer side of an image is scaled to
the input, with padding right and below. Each baseline adapts a copy of the segmenter.

References:
    Huang et al., AlignSAM, CVPR 2024, Section 4.1 "Baselines", Tables 2 and 3.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.segmenters.frozen import check_image, chunks
from maskgym.segmenters.points.sam import SamSegmenter, decode_prompts, resized_size, sam_pixels

WARM_UP = 0.05  # share of the steps
DECAY = 0.9  # exponent of the polynomial decay that follows (SAMed)
SMOOTHING = 1.0  # of Dice, in cells of the low resolution


class AdaptedSam(ABC):
    """SAM that learns one task from a few samples and needs no prompt afterwards.

    A subclass implements `fit` and `_decode`.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.

    Attributes:
        sam: The copy that is adapted, float32.
    """

    def __init__(self, segmenter: SamSegmenter) -> None:
        self.sam: Sam = copy.deepcopy(segmenter.network).float()
        self.device, self.side, self.chunk = segmenter.device, segmenter.input_size, segmenter.batch_size

    @abstractmethod
    def fit(self, samples: Sequence[Sample]) -> list[float]:
        """Learn from the first image of each sample and the union of its masks; return the loss of each step.

        Raises:
            UserError: If there is no sample, or one that cannot be learned from.
        """

    @abstractmethod
    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        """Return logits (B, 4h, 4w) for embeddings (B, C, h, w).

        Args:
            embeddings: Embeddings of the images.
            inside: bool (B, h, w), False where the centre of a cell is padding.
        """

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict one mask per image, bool (H_i, W_i).

        Args:
            images: uint8 (H_i, W_i, 3) RGB, of any size.

        Raises:
            UserError: If an image is something else.
        """
        masks: list[np.ndarray] = []
        for chunk in chunks(images, self.chunk):
            logits = self._decode(self._encode(chunk), self._inside(chunk))
            sizes = [image.shape[:2] for image in chunk]
            masks += [(to_image(row, size) > 0).cpu().numpy() for row, size in zip(logits, sizes, strict=True)]
        return masks

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        for number, image in enumerate(images):
            check_image(image, number)
        pixels = torch.stack([sam_pixels(image, self.side) for image in images])
        return self.sam.image_encoder(pixels.to(self.device))

    def _inside(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return bool (B, h, w): which cells of the embedding have their centre in the image, not in the padding."""
        rows, columns = self.sam.prompt_encoder.image_embedding_size
        y, x = (torch.arange(rows) + 0.5) / rows * self.side, (torch.arange(columns) + 0.5) / columns * self.side
        sizes = [resized_size(image.shape[:2], self.side) for image in images]
        return torch.stack([(y < height)[:, None] & (x < width) for height, width in sizes]).to(self.device)


def to_image(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring logits (h, h) of a padded square to the (height, width) of its image, in one bilinear step."""
    square = (max(size), max(size))
    return F.interpolate(logits[None, None], square, mode="bilinear", align_corners=False)[0, 0, : size[0], : size[1]]


def to_grid(mask: np.ndarray, side: int) -> Tensor:
    """Return float32 (side, side): the share of each cell of the padded square that a bool mask (H, W) covers."""
    height, width = mask.shape
    square = F.pad(torch.from_numpy(mask).float(), (0, max(mask.shape) - width, 0, max(mask.shape) - height))
    return F.adaptive_avg_pool2d(square[None], side)[0]


def _scored(sample: Sample) -> np.ndarray:
    """Return bool (H, W), True where a sample's first image is not void."""
    return np.ones(sample.images[0].shape[:2], bool) if sample.void is None else ~sample.void[0]


# --- PerSAM -----------------------------------------------------------------------------------------------------------


class PerSAM(AdaptedSam):
    """PerSAM, which prompts SAM by similarity to one reference object, without training.

    Steps (Section 3.2 of the paper):
        1. The reference is the first of the samples, as the method is one-shot; the others are not looked at.
        2. The target embedding is the mean of the reference's embedding over its mask. (Cells count by the share that
           the mask covers; the authors' code counts every cell that the mask touches as one.)
        3. Location prior: cosine similarity of the target with each cell of a test image. The highest cell is the
           positive point, the lowest the negative one. (Cells are compared as they are; the authors' code scales the
           map to the image first.)
        4. Target-guided attention: the similarity, standardised and through a sigmoid, is added to the decoder's
           attention from tokens to the image, which goes through the softmax again, as in the authors' code.
        5. Target-semantic prompting: the target embedding is added to the tokens: where they enter the decoder, and
           again before each further layer and the last attention, as in the authors' code.
        6. Cascaded post-refinement: two further decodings without guidance, first with the last logits as mask prompt,
           then with the box of that mask too; of SAM's three masks the one with the highest predicted IoU is taken.

    Nothing of PerSAM is left out; PerSAM-F, which trains two weights, is another method.

    Args:
        segmenter: Segmenter with the weights; it is not changed.
        refinements: How many steps of the post-refinement: 2 as published. They need a SAM that was trained with mask
            prompts, boxes and three masks: the bundled SAM needs 0.

    Raises:
        UserError: If ``refinements`` is not 0, 1 or 2.

    References:
        Zhang et al., Personalize Segment Anything Model with One Shot, ICLR 2024, arXiv 2305.03048, Section 3.2.
        ZrrSkywalker/Personalize-SAM, persam.py.
    """

    def __init__(self, segmenter: SamSegmenter, refinements: int = 2) -> None:
        if refinements not in (0, 1, 2):
            raise UserError(f"refinements={refinements}: expected 0, 1 or 2")
        super().__init__(segmenter)
        self.refinements = refinements
        self.target = torch.zeros(0)
        self.sam.mask_decoder.transformer = GuidedTransformer(self.sam.mask_decoder.transformer)

    @torch.inference_mode()
    def fit(self, samples: Sequence[Sample]) -> list[float]:
        """Take the target embedding from the first sample; nothing is trained, so there is no loss."""
        reference = _checked(samples)[0]
        embedding = self._encode(reference.images[:1])[0]  # (C, h, w)
        weights = to_grid(reference.union() & _scored(reference), embedding.shape[1]).to(self.device)
        self.target = (embedding * weights).sum((1, 2)) / weights.sum()  # (C,)
        return []

    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        if not len(self.target):
            raise RuntimeError("predict was called before fit: there is no target yet")
        similarity = F.cosine_similarity(embeddings, self.target[:, None, None], dim=1)  # (B, h, w)
        prompts = self._location_prior(similarity, inside)
        self.sam.mask_decoder.transformer.guide(_attention_bias(similarity, inside), self.target)
        logits, _ = self._decode_prompts(embeddings, prompts, None, None, multimask=False)
        self.sam.mask_decoder.transformer.guide(None, None)
        if self.refinements >= 1:
            logits = self._refine(embeddings, prompts, logits, None)
        if self.refinements == 2:
            logits = self._refine(embeddings, prompts, logits, self._boxes(logits[:, 0]))
        return logits[:, 0]

    def _location_prior(self, similarity: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return points (B, 2, 2), (x, y) in pixels of the input, and labels (B, 2): highest and lowest cell."""
        flat, kept = similarity.flatten(1), inside.flatten(1)
        highest = flat.masked_fill(~kept, -math.inf).argmax(dim=1)
        lowest = flat.masked_fill(~kept, math.inf).argmin(dim=1)
        cells, columns = torch.stack([highest, lowest], dim=1), similarity.shape[2]
        points = torch.stack([cells % columns, cells // columns], dim=2) + 0.5
        return points * (self.side / columns), torch.tensor([1, 0], device=self.device).expand(len(flat), 2)

    def _decode_prompts(
        self,
        embeddings: Tensor,
        points: tuple[Tensor, Tensor],
        masks: Tensor | None,
        boxes: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, m, 4h, 4w) and predicted IoU (B, m); m is 3 with ``multimask``, else 1."""
        sparse, dense = self.sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        return self.sam.mask_decoder(
            image_embeddings=torch.zeros_like(embeddings[:1]),  # the decoder adds the two: see `decode_prompts`
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=embeddings + dense,
            multimask_output=multimask,
        )

    def _refine(
        self, embeddings: Tensor, points: tuple[Tensor, Tensor], logits: Tensor, boxes: Tensor | None
    ) -> Tensor:
        """Return the best of three masks (B, 1, 4h, 4w) for the same points with the last logits."""
        masks, quality = self._decode_prompts(embeddings, points, logits, boxes, multimask=True)
        return masks.take_along_dim(quality.argmax(dim=1)[:, None, None, None], dim=1)

    def _boxes(self, logits: Tensor) -> Tensor:
        """Return (B, 4): two corners (x, y), in pixels of the input, of what is above 0, or of all if nothing is."""
        scale, boxes = self.side / logits.shape[2], []
        for mask in logits > 0:
            y, x = (mask if mask.any() else ~mask).nonzero(as_tuple=True)
            boxes.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale)
        return torch.stack(boxes)


def _attention_bias(similarity: Tensor, inside: Tensor) -> Tensor:
    """Return (B, h · w) in (0, 1): the similarity standardised over the cells in the image, then through a sigmoid."""
    count = inside.sum((1, 2), keepdim=True)
    mean = (similarity * inside).sum((1, 2), keepdim=True) / count
    variance = ((similarity - mean).square() * inside).sum((1, 2), keepdim=True) / count
    return ((similarity - mean) / variance.sqrt().clamp(min=1e-6)).sigmoid().flatten(1)


class GuidedTransformer(nn.Module):
    """SAM's two-way transformer, whose tokens can be guided to a target; without guidance it is the same function.

    Args:
        transformer: Transformer of a mask decoder; its attention from tokens to the image is wrapped, in place.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.target: Tensor | None = None
        for number, layer in enumerate(transformer.layers):
            layer.cross_attn_token_to_image = GuidedAttention(layer.cross_attn_token_to_image)
            if number:
                self._add_target(layer, "queries")
        self._add_target(transformer.final_attn_token_to_image, "q")

    def guide(self, bias: Tensor | None, target: Tensor | None) -> None:
        """Set the bias of attention (B, h · w) and the target embedding (C,); None takes guidance away."""
        self.target = target
        for layer in self.transformer.layers:
            layer.cross_attn_token_to_image.bias = bias

    def _add_target(self, module: nn.Module, name: str) -> None:
        """Let the target, where there is one, be added to this argument of a module."""

        def hook(_: nn.Module, arguments: tuple, named: dict[str, Tensor]) -> tuple[tuple, dict[str, Tensor]]:
            return arguments, named if self.target is None else {**named, name: named[name] + self.target}

        module.register_forward_pre_hook(hook, with_kwargs=True)

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and image as the transformer does, for tokens (B, n, C) to which the target is added."""
        tokens = point_embedding if self.target is None else point_embedding + self.target
        return self.transformer(image_embedding, image_pe, tokens)


class GuidedAttention(nn.Module):
    """Attention of SAM's decoder to which a bias over the image can be added, after the softmax and before another.

    Args:
        attention: Attention layer of ``segment_anything``; its weights are used.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.bias: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (B, n, C) for queries (B, n, C), keys and values (B, h · w, C)."""
        if self.bias is None:
            return self.attention(q=q, k=k, v=v)
        layer, heads = self.attention, self.attention.num_heads
        q, k, v = (
            project(tokens).unflatten(2, (heads, -1)).transpose(1, 2)  # (B, heads, n, C / heads)
            for project, tokens in ((layer.q_proj, q), (layer.k_proj, k), (layer.v_proj, v))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(dim=3)
        weights = (weights + self.bias[:, None, None]).softmax(dim=3)
        return layer.out_proj((weights @ v).transpose(1, 2).flatten(2))


# --- what is trained --------------------------------------------------------------------------------------------------


class TrainedSam(AdaptedSam):
    """A SAM of which a small part is trained to segment without a prompt.

    SAMed and MSA share one mask (SAM's first), the default embedding in place of a prompt, AdamW, a linear warm-up over
    5 % of the steps followed by a polynomial decay, and random quarter turns and flips. The loss compares the
    low-resolution output with the ground truth averaged over each cell, and ignores void.

    A subclass implements `_adapt` and the two weights.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        steps: Number of optimizer steps.
        batch_size: Number of images per step.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the new weights, the order of the samples, the turns and the flips.

    Raises:
        UserError: If a number is too small.
    """

    cross_entropy_weight: float
    dice_weight: float

    def __init__(
        self,
        segmenter: SamSegmenter,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        **sizes: Any,
    ) -> None:
        for name, value in {"steps": steps, "batch_size": batch_size, **sizes}.items():
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        if learning_rate <= 0 or weight_decay < 0:
            raise UserError(f"learning_rate={learning_rate}, weight_decay={weight_decay}: expected numbers above 0")
        super().__init__(segmenter)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._adapt(**sizes)
        self.sam.mask_decoder.requires_grad_(True)

    @abstractmethod
    def _adapt(self, **sizes: Any) -> None:
        """Put the new weights into `sam`, all else of which is frozen."""

    def fit(self, samples: Sequence[Sample]) -> list[float]:
        """Train on the samples, each as often as the others; return the loss of each step."""
        samples, rng, losses = _checked(samples), np.random.default_rng(self.seed), []
        epochs = math.ceil(self.steps * self.batch_size / len(samples))
        order = np.concatenate([rng.permutation(len(samples)) for _ in range(epochs)])
        trained = [weight for weight in self.sam.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        bar = trange(self.steps, desc=f"fit {type(self).__name__}", unit="step", disable=None, leave=False)
        for step in bar:
            optimizer.param_groups[0]["lr"] = self.learning_rate * schedule(step, self.steps)
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            images, truth, scored = self._batch([samples[row] for row in rows], rng)
            loss = self.loss(self._decode(self._encode(images), scored), truth, scored)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        return losses

    def loss(self, logits: Tensor, truth: Tensor, scored: Tensor) -> Tensor:
        """Return the weighted sum of binary cross-entropy and Dice.

        Args:
            logits: (B, h, w).
            truth: (B, h, w) in [0, 1], the share of what is scored in a cell that is foreground.
            scored: (B, h, w) in [0, 1], the share of a cell that is in the image and not void.
        """
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, weight=scored, reduction="sum") / scored.sum()
        probabilities, truth = logits.sigmoid() * scored, truth * scored
        overlap, total = (probabilities * truth).sum((1, 2)), (probabilities + truth).sum((1, 2))
        dice = 1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)
        return self.cross_entropy_weight * cross_entropy + self.dice_weight * dice.mean()

    def _batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> tuple[list[np.ndarray], Tensor, Tensor]:
        """Return images uint8 (H, W, 3) with truth and scored share (B, 4h, 4w), turned and flipped at random."""
        side, images, truths, shares = 4 * self.sam.prompt_encoder.image_embedding_size[0], [], [], []
        for sample in samples:
            turns, flipped = int(rng.integers(4)), rng.random() < 0.5
            scored = _scored(sample)
            image, scored, mask = (
                np.ascontiguousarray(np.rot90(array, turns)[:, :: -1 if flipped else 1])
                for array in (sample.images[0], scored, sample.union() & scored)
            )
            images.append(image)
            shares.append(to_grid(scored, side))
            truths.append(to_grid(mask, side) / shares[-1].clamp(min=1e-6))
        return images, torch.stack(truths).to(self.device), torch.stack(shares).to(self.device)

    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        no_prompt = embeddings.new_zeros(len(embeddings), 0, embeddings.shape[1])
        return decode_prompts(self.sam, embeddings, no_prompt)


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear warm-up, then polynomial decay towards 0."""
    warm_up = math.ceil(WARM_UP * steps)
    return (step + 1) / warm_up if step < warm_up else (1 - (step - warm_up) / (steps - warm_up)) ** DECAY


def _checked(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples, at least one, each with foreground that is scored."""
    if not len(samples):
        raise UserError("no sample to learn from: expected at least one")
    for sample in samples:
        if not (sample.union() & _scored(sample)).any():
            raise UserError(f"sample '{sample.key}' cannot be learned from: its mask is empty")
    return samples


class SAMed(TrainedSam):
    """SAMed: low-rank updates of the image encoder's attention, and the mask decoder fine-tuned.

    As published: rank 4 on the query and value projections of every block, the image encoder otherwise frozen; no
    prompt, the prompt encoder's default embedding is trained; the whole mask decoder is trained; loss 0.2
    cross-entropy + 0.8 Dice on the low-resolution output; AdamW with warm-up, decay and weight decay 0.1.

    Departures: one foreground class, so one mask with binary cross-entropy instead of a softmax over classes; Dice of
    that class alone, of each image; quarter turns and flips, without SAMed's small rotations; a short schedule, for
    few samples.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        rank: Rank of the updates.
        steps: See `TrainedSam`.
        batch_size: See `TrainedSam`.
        learning_rate: See `TrainedSam`; the authors'.
        weight_decay: See `TrainedSam`.
        seed: See `TrainedSam`.

    References:
        Zhang and Liu, Customized Segment Anything Model for Medical Image Segmentation, arXiv 2304.13785, Section 3.
        hitachinsk/SAMed, trainer.py. Hu et al., LoRA, ICLR 2022.
    """

    cross_entropy_weight, dice_weight = 0.2, 0.8

    def __init__(
        self,
        segmenter: SamSegmenter,
        rank: int = 4,
        steps: int = 300,
        batch_size: int = 8,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(segmenter, steps, batch_size, learning_rate, weight_decay, seed, rank=rank)

    def _adapt(self, **sizes: Any) -> None:
        for block in self.sam.image_encoder.blocks:
            block.attn.qkv = SeparateProjections(block.attn.qkv)
        rank = sizes["rank"]
        # With alpha = rank the update is not scaled, as in the authors' code.
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"]), self.sam.image_encoder
        )
        self.sam.prompt_encoder.no_mask_embed.requires_grad_(True)


class SeparateProjections(nn.Module):
    """SAM's fused projection to queries, keys and values as three layers, so that each can be adapted by itself.

    Args:
        projection: Linear layer from C channels to 3 C: queries, keys, values.
    """

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        for name, rows, offsets in zip(
            ("query", "key", "value"), projection.weight.chunk(3), projection.bias.chunk(3), strict=True
        ):
            layer = nn.Linear(projection.in_features, len(rows), device=rows.device)
            layer.load_state_dict({"weight": rows, "bias": offsets})
            self.add_module(name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (…, 3 C) for tokens (…, C)."""
        return torch.cat([layer(tokens) for layer in self.children()], dim=-1)


class MSA(TrainedSam):
    """MSA, the Medical SAM Adapter: two small adapters in each block of the image encoder, and the mask decoder.

    As published: an adapter is a projection to a quarter of the channels, GELU, and a projection back; one follows the
    attention, with a skip connection, the other stands beside the MLP, scaled by 0.5. The image encoder is otherwise
    frozen, and so is the prompt encoder. The mask decoder is fine-tuned as a whole, as the authors' code does (the
    paper draws adapters there too).

    Departures: no prompt, where the authors give clicks or boxes on the truth, which nobody gives here; the adapters'
    last projection starts at 0, so that training starts from SAM; cross-entropy plus Dice, which their code has for
    volumes; AdamW with ten times their learning rate, for a short schedule. Their branch for depth, which is for
    volumes alone, is left out.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        bottleneck: Channels of an embedding for one inside an adapter.
        steps: See `TrainedSam`.
        batch_size: See `TrainedSam`.
        learning_rate: See `TrainedSam`.
        weight_decay: See `TrainedSam`.
        seed: See `TrainedSam`.

    References:
        Wu et al., Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation, arXiv
        2304.12620, Section 3. MedicineToken/Medical-SAM-Adapter, models/ImageEncoder/vit/adapter_block.py.
        Houlsby et al., Parameter-efficient transfer learning for NLP, ICML 2019.
    """

    cross_entropy_weight, dice_weight = 1.0, 1.0

    def __init__(
        self,
        segmenter: SamSegmenter,
        bottleneck: int = 4,
        steps: int = 300,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(segmenter, steps, batch_size, learning_rate, weight_decay, seed, bottleneck=bottleneck)

    def _adapt(self, **sizes: Any) -> None:
        for block in self.sam.image_encoder.blocks:
            channels = block.norm1.normalized_shape[0]
            block.attn = AdapterAfter(block.attn, Adapter(channels, sizes["bottleneck"]).to(self.device))
            block.mlp = AdapterBeside(block.mlp, Adapter(channels, sizes["bottleneck"]).to(self.device))


class Adapter(nn.Sequential):
    """Down, GELU, up; 0 at first.

    Args:
        channels: Number of channels of the tokens.
        bottleneck: How many times fewer there are inside; at least one is left.
    """

    def __init__(self, channels: int, bottleneck: int) -> None:
        inside = max(1, channels // bottleneck)
        super().__init__(nn.Linear(channels, inside), nn.GELU(), nn.Linear(inside, channels))
        for weight in self[2].parameters():
            nn.init.zeros_(weight)


class AdapterAfter(nn.Module):
    """A layer and an adapter of its output, with a skip connection: y + adapter(y)."""

    def __init__(self, layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the layer and the adapter to tokens (…, C)."""
        output = self.layer(tokens)
        return output + self.adapter(output)


class AdapterBeside(nn.Module):
    """A layer and an adapter of its input: layer(x) + 0.5 · adapter(x)."""

    SCALE = 0.5

    def __init__(self, layer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the outputs of layer and adapter for tokens (…, C)."""
        return self.layer(tokens) + self.SCALE * self.adapter(tokens)


BASELINES: dict[str, type[AdaptedSam]] = {"persam": PerSAM, "samed": SAMed, "msa": MSA}
