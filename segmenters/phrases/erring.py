"""The bundled EVF-SAM, made to err: noise in rewards that no policy can predict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from maskgym.errors import UserError
from maskgym.segmenters.phrases.evf_sam import EMBEDDED, EvfSamSegmenter
from maskgym.segmenters.weights import bundled


class ErringEvfSam(EvfSamSegmenter):
    """Bundled EVF-SAM that finds nothing for a share of the pairs of image and phrase, always for the same ones.

    A checksum of the pixels and the words decides, so that masks depend on nothing else, and no error can be foreseen.

    Args:
        share: Share of the pairs, in [0, 1).
        device: See `maskgym.segmenters.frozen.FrozenNetwork`.
        dtype: See there.
        batch_size: Maximum number of images encoded, and of phrases decoded, per forward pass.
        cache_bytes: Main memory for encodings of images, in bytes.

    Raises:
        UserError: If the share is outside [0, 1).
    """

    def __init__(
        self,
        share: float = 0.3,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 64,
        cache_bytes: int = 0,
    ) -> None:
        if not 0 <= share < 1:
            raise UserError(f"segmenter.share={share}: expected a number in [0, 1)")
        super().__init__(bundled(EMBEDDED), device=device, dtype=dtype, batch_size=batch_size, cache_bytes=cache_bytes)
        self.share = share

    def _segment_chunk(self, wanted: Mapping[bytes, tuple[np.ndarray, dict[str, None]]]) -> Iterator[np.ndarray]:
        pairs = [(key, phrase) for key, (_, unique) in wanted.items() for phrase in unique]
        for pair, mask in zip(pairs, super()._segment_chunk(wanted), strict=True):
            yield np.zeros_like(mask) if _drawn(*pair) < self.share else mask


def _drawn(pixels: bytes, phrase: str) -> float:
    """Compute a number in [0, 1) from the checksum of an image and a phrase."""
    pair = pixels + phrase.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "big") / 2**64
