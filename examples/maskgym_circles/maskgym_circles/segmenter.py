"""A segmenter that knows two words."""

from collections.abc import Sequence

import numpy as np


class Threshold:
    """Segment bright pixels for phrases with *bright*, and the other pixels for phrases with *dark*.

    Args:
        level: Threshold above which the mean level of a pixel is bright, 0 to 255.
    """

    def __init__(self, level: float = 120) -> None:
        self.level = level
        self.fingerprint = f"threshold-{level}"

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return probabilities, one float32 (n, H, W) per image."""
        return [
            np.stack([self._one(image, phrase) for phrase in phrases])
            if phrases
            else np.zeros((0, *image.shape[:2]), np.float32)
            for image, phrases in zip(images, expressions, strict=True)
        ]

    def _one(self, image: np.ndarray, phrase: str) -> np.ndarray:
        bright = image.mean(axis=2) > self.level
        found = bright if "bright" in phrase else ~bright if "dark" in phrase else np.zeros_like(bright)
        return found.astype(np.float32)
