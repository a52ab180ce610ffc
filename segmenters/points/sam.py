"""Segment points and boxes with the ``Sam`` of the ``segment_anything`` package.

References:
    Kirillov et al., Segment Anything, ICCV 2023. Code and checkpoints: facebookresearch/segment-anything (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.segmenters.encodings import CACHE_BYTES, CACHE_FOLDER_BYTES, GIB, CacheLimits
from maskgym.segmenters.frozen import AUTO
from maskgym.segmenters.points.promptable import PromptableSegmenter
from maskgym.segmenters.weights import (
    bundled,
    check_sizes,
    find_weights,
    load_strictly,
    read_state,
    weight_files,
    weights_file,
    with_dtype,
    without_weights,
    write_state,
    write_text,
)

PIXEL_MEAN = (123.675, 116.28, 103.53)  # on the scale 0 to 255
PIXEL_DEVIATION = (58.395, 57.12, 57.375)
CONSTANTS = ("pixel_mean", "pixel_std")  # some tools save these two with the weights
GAUSSIAN_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"  # float32 in every precision
EMBEDDED = Path(__file__).parent / "sam_tiny"
PREPARED = 4  # images that are prepared at a time


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM; the defaults are ViT-H, as in EVF-SAM."""

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    use_rel_pos: bool = True
    prompt_embed_dim: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_dim: int = 256

    @classmethod
    def from_json(cls, values: JsonObject) -> SamConfig:
        """Build the config from parsed JSON, in which tuples are lists.

        Raises:
            KeyError, TypeError, ValueError: If a size is missing, unknown or malformed.
        """
        config = cls(**{**values, "global_attention_layers": tuple(values["global_attention_layers"])})
        check_sizes(config)
        return config

    def build(self) -> Sam:
        """Build a randomly initialised ``segment_anything`` model of these sizes."""
        grid = self.image_size // self.patch_size
        return Sam(
            image_encoder=ImageEncoderViT(
                img_size=self.image_size,
                patch_size=self.patch_size,
                embed_dim=self.embed_dim,
                depth=self.depth,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                out_chans=self.prompt_embed_dim,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=self.use_rel_pos,
                window_size=self.window_size,
                global_attn_indexes=self.global_attention_layers,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=self.prompt_embed_dim,
                image_embedding_size=(grid, grid),
                input_image_size=(self.image_size, self.image_size),
                mask_in_chans=self.mask_channels,
            ),
            mask_decoder=MaskDecoder(
                transformer_dim=self.prompt_embed_dim,
                transformer=TwoWayTransformer(
                    depth=self.decoder_depth,
                    embedding_dim=self.prompt_embed_dim,
                    num_heads=self.decoder_num_heads,
                    mlp_dim=self.decoder_mlp_dim,
                ),
                iou_head_hidden_dim=self.iou_head_dim,
            ),
            pixel_mean=list(PIXEL_MEAN),
            pixel_std=list(PIXEL_DEVIATION),
        )


# The width of the image encoder identifies a published model.
PUBLISHED = {
    "vit_b": SamConfig(embed_dim=768, depth=12, num_heads=12, global_attention_layers=(2, 5, 8, 11)),
    "vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_attention_layers=(5, 11, 17, 23)),
    "vit_h": SamConfig(),
}
PUBLISHED_FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}


class SamSegmenter(PromptableSegmenter):
    """Promptable segmenter with a SAM of ``segment_anything``.

    Masks are SAM's single output (token 0), which is the one trained for several points.

    Args:
        checkpoint: A published ``.pth``, a folder that holds one under its published name (`PUBLISHED_FILES`), or a
            folder that `save_sam` wrote, with its own config.
        model: ``vit_b``, ``vit_l`` or ``vit_h``, which also selects among the files of a folder; ``auto`` infers it
            from the weights.
        device: See `PromptableSegmenter`.
        dtype: See `PromptableSegmenter`.
        batch_size: Maximum number of sets of points per forward pass of the decoder.
        encode_batch_size: See `PromptableSegmenter.set_encoding`.
        embedding_dtype: See `PromptableSegmenter.set_encoding`.
        cache_bytes: See `maskgym.segmenters.encodings.CacheLimits`. An embedding of the published models takes 4 MiB,
            or 2 MiB in half precision.
        cache_folder: See `CacheLimits`.
        cache_folder_bytes: See `CacheLimits`.

    Raises:
        UserError: If a file is missing or cannot be read, or belongs to another model, or a folder holds several. The
            content of the weights is checked at first use.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        model: str = "auto",
        device: str | None = None,
        dtype: str = AUTO,
        batch_size: int = 16,
        encode_batch_size: int | str = AUTO,
        embedding_dtype: str = AUTO,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: str | Path | None = None,
        cache_folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        super().__init__(device, dtype, batch_size)
        limits = CacheLimits(cache_bytes, cache_folder, cache_folder_bytes)
        self.set_encoding(encode_batch_size, embedding_dtype, limits)
        if checkpoint is None:
            raise UserError("segmenter 'sam' needs checkpoint=PATH: a file such as sam_vit_b_01ec64.pth, or its folder")
        if model not in ("auto", *PUBLISHED):
            raise UserError(f"segmenter.model={model}: expected auto, {', '.join(PUBLISHED)}")
        path = Path(checkpoint).expanduser()
        names = list(PUBLISHED_FILES.values()) if model == "auto" else [PUBLISHED_FILES[model]]
        own = (path / "config.json").is_file()
        there = any((path / name).is_file() for name in names)
        self.weights_file = find_weights(path) if own and not there else weights_file(path, names)
        self.model = model
        self.own_config = read_config(path / "config.json") if own else None

    @property
    def input_size(self) -> int:
        """Side of SAM's square input, in pixels."""
        return (self.own_config or PUBLISHED["vit_h"]).image_size  # the published models share this size

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of one image's embedding."""
        config = self.own_config or PUBLISHED["vit_h"]
        grid = config.image_size // config.patch_size
        return config.prompt_embed_dim, grid, grid

    def load(self, dtype: torch.dtype) -> Sam:
        """Load another copy of the network on the CPU, in a precision of its own, such as float32 for training."""
        state = read_state(self.weights_file)
        found = self.own_config or published_config(state, self.weights_file, self.model)
        return load_sam(found, state, self.weights_file, dtype)

    def _load(self) -> Sam:
        return self.load(self.dtype)

    def _identity(self) -> tuple[str, list[Path]]:
        text = json.dumps(asdict(self.own_config)) if self.own_config else self.model
        return text, weight_files(self.weights_file)

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        prepare = partial(sam_pixels, size=self.input_size)
        if len(images) == 1:
            pixels = prepare(images[0])[None]
        else:  # At full size, preparing an image takes a core about as long as encoding it takes a GPU.
            with ThreadPoolExecutor(min(PREPARED, len(images))) as pool:
                pixels = torch.stack(list(pool.map(prepare, images)))
        return self.network.image_encoder(pixels.to(self.device, self.dtype))

    def _decode(self, embeddings: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        return decode_points(self.network, embeddings, points, labels, boxes)


def sam_tiny(
    device: str | None = None, dtype: str = "float32", batch_size: int = 64, cache_bytes: int = GIB
) -> SamSegmenter:
    """Build the bundled SAM, trained on synthetic scenes with clicks, boxes, and clicks beside a box.

    It is too small to gain from less precision, or from embeddings on disk.
    """
    return SamSegmenter(
        bundled(EMBEDDED),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        embedding_dtype=dtype,
        cache_bytes=cache_bytes,
    )


def decode_points(sam: Sam, embeddings: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None = None) -> Tensor:
    """Compute low-resolution mask logits (B, 4h, 4w), one row per image.

    Args:
        sam: The model.
        embeddings: (B, C, h, w).
        points: float (B, k, 2), (x, y) in pixels of the model's input.
        labels: (B, k), 1 foreground, 0 background.
        boxes: float (B, 4), (left, top, right, bottom) in the same pixels, or None; k may be 0 where there are boxes.
    """
    sparse, _ = sam.prompt_encoder(points=(points, labels) if points.shape[1] else None, boxes=boxes, masks=None)
    return decode_prompts(sam, embeddings, sparse.to(embeddings.dtype))


def decode_prompts(sam: Sam, embeddings: Tensor, prompts: Tensor) -> Tensor:
    """Compute low-resolution mask logits (B, 4h, 4w) from embeddings (B, C, h, w) and sparse prompts (B, k, C).

    SAM's decoder repeats one image for all prompts and adds a dense prompt to each. Because the two are only added, the
    function swaps them: it passes the images as dense prompts and the no-mask embedding as the image. One call of the
    unchanged decoder then decodes prompts of different images.
    """
    _, no_mask = sam.prompt_encoder(points=None, boxes=None, masks=None)  # (1, C, h, w)
    logits, _ = sam.mask_decoder(
        image_embeddings=no_mask,
        image_pe=sam.prompt_encoder.get_dense_pe().to(embeddings.dtype),
        sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=embeddings,
        multimask_output=False,
    )
    return logits[:, 0]


def resized_size(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Scale (height, width) so that the longer side is ``longer``, rounded half up, and no side is without a pixel."""
    height, width = size
    scale = longer / max(size)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def sam_pixels(image: np.ndarray, size: int) -> Tensor:
    """Resize an image to SAM's input float32 (3, size, size), aspect ratio kept, padded right and below.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Side of the square, pixels.
    """
    height, width = resized_size(image.shape[:2], size)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.zeros(3, size, size)
    filled = pixels[:, :height, :width]  # in place, which takes half the time of further copies
    filled.copy_(torch.from_numpy(resized).permute(2, 0, 1))
    filled.sub_(torch.tensor(PIXEL_MEAN)[:, None, None]).div_(torch.tensor(PIXEL_DEVIATION)[:, None, None])
    return pixels


def published_config(state: Mapping[str, Tensor], file: Path, model: str = "auto") -> SamConfig:
    """Infer the config of published weights from the width of their image encoder.

    Raises:
        UserError: If the weights fit no published model, or a model other than ``model``.
    """
    positions = state.get("image_encoder.pos_embed")
    if positions is None:
        raise UserError(f"{file}: holds no image_encoder.pos_embed: expected the weights of a SAM of segment_anything")
    found = next((name for name, config in PUBLISHED.items() if config.embed_dim == positions.shape[-1]), None)
    if found is None or model not in ("auto", found):
        wanted = ", ".join(PUBLISHED) if model == "auto" else model
        raise UserError(f"{file}: is a {found or f'SAM of width {positions.shape[-1]}'}: expected {wanted}")
    return PUBLISHED[found]


def read_config(file: Path) -> SamConfig:
    """Read the ``config.json`` that `save_sam` wrote.

    Raises:
        UserError: If the file is missing or cannot be read.
    """
    try:
        values = json.loads(file.read_text())
        if "model_type" in values:
            raise UserError(
                f"{file}: is of a model of transformers: expected segmenter=sam_hf, sam2, or another folder"
            )
        return SamConfig.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the config of a SAM: {error}") from error


def load_sam(config: SamConfig, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype = torch.float32) -> Sam:
    """Load a SAM with the given weights on the CPU, without random initialisation.

    Raises:
        UserError: If the weights do not fit the config; the message names ``source``.
    """
    sam = without_weights(config.build, source)
    load_strictly(sam, with_dtype(state, dtype, GAUSSIAN_MATRIX), source, ignore=CONSTANTS)
    restore_constants(sam)
    return sam


def restore_constants(sam: nn.Module) -> None:
    """Restore the two constants outside the state dict of a SAM built on the meta device."""
    sam.pixel_mean = torch.tensor(PIXEL_MEAN)[:, None, None]
    sam.pixel_std = torch.tensor(PIXEL_DEVIATION)[:, None, None]


def save_sam(folder: str | Path, sam: Sam, config: SamConfig, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that `SamSegmenter` loads: ``config.json`` and ``model.safetensors``, stored as ``dtype``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(with_dtype(sam.state_dict(), dtype, GAUSSIAN_MATRIX), folder / "model.safetensors")
    write_text(json.dumps(asdict(config), indent=2) + "\n", folder / "config.json")
