"""Cache image embeddings in memory up to a bound, and optionally on disk."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskgym.errors import UserError
from maskgym.segmenters.byte_cache import ByteCache
from maskgym.segmenters.frozen import pixels_key
from maskgym.segmenters.weights import read_state, write_state

if TYPE_CHECKING:
    from maskgym.segmenters.points.promptable import PromptableSegmenter


class EmbeddingCache:
    """Cache of a promptable segmenter's embeddings, keyed by the pixels of the image.

    Each segmenter has a subfolder on disk, named by its fingerprint. Writes are atomic, and an unreadable file is
    computed again.

    Args:
        segmenter: Segmenter that computes the embeddings.
        max_bytes: Memory bound in bytes, with least-recently-used eviction.
        folder: Folder of the cache on disk, or None.

    Raises:
        UserError: If max_bytes is negative.
    """

    def __init__(
        self, segmenter: PromptableSegmenter, max_bytes: int = 2**30, folder: str | Path | None = None
    ) -> None:
        self.segmenter, self.kept = segmenter, ByteCache(max_bytes)
        self.folder = None if folder is None else Path(folder).expanduser() / segmenter.fingerprint

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Look up embeddings (B, C, h, w) on the segmenter's device; new images are encoded.

        Args:
            images: B square arrays, uint8 (S, S, 3).
        """
        keys = [pixels_key(image) for image in images]
        found = {key: embedding for key in set(keys) if (embedding := self._find(key)) is not None}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        if new:
            # Rounding depends on the batch, so single images make a resumed run with an empty cache deterministic.
            computed = {key: self.segmenter.encode([image])[0] for key, image in new.items()}
            found |= computed
            for key, embedding in computed.items():
                self._store(key, embedding)
        for key in found:
            self.kept.keep(key, found[key])
        return torch.stack([found[key] for key in keys])

    def _find(self, key: bytes) -> Tensor | None:
        kept = self.kept.get(key)
        if kept is not None:
            return kept
        if self.folder is None or not self._file(key).exists():
            return None
        try:
            embedding = read_state(self._file(key))["embedding"]
        except (UserError, KeyError):  # an external crash may truncate the file
            return None
        return embedding.to(self.segmenter.device)

    def _store(self, key: bytes, embedding: Tensor) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state({"embedding": embedding}, self._file(key))
        except OSError as error:  # on a full disk the run continues without storage
            warnings.warn(f"{self.folder}: embeddings are no longer stored: {error}", stacklevel=3)
            self._file(key).with_name(f"{self._file(key).name}.tmp").unlink(missing_ok=True)
            self.folder = None

    def _file(self, key: bytes) -> Path:
        assert self.folder is not None
        return self.folder / f"{key.hex()}.safetensors"
