"""Load and identify frozen networks: the base class of segmenters."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from maskgym.aliases import Settings
from maskgym.errors import UserError

_Item = TypeVar("_Item")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"  # the precision that suits the device


class FrozenNetwork(ABC):
    """Network used for inference only.

    Construction reads at most a config. The network is loaded at first use, in the process that uses it, and pickling
    drops it.

    A subclass implements `input_size`, `_load` and `_identity`.

    Args:
        device: PyTorch device; ``None`` selects CUDA if available.
        dtype: Precision of weights and activations: ``float32``, ``bfloat16`` or ``float16``; ``auto`` selects
            bfloat16 on a GPU that computes in it, else float32.
        batch_size: Maximum number of inputs per forward pass.

    Raises:
        UserError: If the dtype is unknown or batch_size is below 1; at first use, if the device is unknown.
    """

    def __init__(self, device: str | None = None, dtype: str = "float32", batch_size: int = 4) -> None:
        if dtype not in (AUTO, *DTYPES):
            raise UserError(f"dtype '{dtype}': expected one of {', '.join((AUTO, *DTYPES))}")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected at least 1")
        self._dtype = dtype
        self.batch_size = batch_size
        self._device = device

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side, in pixels, of the square that the image encoder sees."""

    @abstractmethod
    def _load(self) -> nn.Module:
        """Load the network on the CPU, in `dtype`."""

    @abstractmethod
    def _identity(self) -> tuple[str, list[Path]]:
        """Collect a text and files that together determine the output."""

    @cached_property
    def device(self) -> torch.device:
        """Device of the network."""
        try:
            return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise UserError(f"device '{self._device}': {str(error).splitlines()[0]}") from error

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of weights and activations."""
        return precision(self._dtype, self.device)

    @property
    def _precision(self) -> str:
        """Precision as the fingerprint names it."""
        return str(self.dtype)

    @cached_property
    def network(self) -> nn.Module:
        """Network in evaluation mode on `device`, without gradients; the first access loads it."""
        with torch.inference_mode(False):  # inference tensors do not support training
            return self._load().to(self.device).eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the output: 16 hexadecimal digits of a hash of weights, settings and precision."""
        text, files = self._identity()
        digest = hashlib.sha256(f"{type(self).__name__} {self._precision} {text}".encode())
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def __getstate__(self) -> Settings:
        """Drop the loaded parts, because the receiving process loads its own."""
        kind = type(self)
        return {n: value for n, value in vars(self).items() if not isinstance(getattr(kind, n, None), cached_property)}


def precision(dtype: str, device: torch.device) -> torch.dtype:
    """Look up a precision by name; ``auto`` is bfloat16 on a GPU that computes in it, else float32."""
    if dtype != AUTO:
        return DTYPES[dtype]
    # Older GPUs emulate bfloat16, which is slower than float32.
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raise UserError, naming the index, unless all images are uint8 (H, W, 3) and not empty."""
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f"image {index} is {image.dtype} {image.shape}: expected uint8 (H, W, 3)")


def pixels_key(image: np.ndarray) -> bytes:
    """Compute 16 bytes that are equal for equal shapes and pixels, in any memory order."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield the items in lists of ``size``; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
