"""Predict the label of a click at each patch by semantic recalibration (AlignSAM, Section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError

BRANCHES = {"implicit": 1, "explicit": 5}  # branch: updates per action, q (Section 4.1)
TRUTHS = ("centre", "share")


class SemanticRecalibration(nn.Module):
    """Predict the probability that each patch is foreground from the state (Eq. 12).

    The implicit branch has two convolution blocks on the spatial state. The explicit branch has three convolutions that
    join it with the semantic state, self-attention over the patches, and a decoder of two convolutions. The paper
    specifies no widths.

    Args:
        branch: Active branch, ``implicit`` or ``explicit`` (the semantic switch V).
        in_channels: Number of channels of a state.
        channels: Width, a multiple of 8.
        learning_rate: Learning rate for Adam (Section 4.1).
        seed: Seed of the weights; construction leaves the global generator unchanged.
        truth: Ground truth of a patch, which training compares with: ``share``, the share of the patch that it covers,
            or ``centre``, that of its click. The paper's is "downsampled to the same size".
        device: PyTorch device of the weights; inputs may be on any other.

    Raises:
        UserError: If a name is unknown or the width does not fit.
    """

    def __init__(
        self,
        branch: str,
        in_channels: int,
        channels: int = 64,
        learning_rate: float = 1e-4,
        seed: int = 0,
        truth: str = "share",
        device: torch.device | str = "cpu",
    ) -> None:
        if branch not in BRANCHES:
            raise UserError(f"branch={branch!r}: expected one of {', '.join(BRANCHES)}")
        if channels < 8 or channels % 8:
            raise UserError(f"channels={channels}: expected a multiple of 8")
        if truth not in TRUTHS:
            raise UserError(f"truth={truth!r}: expected one of {', '.join(TRUTHS)}")
        super().__init__()
        self.branch, self.updates, self.truth = branch, BRANCHES[branch], truth
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if branch == "implicit":
                self.encoder = nn.Sequential(_block(in_channels, channels), _block(channels, channels))
                self.head: nn.Module = nn.Conv2d(channels, 1, 1)
            else:
                self.encoder = nn.Sequential(
                    _block(2 * in_channels, channels), _block(channels, channels), _block(channels, channels)
                )
                self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
                self.head = nn.Sequential(_block(channels, channels), nn.Conv2d(channels, 1, 3, padding=1))
        self.to(device)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Compute logits (B, g, g) from ``state`` and, in the explicit branch, ``semantic``, each (B, C, g, g)."""
        state = observations["state"].to(self.device)
        if self.branch == "implicit":
            return self.head(self.encoder(state))[:, 0]
        features = self.encoder(torch.cat([observations["semantic"].to(self.device), state], dim=1))
        tokens = features.flatten(2).transpose(1, 2)  # (B, g², D)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.transpose(1, 2).reshape_as(features))[:, 0]

    @torch.no_grad()
    def probabilities(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Compute foreground probabilities (B, g, g) in [0, 1], on the module's device."""
        return self(observations).sigmoid()

    def learn(self, observations: Mapping[str, Tensor], truth: Tensor, updates: int | None = None) -> float:
        """Take gradient steps on Eq. 13, Dice plus binary cross-entropy; return the last loss.

        Args:
            observations: Observations as in `forward`.
            truth: Ground truth of each patch, float (B, g, g) in [0, 1]; NaN where there is none.
            updates: Number of gradient steps, q; None selects the branch's default.
        """
        loss, truth = torch.zeros(()), truth.to(self.device)
        observations = {name: value.to(self.device) for name, value in observations.items()}
        for _ in range(self.updates if updates is None else updates):
            loss = recalibration_loss(self(observations), truth)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()


def recalibration_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute Dice loss plus binary cross-entropy (Eq. 13) of (B, g, g), averaged over the batch.

    Patches whose ground truth is NaN count in neither.
    """
    known = ~truth.isnan()
    truth, probabilities = truth.where(known, 0), logits.sigmoid() * known
    overlap = (probabilities * truth).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + truth.sum((1, 2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits[known], truth[known], reduction="sum")
    return dice.mean() + entropy / max(1, int(known.sum()))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU())
