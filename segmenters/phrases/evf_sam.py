"""Segment phrases with EVF-SAM, a SAM with one prompt that BEiT-3 computes from image and phrase.

BEiT-3 reads the image and the words together (early fusion). Its projected class token is the single sparse prompt of
SAM's mask decoder. The state-dict names are those of the published checkpoints.

References:
    Zhang et al., EVF-SAM: Early Vision-Language Fusion for Text-Prompted Segment Anything Model,
    arXiv 2406.20076. Reference code: hustvl/EVF-SAM (Apache-2.0).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.encodings import CACHE_BYTES, CACHE_FOLDER_BYTES, CacheLimits
from maskgym.segmenters.frozen import AUTO
from maskgym.segmenters.phrases.beit3 import Beit3, Beit3Config
from maskgym.segmenters.phrases.referring import Encoded, ReferringNetwork
from maskgym.segmenters.points.sam import (
    CONSTANTS,
    SamConfig,
    decode_prompts,
    resized_size,
    restore_constants,
    sam_pixels,
)
from maskgym.segmenters.text import find_tokenizer, load_tokenizer, tokenize
from maskgym.segmenters.weights import (
    bundled,
    check_sizes,
    find_weights,
    load_strictly,
    read_state,
    weight_files,
    with_dtype,
    without_weights,
    write_state,
    write_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SAM computes positions from this buffer in float32, independent of the precision of the weights.
GAUSSIAN_MATRIX = "visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
UNUSED_BUFFERS = tuple(f"visual_model.{name}" for name in CONSTANTS)
EMBEDDED = Path(__file__).parent / "evf_sam_tiny"
PREPARED = 4  # images that are prepared at a time


@dataclass(frozen=True)
class EvfSamConfig:
    """Sizes of an EVF-SAM; the defaults are those of ``evf-sam`` and ``evf-sam-multitask``: SAM ViT-H, BEiT-3 large."""

    sam: SamConfig = field(default_factory=SamConfig)
    beit3: Beit3Config = field(default_factory=Beit3Config)


class EvfSam(nn.Module):
    """EVF-SAM network, which encodes each image once and batches phrases of several images.

    In all methods B counts images, P phrases, and ``image_index`` (int64, (P,)) names the image of each phrase.

    Example:
        >>> sam = SamConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, window_size=0,
        ...                 global_attention_layers=(), prompt_embed_dim=16, decoder_num_heads=2)
        >>> beit3 = Beit3Config(image_size=16, patch_size=8, vocabulary_size=9, embed_dim=16, num_heads=2,
        ...                     feed_forward_dim=32, depth=1)
        >>> model = EvfSam(EvfSamConfig(sam, beit3))
        >>> index = torch.tensor([0, 0, 1])
        >>> prompts = model.embed_prompts(torch.zeros(2, 3, 16, 16), torch.tensor([[0, 5, 2]] * 3), None, index)
        >>> model.decode(model.encode_images(torch.zeros(2, 3, 32, 32)), prompts, index).shape
        torch.Size([3, 16, 16])
    """

    def __init__(self, config: EvfSamConfig) -> None:
        super().__init__()
        self.config = config
        width = config.beit3.embed_dim
        self.visual_model = config.sam.build()
        self.mm_extractor = nn.ModuleDict({"beit3": Beit3(config.beit3)})
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam.prompt_embed_dim))
        self.text_hidden_fcs = nn.ModuleList([projection])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Compute SAM's embeddings (B, C, h, w) of pixels float (B, 3, S, S) from `sam_pixels`."""
        return self.visual_model.image_encoder(pixels)

    def embed_prompts(
        self, pixels: Tensor, input_ids: Tensor, padding_mask: Tensor | None, image_index: Tensor
    ) -> Tensor:
        """Compute one prompt per phrase.

        Args:
            pixels: float (B, 3, s, s) from `beit3_pixels`.
            input_ids: int64 (P, T), padded on the right.
            padding_mask: bool (P, T), True at padding; None without padding.
            image_index: int64 (P,), the image of each phrase.

        Returns:
            float (P, C).
        """
        features = self.mm_extractor["beit3"](pixels, input_ids, padding_mask, image_index)
        return self.text_hidden_fcs[0](features[:, 0])

    def decode(self, embeddings: Tensor, prompts: Tensor, image_index: Tensor) -> Tensor:
        """Compute low-resolution mask logits (P, 4h, 4w) from embeddings (B, C, h, w) and prompts (P, C)."""
        return decode_prompts(self.visual_model, embeddings[image_index], prompts[:, None])

    def resize(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Resize low-resolution logits (P, 4h, 4w) of one image to its (height, width), in float32."""
        resized = resized_size(original_size, self.config.sam.image_size)
        return self.visual_model.postprocess_masks(logits[:, None].float(), resized, original_size)[:, 0]


def beit3_pixels(image: np.ndarray, size: int) -> Tensor:
    """Stretch an image to BEiT-3's square input, float32 (3, size, size) in about [-1, 1].

    The resize is bicubic on floats without antialiasing and clamping, as in the training of the checkpoints.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Side of the square, pixels.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255.0
    pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", align_corners=False)[0]
    return (pixels - 0.5) / 0.5


class EvfSamSegmenter(ReferringNetwork):
    """Referring segmenter with EVF-SAM.

    Args:
        checkpoint: A folder with ``config.json``, weights (``model.safetensors`` or ``pytorch_model.bin``, whole or in
            shards) and a tokenizer (``tokenizer.json``, ``sentencepiece.bpe.model`` or ``beit3.spm``): a download of
            ``evf-sam`` or ``evf-sam-multitask``, or a folder that `save_checkpoint` wrote. Or one weights file; without
            a ``config.json`` in its folder, it has the published config.
        tokenizer: File or folder of the tokenizer; None selects the folder of the weights.
        device: See `ReferringNetwork`.
        dtype: See `ReferringNetwork`.
        batch_size: See `ReferringNetwork`.
        cache_bytes: See `maskgym.segmenters.encodings.CacheLimits`. The published model's encoding of an image takes
            2.4 MB in half precision.
        cache_folder: See `CacheLimits`.
        cache_folder_bytes: See `CacheLimits`.

    Raises:
        UserError: If a file is missing or cannot be read, or names or shapes of the weights do not fit the config, or a
            bound is negative.
            The content of the weights is checked at first use.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str | None = None,
        dtype: str = AUTO,
        batch_size: int = 4,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: str | Path | None = None,
        cache_folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        super().__init__(device, dtype, batch_size)
        self.cache_limits = CacheLimits(cache_bytes, cache_folder, cache_folder_bytes)
        if checkpoint is None:
            raise UserError(
                "segmenter 'evf_sam' needs checkpoint=PATH: a folder like evf-sam-multitask, or its weights"
            )
        path = Path(checkpoint).expanduser()
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint: expected a folder or a file of weights")
        self.weights_file = path if path.is_file() else find_weights(path)
        self.config = read_config(self.weights_file.parent / "config.json", optional=path.is_file())
        self.tokenizer_file = find_tokenizer(Path(tokenizer).expanduser() if tokenizer else self.weights_file.parent)

    @property
    def input_size(self) -> int:
        """Side of SAM's square input, in pixels."""
        return self.config.sam.image_size

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer; the first access loads it."""
        return load_tokenizer(self.tokenizer_file, self.config.beit3.vocabulary_size)

    def _load(self) -> EvfSam:
        return load_model(self.config, self.weights_file, self.dtype)

    def _identity(self) -> tuple[str, list[Path]]:
        return json.dumps(asdict(self.config)), [*weight_files(self.weights_file), self.tokenizer_file]

    def encode(self, images: list[np.ndarray]) -> Encoded:
        """Compute SAM's embeddings (B, C, h, w), and the pixels (B, 3, s, s) that BEiT-3 reads with each phrase."""
        # At full size, preparing an image takes a core about as long as encoding it takes a GPU.
        with ThreadPoolExecutor(min(PREPARED, len(images))) as pool:
            sam = torch.stack(list(pool.map(partial(sam_pixels, size=self.config.sam.image_size), images)))
            beit3 = torch.stack(list(pool.map(partial(beit3_pixels, size=self.config.beit3.image_size), images)))
        return self.network.encode_images(sam.to(self.device, self.dtype)), beit3.to(self.device, self.dtype)

    def _decode(self, encoded: Encoded, phrases: list[str], image_index: Tensor) -> Tensor:
        embeddings, pixels = encoded
        ids, padding = tokenize(self.tokenizer, phrases, self.config.beit3.max_text_tokens)
        prompts = self.network.embed_prompts(pixels, ids.to(self.device), padding.to(self.device), image_index)
        return self.network.decode(embeddings, prompts, image_index)

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return self.network.resize(logits, size)


def evf_sam_tiny(
    device: str | None = None, dtype: str = "float32", batch_size: int = 64, cache_bytes: int = 0
) -> EvfSamSegmenter:
    """Build the bundled EVF-SAM, trained on scenes; it is too small to gain from less precision or a cache."""
    return EvfSamSegmenter(
        bundled(EMBEDDED), device=device, dtype=dtype, batch_size=batch_size, cache_bytes=cache_bytes
    )


def read_config(file: Path, optional: bool = False) -> EvfSamConfig:
    """Read the ``config.json`` of `save_checkpoint` or of a published checkpoint.

    Args:
        file: The file.
        optional: Whether a missing file selects the published sizes.

    Raises:
        UserError: If the file is missing or cannot be read, or names sizes that are not implemented.
    """
    if optional and not file.exists():
        return EvfSamConfig()
    try:
        values = json.loads(file.read_text())
        if "beit3" in values:
            beit3 = Beit3Config(**values["beit3"])
            check_sizes(beit3)
            return EvfSamConfig(SamConfig.from_json(values["sam"]), beit3)
        scales = values.get("sam_scale", "huge"), values.get("mm_extractor_scale", "large")
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file: expected the config of an EVF-SAM") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the config of an EVF-SAM: {error}") from error
    if scales != ("huge", "large"):
        raise UserError(f"{file}: sam_scale and mm_extractor_scale are {scales}: expected ('huge', 'large')")
    return EvfSamConfig()


def load_model(config: EvfSamConfig, weights_file: Path, dtype: torch.dtype = torch.float32) -> EvfSam:
    """Load the network with the given weights on the CPU, without random initialisation.

    Raises:
        UserError: If the weights cannot be read or do not fit the config.
    """
    state = with_dtype(read_state(weights_file), dtype, GAUSSIAN_MATRIX)
    model = without_weights(partial(EvfSam, config), weights_file)
    load_strictly(model, state, weights_file, ignore=UNUSED_BUFFERS)
    restore_constants(model.visual_model)
    return model


def save_checkpoint(
    folder: str | Path, model: EvfSam, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32
) -> None:
    """Write a folder that `EvfSamSegmenter` loads: ``config.json``, ``model.safetensors`` and the tokenizer.

    Args:
        folder: Target folder, created if missing; files of an earlier checkpoint are replaced.
        model: The network.
        tokenizer: Saved as ``tokenizer.json``.
        dtype: Precision of the stored weights; ``torch.float16`` halves the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(tokenizer.backend_tokenizer.to_str(pretty=True), folder / "tokenizer.json")
    write_state(with_dtype(model.state_dict(), dtype, GAUSSIAN_MATRIX), folder / "model.safetensors")
    write_text(json.dumps(asdict(model.config), indent=2) + "\n", folder / "config.json")
