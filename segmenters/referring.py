"""What every referring segmenter shares: check, encode each image once, batch the phrases, bring masks back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .text import uniform_phrase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ReferringSegmenter(ABC):
    """Masks for phrases: ``segment(images, expressions)``.

    Construction reads at most a config. The network is loaded at first use, in the process that uses it, and is
    left behind when the segmenter is pickled.

    A subclass gives `input_size`, `_load`, `_encode`, `_decode`, and, where its input is not the image stretched
    to a square, `_resize`.

    Args:
        device: A PyTorch device; ``None`` takes CUDA where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``: the precision of weights and activations.
        batch_size: Most images encoded, and most phrases decoded, at a time.

    Raises:
        UserError: If the device or dtype is unknown, or batch_size is below 1.
    """

    def __init__(self, device: str | None = None, dtype: str = "float32", batch_size: int = 4) -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: expected at least 1")
        self.dtype = DTYPES[dtype]
        self.batch_size = batch_size
        self._device = device

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Return the side, in pixels, of the square that the image encoder sees."""

    @abstractmethod
    def _load(self) -> nn.Module:
        """Return the network on the CPU, in `dtype`."""

    @abstractmethod
    def _encode(self, images: list[np.ndarray]) -> Any:
        """Return what `_decode` needs of B images."""

    @abstractmethod
    def _decode(self, encoded: Any, phrases: list[str], image_index: Tensor) -> Tensor:
        """Return mask logits (P, h, w) of P phrases, phrase p on image ``image_index[p]`` of the encoded ones."""

    @abstractmethod
    def _identity(self) -> tuple[str, list[Path]]:
        """Return a text and files that, together, fix what this segmenter computes."""

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring logits (P, h, w) of one image to its own (height, width)."""
        return F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]

    @cached_property
    def device(self) -> torch.device:
        """Return the device the network is on."""
        try:
            return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise UserError(f"device '{self._device}': {str(error).splitlines()[0]}") from error

    @cached_property
    def network(self) -> nn.Module:
        """Return the network, frozen, in evaluation mode, on `device`; the first call loads it."""
        with torch.inference_mode(False):  # tensors made inside `segment` could never take part in training
            return self._load().to(self.device).eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the weights, the settings and the precision."""
        text, files = self._identity()
        digest = hashlib.sha256(f"{type(self).__name__} {self.dtype} {text}".encode())
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded parts behind: the receiving process loads its own."""
        kind = type(self)
        return {n: value for n, value in vars(self).items() if not isinstance(getattr(kind, n, None), cached_property)}

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Segment what each expression refers to in its image.

        Images with equal pixels are encoded once a call, and equal phrases on them decoded once.

        Args:
            images: uint8 (H_i, W_i, 3) RGB arrays, of any sizes.
            expressions: For each image, n_i phrases; n_i may be 0. ``[semantic] `` in front asks for all regions
                of a class instead of one object.

        Returns:
            For each image float32 (n_i, H_i, W_i) probabilities in [0, 1]; the binary mask is ``> 0.5``.

        Raises:
            ValueError: If the lengths differ or an image is not uint8 (H, W, 3).
            TypeError: If the expressions of an image are one string.
        """
        _check(images, expressions)
        phrases = [[uniform_phrase(phrase) for phrase in row] for row in expressions]
        keys = [_pixels_key(image) for image in images]
        wanted: dict[bytes, tuple[np.ndarray, dict[str, None]]] = {}
        for key, image, row in zip(keys, images, phrases, strict=True):
            if row:
                wanted.setdefault(key, (image, {}))[1].update(dict.fromkeys(row))
        masks: dict[tuple[bytes, str], np.ndarray] = {}
        for chunk in _chunks(wanted.items(), self.batch_size):
            rows = [(key, phrase) for key, (_, unique) in chunk for phrase in unique]
            masks.update(zip(rows, self._segment_chunk([entry for _, entry in chunk]), strict=True))
        return [
            np.stack([masks[key, phrase] for phrase in row]) if row else np.zeros((0, *image.shape[:2]), np.float32)
            for key, image, row in zip(keys, images, phrases, strict=True)
        ]

    def _segment_chunk(self, entries: list[tuple[np.ndarray, dict[str, None]]]) -> Iterator[np.ndarray]:
        """Yield float32 (H, W) probabilities for each phrase of each image, in order."""
        encoded = self._encode([image for image, _ in entries])
        flat = [(index, phrase) for index, (_, unique) in enumerate(entries) for phrase in unique]
        low = []
        for chunk in _chunks(flat, self.batch_size):
            index = torch.tensor([index for index, _ in chunk], device=self.device)
            low.append(self._decode(encoded, [phrase for _, phrase in chunk], index))
        per_image = torch.cat(low).split([len(unique) for _, unique in entries])
        for logits, (image, _) in zip(per_image, entries, strict=True):
            yield from self._resize(logits, image.shape[:2]).sigmoid().float().cpu().numpy()


def _check(images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> None:
    if len(images) != len(expressions):
        raise ValueError(f"{len(images)} images but {len(expressions)} lists of expressions: expected one an image")
    for index, (image, row) in enumerate(zip(images, expressions, strict=True)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image {index} is {image.dtype} {image.shape}: expected uint8 (H, W, 3)")
        if isinstance(row, str):
            raise TypeError(f"expressions of image {index} are one string: expected a list of strings")


def _pixels_key(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
