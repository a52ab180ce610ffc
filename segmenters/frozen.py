"""Define the base class of segmenters, a frozen network with lazy loading, a fingerprint and small pickles."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from maskgym.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenNetwork(ABC):
    """Network used for inference only.

    Construction reads at most a config. The network is loaded at first use, in the process that uses it, and pickling
    drops it.

    A subclass implements `input_size`, `_load` and `_identity`.

    Args:
        device: PyTorch device; ``None`` selects CUDA if available.
        dtype: Precision of weights and activations: ``float32``, ``bfloat16`` or ``float16``.
        batch_size: Maximum number of inputs per forward pass.

    Raises:
        UserError: If the dtype is unknown or batch_size is below 1; at first use, if the device is unknown.
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
        """Load the network on the CPU, in `dtype`."""

    @abstractmethod
    def _identity(self) -> tuple[str, list[Path]]:
        """Return a text and files that together determine the output."""

    @cached_property
    def device(self) -> torch.device:
        """Return the device of the network."""
        try:
            return torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError as error:
            raise UserError(f"device '{self._device}': {str(error).splitlines()[0]}") from error

    @cached_property
    def network(self) -> nn.Module:
        """Return the network, frozen, in evaluation mode, on `device`; the first call loads it."""
        with torch.inference_mode(False):  # inference tensors do not support training
            return self._load().to(self.device).eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """Compute 16 hexadecimal digits from the weights, the settings and the precision."""
        text, files = self._identity()
        digest = hashlib.sha256(f"{type(self).__name__} {self.dtype} {text}".encode())
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the loaded parts, because the receiving process loads its own."""
        kind = type(self)
        return {n: value for n, value in vars(self).items() if not isinstance(getattr(kind, n, None), cached_property)}


def check_image(image: np.ndarray, index: int) -> None:
    """Raise UserError, naming the index, unless an image is uint8 (H, W, 3) and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"image {index} is {image.dtype} {image.shape}: expected uint8 (H, W, 3)")


def pixels_key(image: np.ndarray) -> bytes:
    """Compute 16 bytes that are equal for equal shapes and pixels, in any memory order."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of ``size``; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
