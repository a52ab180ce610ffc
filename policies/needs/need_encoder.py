"""Define need encoders, frozen text encoders that map a need to features of several depths (UserSOD Eq. 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn


class NeedEncoder(nn.Module, ABC):
    """A frozen text encoder.

    Attributes:
        levels: Number of features per need, one per depth, shallow first ("multi-scale text features").
        width: Width of each feature.
        random_weights: Whether weights are as they were initialised.
    """

    levels: int
    width: int
    random_weights: bool = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifier of the weights, for caches and checkpoints."""

    @property
    def network(self) -> nn.Module:
        """Module that reads texts, for counting parameters and timing."""
        return self

    @abstractmethod
    def encode(self, needs: Sequence[str]) -> torch.Tensor:
        """Encode needs as float32 (B, levels, width), without gradient.

        An empty need gives zeros, which turns UserSal into a plain salient-object detector. The encoder truncates long
        texts and maps unknown characters to its unknown token.
        """
