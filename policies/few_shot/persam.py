"""Implement PerSAM, which prompts SAM by similarity to one reference object, without training.

References:
    Zhang et al., Personalize Segment Anything Model with One Shot, ICLR 2024, arXiv 2305.03048, Section 3.2.
    ZrrSkywalker/Personalize-SAM, persam.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.few_shot.adapted_sam import PREDICTED, AdaptedSam, Samples, checked, scored, to_grid
from maskgym.segmenters.points.sam import SamSegmenter


class PerSAM(AdaptedSam):
    """SAM prompted by a reference.

    Steps (Section 3.2 of the paper):
        1. The reference is the first sample, because the method is one-shot; it ignores the others.
        2. The target embedding is the mean of the reference's embedding over its mask. (Each cell weighs as much as
           the mask covers of it; in the authors' code every cell that the mask touches weighs the same.)
        3. Location prior: cosine similarity of the target with each cell of a test image. The highest cell is the
           positive point, the lowest the negative one. (The authors' code first scales the map to the image.)
        4. Target-guided attention: the similarity, standardised and through a sigmoid, is added to the decoder's
           attention from tokens to the image, which goes through the softmax again, as in the authors' code.
        5. Target-semantic prompting: the target embedding is added to the tokens at the decoder's input, and again
           before each further layer and the last attention, as in the authors' code.
        6. Cascaded post-refinement: two further decodings without guidance. The first takes the last logits as mask
           prompt, the second also takes the box of that mask. Of SAM's three masks, the one with the highest predicted
           IoU counts.

    PerSAM-F, which trains two weights, is another method.

    Args:
        segmenter: Segmenter with the weights; it is not changed.
        refinements: Number of decodings in the post-refinement; 2 as published. They need a SAM that was trained with
            mask prompts, boxes and three masks: the bundled SAM needs 0.
        predict_batch: See `AdaptedSam`.

    Raises:
        UserError: If ``refinements`` is not 0, 1 or 2.
    """

    def __init__(
        self, segmenter: SamSegmenter, refinements: int = 2, guidance: bool = True, predict_batch: int = PREDICTED
    ) -> None:
        if refinements not in (0, 1, 2):
            raise UserError(f"refinements={refinements}: expected 0, 1 or 2")
        super().__init__(segmenter, predict_batch)
        self.refinements, self.guidance = refinements, guidance
        self.target = torch.zeros(0)
        self.sam.mask_decoder.transformer = GuidedTransformer(self.sam.mask_decoder.transformer)

    @torch.inference_mode()
    def fit(self, samples: Samples) -> list[float]:
        """Compute the target embedding of the first sample; return no losses, because nothing is trained."""
        reference = checked(samples)[0]
        embedding = self._encode(reference.images[:1])[0]  # (C, h, w)
        weights = to_grid(reference.union() & scored(reference), embedding.shape[1]).to(self.device)
        self.target = (embedding * weights).sum((1, 2)) / weights.sum()  # (C,)
        return []

    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        if not len(self.target):
            raise RuntimeError("predict was called before fit: there is no target yet")
        similarity = F.cosine_similarity(embeddings, self.target[:, None, None], dim=1)  # (B, h, w)
        prompts = self._location_prior(similarity, inside)
        if self.guidance:
            self.sam.mask_decoder.transformer.guide(_attention_bias(similarity, inside), self.target)
        logits, _ = self._decode_prompts(embeddings, prompts, None, None, multimask=False)
        self.sam.mask_decoder.transformer.guide(None, None)
        if self.refinements >= 1:
            logits = self._refine(embeddings, prompts, logits, None)
        if self.refinements == 2:
            logits = self._refine(embeddings, prompts, logits, self._boxes(logits[:, 0]))
        return logits[:, 0]

    def _location_prior(self, similarity: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Find the highest and the lowest cell: points (B, 2, 2), (x, y) in pixels of the input, and labels (B, 2)."""
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
        """Compute logits (B, m, 4h, 4w) and predicted IoU (B, m); m is 3 with ``multimask``, else 1."""
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
        """Decode the points with the last logits; return the best of three masks (B, 1, 4h, 4w)."""
        masks, quality = self._decode_prompts(embeddings, points, logits, boxes, multimask=True)
        return masks.take_along_dim(quality.argmax(dim=1)[:, None, None, None], dim=1)

    def _boxes(self, logits: Tensor) -> Tensor:
        """Compute the box (B, 4) of the cells above 0, or of all cells if there are none.

        A box is two corners (x, y), in pixels of the input.
        """
        scale, boxes = self.side / logits.shape[2], []
        for mask in logits > 0:
            y, x = (mask if mask.any() else ~mask).nonzero(as_tuple=True)
            boxes.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale)
        return torch.stack(boxes)


def _attention_bias(similarity: Tensor, inside: Tensor) -> Tensor:
    """Standardise the similarity over the cells in the image and apply a sigmoid, (B, h · w) in (0, 1)."""
    count = inside.sum((1, 2), keepdim=True)
    mean = (similarity * inside).sum((1, 2), keepdim=True) / count
    variance = ((similarity - mean).square() * inside).sum((1, 2), keepdim=True) / count
    return ((similarity - mean) / variance.sqrt().clamp(min=1e-6)).sigmoid().flatten(1)


class GuidedTransformer(nn.Module):
    """SAM's two-way transformer with optional guidance to a target; without guidance it is the same function.

    Args:
        transformer: Transformer of a mask decoder; its attention from tokens to the image is wrapped in place.
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
        """Set the bias of attention (B, h · w) and the target embedding (C,); None removes guidance."""
        self.target = target
        for layer in self.transformer.layers:
            layer.cross_attn_token_to_image.bias = bias

    def _add_target(self, module: nn.Module, name: str) -> None:
        """Register a hook that adds the target, if any, to this argument of a module."""

        def hook(_: nn.Module, arguments: tuple, named: dict[str, Tensor]) -> tuple[tuple, dict[str, Tensor]]:
            return arguments, named if self.target is None else {**named, name: named[name] + self.target}

        module.register_forward_pre_hook(hook, with_kwargs=True)

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Compute tokens and image as the transformer does, with the target added to tokens (B, n, C)."""
        tokens = point_embedding if self.target is None else point_embedding + self.target
        return self.transformer(image_embedding, image_pe, tokens)


class GuidedAttention(nn.Module):
    """Attention of SAM's decoder with an optional bias over the image, added between two softmaxes.

    Args:
        attention: Attention layer of ``segment_anything``; its weights are used.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.bias: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute (B, n, C) from queries (B, n, C), keys and values (B, h · w, C)."""
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
