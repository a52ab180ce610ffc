"""Need encoders: frozen text encoders that turn the words of a need into features of several depths (UserSOD Eq. 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn


class NeedEncoder(nn.Module, ABC):
    """A frozen text encoder.

    Attributes:
        levels: Number of features a need: one a depth of the network, shallow first ("multi-scale text features").
        width: Of each feature.
        fingerprint: Names the weights, for caches and checkpoints.
    """

    levels: int
    width: int
    fingerprint: str

    @abstractmethod
    def encode(self, needs: Sequence[str]) -> torch.Tensor:
        """Return float32 (B, levels, width), without gradient.

        An empty need gives zeros, which is what turns UserSal into a plain salient-object detector. What is longer than
        the encoder can read is cut; characters that it does not know are its unknown token's.
        """
