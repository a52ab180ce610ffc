"""Compute attention maps of images for texts with CLIP Surgery, without training.

CLIP's own map is noisy and often inverted. CLIP Surgery makes two changes. The last blocks of the image encoder get a
second path with value-to-value attention and no feed-forward part. The common part of all texts is subtracted from the
text features. The code follows the paper because the reference repository (xmed-lab/CLIP_Surgery) has no licence.

References:
    Li et al., A Closer Look at the Explainability of Contrastive Language-Image Pre-training, Pattern Recognition
    162, 111409, 2025, arXiv 2304.05653.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.frozen import check_images, chunks
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.text import split_semantic, tokenize
from maskgym.segmenters.weights import bundled

if TYPE_CHECKING:
    from transformers import CLIPConfig

EMBEDDED = Path(__file__).parent / "clip_tiny"
# The 80 templates that OpenAI CLIP uses for ImageNet (openai/CLIP, MIT), grouped; their order does not matter.
_VIEWS = (
    *("a photo", "a bad photo", "a good photo", "a bright photo", "a dark photo", "a blurry photo", "a cropped photo"),
    *("a close-up photo", "a black and white photo", "a low resolution photo", "a pixelated photo"),
    *("a jpeg corrupted photo", "a drawing", "a painting", "a sketch", "a doodle", "a rendering", "a rendition"),
    *("a sculpture", "a tattoo", "art", "graffiti", "itap"),  # "itap": I took a picture
)
_LOOKS = ("clean", "dirty", "large", "small", "nice", "weird", "cool", "hard to see")
_COPIES = ("cartoon", "embroidered", "origami", "plastic", "plushie", "toy")
_ARTICLES = ("a", "the")
TEMPLATES = (
    *(f"{view} of {article} {{}}." for view in _VIEWS for article in _ARTICLES),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in _ARTICLES),
    *(f"{article} {copy} {{}}." for copy in _COPIES for article in _ARTICLES),
    *(f"{article} {{}} in a video game." for article in _ARTICLES),
    *("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}."),
    # The five that CLIP Surgery adds.
    *(f"there is {article} {{}} in the scene." for article in _ARTICLES),
    *(f"this is {article} {{}} in the scene." for article in (*_ARTICLES, "one")),
)


class ClipSurgery(HubNetwork):
    """Attention segmenter for texts: ``attend(images, texts)``.

    Args:
        checkpoint: See `HubNetwork`; any CLIP whose image encoder is a ViT.
        input_size: Side, in pixels, of the square that images are stretched to, a multiple of the patch; a map has
            one cell per patch. None selects the side of the model's training; the paper uses 512 for finer maps.
        surgered_blocks: Number of last image blocks that get the second path, 0 to all.
        templates: Prompts with ``{}`` for the text; features are averaged over them.
        device: See `HubNetwork`.
        dtype: See `HubNetwork`.
        batch_size: Maximum number of images per forward pass.

    Raises:
        UserError: If input_size, surgered_blocks or templates do not fit; see also `HubNetwork`.
    """

    published = "openai/clip-vit-base-patch16"
    architecture = "CLIPModel"
    model_types = ("clip",)

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        input_size: int | None = None,
        surgered_blocks: int = 6,
        templates: Sequence[str] = TEMPLATES,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)
        patch, layers = self.config.vision_config.patch_size, self.config.vision_config.num_hidden_layers
        if input_size is not None and (input_size < patch or input_size % patch):
            raise UserError(f"input_size {input_size}: expected a multiple of the patch, {patch} pixels")
        if not 0 <= surgered_blocks <= layers:
            raise UserError(f"surgered_blocks {surgered_blocks}: expected 0 to {layers}, the blocks of {self.folder}")
        if not templates or not all("{}" in template for template in templates):
            raise UserError(f"templates {templates!r}: expected a list of texts with {{}} in each")
        self._input_size = input_size
        self.surgered_blocks = surgered_blocks
        self.templates = tuple(templates)

    @cached_property
    def config(self) -> CLIPConfig:
        """Config of the model."""
        from transformers import CLIPConfig

        return self._read(CLIPConfig)

    @property
    def input_size(self) -> int:
        """Side of the square that the image encoder sees, in pixels."""
        return self._input_size or self.config.vision_config.image_size

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """Stretch images, without a crop, to float (B, 3, input_size, input_size) on the device."""
        size = (self.input_size, self.input_size)
        squares = [np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
        mean, deviation = (
            torch.tensor(values)[:, None, None]
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
        return ((batch - mean) / deviation).to(self.device, self.dtype)

    @torch.inference_mode()
    def attend(
        self, images: Sequence[np.ndarray], texts: Sequence[str], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Compute the attention map of each image for its text, minus that of the empty text.

        `maskgym.segmenters.AttentionSegmenter` describes the arguments. The prefix ``[semantic]`` is ignored. Each map
        is rescaled so that its lowest cell is 0 and its highest 1; a constant map becomes 0 everywhere.

        Raises:
            ValueError: If the number of texts and images differs.
            TypeError: If the texts are one string.
            UserError: If an image is not uint8 (H, W, 3) or a text is empty.
        """
        words = _words(texts)
        if len(images) != len(words):
            raise ValueError(f"{len(images)} images but {len(words)} texts: expected one per image")
        check_images(images)
        size = size or (self.input_size, self.input_size)
        maps = [np.zeros((0, *size), np.float32)]
        for chunk in chunks(zip(images, words, strict=True), self.batch_size):
            pictures, names = zip(*chunk, strict=True)
            directions = self._text_features(names) - self._text_features([""])  # (B, C)
            similarity = self._image_features(pictures) @ directions[:, :, None]  # (B, 1 + N, 1)
            maps.append(to_maps(similarity, size)[:, 0].cpu().numpy())
        return np.concatenate(maps)

    @torch.inference_mode()
    def attend_set(
        self, images: Sequence[np.ndarray], texts: Sequence[str], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Compute the attention maps of each image for several texts, minus the common part of the texts.

        Each map depends on all texts of the set, so the set should hold the rival categories of a data set.

        Args:
            images: B arrays, uint8 (H_i, W_i, 3) RGB, of any sizes.
            texts: n texts, at least two, for every image.
            size: (height, width) of the maps; None selects the input's square.

        Returns:
            float32 (B, n, h, w) in [0, 1], rescaled as in `attend`.

        Raises:
            TypeError: If the texts are one string.
            UserError: If there are fewer than two texts, one is empty, or an image is not uint8 (H, W, 3).
        """
        words = _words(texts)
        if len(words) < 2:
            raise UserError(
                f"a set of {len(words)} texts: expected at least two, because their common part is subtracted"
            )
        check_images(images)
        size = size or (self.input_size, self.input_size)
        features = self._text_features(words)
        maps = [np.zeros((0, len(words), *size), np.float32)]
        for pictures in chunks(images, self.batch_size):
            similarity = set_similarity(self._image_features(pictures), features)
            maps.append(to_maps(similarity, size).cpu().numpy())
        return np.concatenate(maps)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Compute the features that CLIP compares with images, float32 (n, C) of unit length, means over the templates.

        Raises:
            TypeError: If the texts are one string.
            UserError: If a text is empty.
        """
        return self._text_features(_words(texts)).clone()

    def _image_features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute features float32 (B, 1 + N, C) of unit length."""
        tokens = surgered_tokens(self.network.vision_model, self.pixels(images), self.surgered_blocks)
        return F.normalize(project(self.network, tokens).float(), dim=-1)

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Look up features float32 (n, C) of unit length; each text is encoded once."""
        for text in texts:
            if text not in self._encoded_texts:
                prompts = [template.format(text) for template in self.templates]
                ids, _ = tokenize(self.tokenizer, prompts, self.config.text_config.max_position_embeddings)
                self._encoded_texts[text] = encode_text(self.network, ids.to(self.device))
        return torch.stack([self._encoded_texts[text] for text in texts])

    @cached_property
    def _encoded_texts(self) -> dict[str, Tensor]:
        return {}

    def _identity(self) -> tuple[str, list[Path]]:
        config, files = super()._identity()
        return f"{self.input_size} {self.surgered_blocks} {self.templates} {config}", files


def clip_tiny(device: str | None = None, dtype: str = "float32", batch_size: int = 64) -> ClipSurgery:
    """Build CLIP Surgery on the bundled CLIP, trained on captions of synthetic scenes."""
    return ClipSurgery(bundled(EMBEDDED), templates=("{}",), device=device, dtype=dtype, batch_size=batch_size)


def embed(vision: nn.Module, pixels: Tensor) -> Tensor:
    """Compute the tokens (B, 1 + N, D) that enter the first block from square pixels (B, 3, S, S) of any side.

    The table of positions is resized bilinearly, as in the paper; transformers resizes it bicubically.
    """
    embeddings = vision.embeddings
    patches = embeddings.patch_embedding(pixels)  # (B, D, g, g)
    table = embeddings.position_embedding.weight
    side = isqrt(len(table) - 1)
    grid = table[1:].T.reshape(1, -1, side, side).float()
    positions = F.interpolate(grid, patches.shape[-2:], mode="bilinear", align_corners=False).to(patches.dtype)
    patches = (patches + positions).flatten(2).transpose(1, 2)  # (B, N, D)
    whole = (embeddings.class_embedding + table[0]).expand(len(patches), 1, -1)
    return vision.pre_layrnorm(torch.cat([whole, patches], dim=1))


def surgered_layer(layer: nn.Module, original: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both paths (B, T, D) after one block of CLIP.

    The new path adds value-to-value attention without a feed-forward part. Its values are those of the original path.
    """
    attention = layer.self_attn
    hidden = layer.layer_norm1(original)
    query, key, value = (
        linear(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, heads, T, d)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )

    def attend(first: Tensor, second: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(first, second, value)
        return attention.out_proj(mixed.transpose(1, 2).flatten(2))

    new = new + attend(value, value)
    original = original + attend(query, key)
    return original + layer.mlp(layer.layer_norm2(original)), new


def surgered_tokens(vision: nn.Module, pixels: Tensor, blocks: int) -> Tensor:
    """Compute tokens (B, 1 + N, D): the class token of the original path and the image tokens of the new path.

    Args:
        vision: The ``vision_model`` of a ``CLIPModel``.
        pixels: float (B, 3, S, S).
        blocks: Number of last blocks with the new path.
    """
    layers = list(vision.encoder.layers)
    original = embed(vision, pixels)
    for layer in layers[: len(layers) - blocks]:
        original = layer(original, attention_mask=None)
    new = original
    for layer in layers[len(layers) - blocks :]:
        original, new = surgered_layer(layer, original, new)
    return torch.cat([original[:, :1], new[:, 1:]], dim=1)


def project(model: nn.Module, tokens: Tensor) -> Tensor:
    """Project tokens to features (B, 1 + N, C) in the space that CLIP compares with texts."""
    return model.visual_projection(model.vision_model.post_layernorm(tokens))


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """Average the unit features of prompts, ids int64 (prompts, T), to float32 (C,) of unit length."""
    features = model.get_text_features(input_ids=ids).pooler_output.float()
    return F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1)


def set_similarity(features: Tensor, texts: Tensor) -> Tensor:
    """Compute the similarity (B, 1 + N, n) of tokens and texts, minus the common part of the weighted texts.

    Args:
        features: (B, 1 + N, C) of unit length, the class token first.
        texts: (n, C) of unit length. Texts that fit the whole image weigh more; the factor 2 is the reference's and
            replaces CLIP's own temperature.
    """
    weights = (2 * features[:, 0] @ texts.T).softmax(dim=-1)  # (B, n)
    weighted = (weights / weights.mean(dim=-1, keepdim=True))[:, :, None] * texts  # (B, n, C)
    return features @ (weighted - weighted.mean(dim=1, keepdim=True)).transpose(1, 2)


def to_maps(similarity: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert similarities (B, 1 + N, n) of a class token and a square grid to maps (B, n, height, width) in [0, 1]."""
    grid = _grid(similarity[:, 1:].transpose(1, 2))
    low, high = grid.amin(dim=(2, 3), keepdim=True), grid.amax(dim=(2, 3), keepdim=True)
    grid = torch.where(high > low, (grid - low) / (high - low), 0.0)
    return F.interpolate(grid, size, mode="bilinear", align_corners=False).clamp(0, 1)


def extreme_points(similarity: Tensor, size: tuple[int, int], threshold: float = 0.8) -> tuple[Tensor, Tensor]:
    """Select the points that prompt SAM in the paper: the best cells for the text, and equally many worst cells.

    Args:
        similarity: (1 + N,) of one image and text; its grid is halved first.
        size: (height, width) of the image.
        threshold: Share of the range from which a cell counts as one of the best; at most half of the cells count.

    Returns:
        int64 (k, 2), (x, y) in pixels, and labels int64 (k,): 1 for the best, 0 for the worst, each in ascending order.
    """
    grid = _grid(similarity[None, None, 1:])
    side = grid.shape[-1] // 2
    cells = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False).flatten()
    least = cells.min() + threshold * (cells.max() - cells.min())
    count = min(int((cells >= least).sum()), len(cells) // 2)
    order = cells.argsort()
    chosen = torch.cat([order[len(order) - count :], order[:count]])
    places = torch.stack([chosen % side, chosen // side], dim=1)  # (x, y) of cells
    extent = torch.tensor(size[::-1], device=places.device)
    points = ((places + 0.5) * extent / side).minimum(extent - 1).long()
    return points, (torch.arange(2 * count, device=places.device) < count).long()


def _grid(tokens: Tensor) -> Tensor:
    """Reshape image tokens (B, n, g²), row by row, to (B, n, g, g)."""
    return tokens.unflatten(-1, (isqrt(tokens.shape[-1]), -1))


def _words(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts are one string: expected a list of strings")
    words = [split_semantic(text)[1] for text in texts]
    if "" in words:
        raise UserError(f"text {words.index('')} is empty: expected the name of something")
    return words
