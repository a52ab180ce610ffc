"""GRPO and CGPO on masks: reinforcement learning from a supervised checkpoint, on the same environment.

A detector's map is deterministic, so the policy samples on a coarse grid: the logits averaged over each cell of a g × g
grid parametrise one Bernoulli variable per cell. A cell drawn as the policy prefers keeps its pixels. A cell drawn
the other way has all its logits shifted by one amount, so that their mean lies on the other side of zero, at the same
distance and at least at a margin. The most probable draw is therefore the detector's own map, the greedy action.

Cells take the role of tokens: each has its clipped ratio of new to old probability and the mask's advantage, and the
loss is the mean over cells. Cells in the letterbox padding are excluded. GRPO compares masks of one image and need.
CGPO draws one mask; its advantage is the reward, scaled to [0, 1] by the reward's range, minus the mean probability of
the cells (Saliency-R1, Eq. 10 and 13). Both share their formulas with clicks. In an episode of several masks, as in
ranking, only the first is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.agents.common.checkpoints import check_at_least
from maskgym.agents.common.objectives import clipped_loss, confidence_advantages, group_advantages
from maskgym.agents.common.policy_gradient import PolicyGradientAgent
from maskgym.agents.masks.acting import MaskAgent, content, to_pixels
from maskgym.aliases import Observation
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal


@dataclass
class Masks:
    """Masks drawn for some samples, and their returns; the masks of a sample are adjacent.

    Attributes:
        pixels: float32 (P, 3, S, S), one image per sample.
        needs: One text per sample.
        cells: bool (B, g, g).
        log_probabilities: float32 (B, g, g), under the policy that drew the cells.
        shown: bool (B, g, g), cells that overlap the image.
        returns: float64 (B,).
        ious: float64 (B,).
        changed: Share of cells drawn against the policy's preference.
    """

    pixels: Tensor
    needs: list[str]
    cells: Tensor
    log_probabilities: Tensor
    shown: Tensor
    returns: np.ndarray
    ious: np.ndarray
    changed: float

    def scalars(self) -> dict[str, float]:
        """Compute the mean return, the mean IoU, the share of changed cells, and the number of rewards."""
        means = {"reward": float(self.returns.mean()), "iou": float(self.ious.mean())}
        return {**means, "changed": self.changed, "reward_calls": float(len(self.returns))}


class MaskPolicyAgent(PolicyGradientAgent[Masks], MaskAgent):
    """Train by clipped policy gradients on the cells of masks.

    Args:
        policy: Supervised detector; its ``checkpoint`` names the weights.
        env: Vector environment with the spaces of the policy and ``autoreset_mode=DISABLED``.
        seed: Seed of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        group_size: Masks per sample, a divisor of the number of sub-environments.
        grid: Cells along a side, g.
        temperature: Divisor of the cells' logits; above 1, draws vary more.
        margin: Smallest distance from zero of a changed cell's mean logit.
        learning_rate: Learning rate for Adam.
        clip_range: Clip range ε of the ratio of new to old probability.
        epochs: Passes over the masks; with one pass the ratio is 1.
        minibatch_size: Samples per gradient, with all their masks.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the policy is of another kind.
    """

    def __init__(
        self,
        policy: UserSal,
        env: VectorEnv,
        seed: int = 0,
        *,
        output: str | Path,
        group_size: int = 1,
        grid: int = 8,
        temperature: float = 1.0,
        margin: float = 2.0,
        learning_rate: float = 1e-4,
        clip_range: float = 0.2,
        epochs: int = 4,
        minibatch_size: int = 16,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, grid=grid)
        super().__init__(policy, env, seed, output, learning_rate, save_every)
        self.set_up(env, group_size, clip_range, epochs, minibatch_size)
        if self.side % grid:
            raise UserError(f"algo.grid={grid}: expected a divisor of env.image_size={self.side}")
        if not temperature > 0 or margin < 0:
            raise UserError(
                f"algo.temperature={temperature}, algo.margin={margin}: expected more than 0, and at least 0"
            )
        self.grid, self.temperature, self.margin = grid, temperature, margin
        self.return_range = unwrap(env, SampleVectorEnv).reward.range

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> np.ndarray:
        """Compute the maps, float32 (B, S, S) in [0, 1]: the detector's own, or sampled ones."""
        if greedy:
            return super().act(observations, greedy)
        found = [self.mask(logits, self.draw(self.cell_logits(logits))) for logits in self.logits(observations)]
        return torch.cat(found).cpu().numpy()

    @torch.no_grad()
    def play(self, env: VectorEnv, seed: int) -> Masks:
        """Draw one mask per sub-environment; those of a group show the same sample."""
        self.policy.eval()
        groups = env.num_envs // self.group_size
        drawn = np.random.default_rng(seed).integers(unwrap(env, SampleVectorEnv).num_samples, size=groups)
        observations, _ = env.reset(seed=seed, options={"index": drawn.repeat(self.group_size)})
        rows = [
            {"image": observations["image"][i].copy(), "need": str(observations["need"][i])}
            for i in range(0, env.num_envs, self.group_size)
        ]
        logits = torch.cat(list(self.logits(rows))).repeat_interleave(self.group_size, dim=0)
        of_cells = self.cell_logits(logits)  # (B, g, g)
        cells = self.draw(of_cells)
        _, returns, _, _, infos = env.step(self.mask(logits, cells).cpu().numpy())
        shown = torch.stack([shown_cells(row["image"], self.grid) for row in rows]).to(cells.device)
        shown = shown.repeat_interleave(self.group_size, dim=0)
        return Masks(
            pixels=to_pixels([row["image"] for row in rows], self.policy.device),
            needs=[row["need"] for row in rows],
            cells=cells,
            log_probabilities=log_probability(of_cells, cells),
            shown=shown,
            returns=np.asarray(returns, dtype=float),
            ious=np.asarray(infos["iou"], dtype=float),
            changed=(cells != (of_cells > 0))[shown].float().mean().item(),
        )

    def minibatches(self, rollout: Masks) -> Iterator[Tensor]:
        """Yield indices of samples, int64 (minibatch_size,) on the CPU."""
        yield from torch.randperm(len(rollout.needs)).split(self.minibatch_size)

    def minibatch_loss(self, rollout: Masks, rows: Tensor, advantages: Tensor) -> tuple[Tensor, float, float]:
        """Compute the clipped loss of all masks of some samples, the share of clipped ratios, and the mean entropy."""
        device = rollout.cells.device
        of_masks = (rows[:, None] * self.group_size + torch.arange(self.group_size)).flatten().to(device)
        logits = self.policy(rollout.pixels[rows.to(device)], [rollout.needs[i] for i in rows.tolist()])
        of_cells = self.cell_logits(logits).repeat_interleave(self.group_size, dim=0)
        entropy = torch.distributions.Bernoulli(logits=of_cells.detach()).entropy()[rollout.shown[of_masks]]
        loss, clipped = self.loss(of_cells, rollout, of_masks, advantages.to(device))
        return loss, clipped, entropy.mean().item()

    def learned_parameters(self) -> Sequence[nn.Parameter]:
        """List the trained parameters of the policy."""
        return self.policy.trainable_parameters()

    def loss(self, of_cells: Tensor, masks: Masks, rows: Tensor, advantages: Tensor) -> tuple[Tensor, float]:
        """Compute the clipped loss, a mean over the shown cells, and the share of clipped ratios.

        Args:
            of_cells: Logits (b, g, g) of the policy that learns.
            masks: All masks of the update.
            rows: Rows of the minibatch, int64 (b,).
            advantages: Advantages, float32 (B,).
        """
        shown = masks.shown[rows]
        new = log_probability(of_cells, masks.cells[rows])[shown]
        each = advantages[rows, None, None].expand_as(of_cells)[shown]
        return clipped_loss(new, masks.log_probabilities[rows][shown], each, self.clip_range)

    def cell_logits(self, logits: Tensor) -> Tensor:
        """Compute the cells' logits (B, g, g) from a map's logits (B, 1, S, S)."""
        return F.adaptive_avg_pool2d(logits, self.grid)[:, 0] / self.temperature

    def draw(self, of_cells: Tensor) -> Tensor:
        """Sample cells, bool (B, g, g), from logits of that shape."""
        return torch.bernoulli(of_cells.sigmoid()).bool()

    def mask(self, logits: Tensor, cells: Tensor) -> Tensor:
        """Build the action, float32 (B, S, S) in [0, 1], from logits (B, 1, S, S) and drawn cells."""
        means = F.adaptive_avg_pool2d(logits, self.grid)[:, 0]  # (B, g, g)
        wanted = torch.where(cells, 1.0, -1.0) * means.abs().clamp(min=self.margin)
        shifts = torch.where(cells == (means > 0), 0.0, wanted - means)
        size = self.side // self.grid
        return (logits[:, 0] + shifts.repeat_interleave(size, 1).repeat_interleave(size, 2)).sigmoid()


class GRPOAgent(MaskPolicyAgent):
    """Train by GRPO: the advantage is the reward standardised by its group's mean and standard deviation.

    Args:
        group_size: Masks per sample, at least 2; see `MaskPolicyAgent` for the others.
    """

    def __init__(self, policy: UserSal, env: VectorEnv, group_size: int = 8, **settings: Any) -> None:
        check_at_least(2, group_size=group_size)
        super().__init__(policy, env, group_size=group_size, **settings)

    def advantages(self, rollout: Masks) -> Tensor:
        """Compute the advantages, float32 (B,); a zero-variance group has 0."""
        return group_advantages(rollout.returns, self.group_size)


class CGPOAgent(MaskPolicyAgent):
    """Train by CGPO: the advantage is the reward in [0, 1] minus the mean probability of the drawn cells.

    Args:
        center_advantage: Whether to subtract the batch's mean advantage; the paper does not.
        settings: Other settings of `MaskPolicyAgent`; a sample has one mask.
    """

    def __init__(self, policy: UserSal, env: VectorEnv, center_advantage: bool = False, **settings: Any) -> None:
        super().__init__(policy, env, **settings)
        self.center_advantage = center_advantage

    def advantages(self, rollout: Masks) -> Tensor:
        """Compute the advantages, float32 (B,) in [-1, 1]."""
        chances, shown = rollout.log_probabilities.exp(), rollout.shown.float()
        confidence = ((chances * shown).sum((1, 2)) / shown.sum((1, 2))).cpu()
        return confidence_advantages(rollout.returns, self.return_range, confidence, self.center_advantage)


def log_probability(of_cells: Tensor, cells: Tensor) -> Tensor:
    """Compute the log-probability of each cell (B, g, g) under logits of that shape."""
    return -F.binary_cross_entropy_with_logits(of_cells, cells.float(), reduction="none")


def shown_cells(image: np.ndarray, grid: int) -> Tensor:
    """Find the cells, bool (g, g), that overlap the content of a letterboxed image uint8 (S, S, 3)."""
    height, width = content(image)
    size = image.shape[0] // grid
    edges = torch.arange(grid) * size
    return (edges[:, None] < height) & (edges < width)
