"""Base of the mask agents: a policy of needs, its optimiser, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from maskgym.agents.base import Agent
from maskgym.agents.common import parallel
from maskgym.agents.common.checkpoints import check_agent, check_at_least, read_checkpoint, write_checkpoint
from maskgym.envs.letterbox import letterbox
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal

CHECKPOINT = "masks.pt"
SHOWN_AT_ONCE = 16  # images per forward pass without learning


class MaskAgent(Agent):
    """Run, save and resume a `UserSal`; a subclass trains it.

    Args:
        policy: A `UserSal`.
        env: Vector environment that shows an image and a need and takes a mask of the observed square.
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        learning_rate: Of Adam.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, the policy is of another kind, or the image does not fit it.
    """

    tasks: ClassVar[tuple[str, ...]] = ("user_need", "ranking")
    kinds: ClassVar[tuple[str, ...]] = ("usersal", "usersal_plus")  # kinds of policy

    def __init__(
        self,
        policy: UserSal,
        env: VectorEnv,
        seed: int = 0,
        output: str | Path = "checkpoints",
        learning_rate: float = 1e-4,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, save_every=save_every)
        given = policy.kind if isinstance(policy, UserSal) else type(policy).__name__
        if given not in self.kinds:
            raise UserError(f"policy={given}: expected {' or '.join(self.kinds)}")
        space: Any = env.single_observation_space
        self.side, divisor = space["image"].shape[0], policy.backbone.size_divisor
        if self.side % divisor:
            raise UserError(f"env.image_size={self.side}: expected a multiple of {divisor}, for the policy's backbone")
        self.policy, self.seed, self.output, self.save_every = policy, seed, Path(output), save_every
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=learning_rate)

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> np.ndarray:
        """Compute the maps, float32 (B, S, S) in [0, 1]; a detector is deterministic, so ``greedy`` has no effect."""
        return torch.cat([logits.sigmoid() for _, logits in self.logits(observations)])[:, 0].cpu().numpy()

    @torch.no_grad()
    def logits(self, observations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[slice, Tensor]]:
        """Yield the observations' indices in small batches, with their logits (b, 1, S, S)."""
        for start in range(0, len(observations), SHOWN_AT_ONCE):
            rows = observations[start : start + SHOWN_AT_ONCE]
            pixels = to_pixels([row["image"] for row in rows], self.policy.device)
            yield slice(start, start + len(rows)), self.policy(pixels, [row["need"] for row in rows])

    def save(self, path: str | Path) -> None:
        """Write the trained weights to a folder; see `UserSal.save`."""
        self.policy.save(path)

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: If `UserSal.load` refuses the folder.
        """
        self.policy.load(path)

    def checkpoint(self, update: int) -> None:
        """Write the state that later updates need; random draws and sample order follow from the update's number.

        Rank 0 writes; the state is the same on all workers.
        """
        if parallel.rank():
            return
        self.output.mkdir(parents=True, exist_ok=True)
        state = {"policy": self.policy.trained_state(), "description": self.policy.describe(), "update": update}
        state |= {"optimizer": self.optimizer.state_dict(), "agent": type(self).__name__}
        write_checkpoint(self.output / CHECKPOINT, state)

    def restore(self) -> int:
        """Load the checkpoint in ``output``, if any; return its number of finished updates.

        Raises:
            UserError: If another algorithm wrote it, or the policy's backbone, encoder or settings differ.
        """
        file = self.output / CHECKPOINT
        if not file.exists():
            return 0
        state = read_checkpoint(file)
        check_agent(self, state, file)
        self.policy.check(state["description"], file)
        self.policy.load_trained_state(state["policy"], file)
        self.optimizer.load_state_dict(state["optimizer"])
        return state["update"]


def to_pixels(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Convert images uint8 (S, S, 3) to float32 (B, 3, S, S) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255


def to_targets(masks: Sequence[np.ndarray], side: int, device: torch.device) -> Tensor:
    """Letterbox the union of each image's masks to the observed square, float32 (B, 1, side, side) in [0, 1].

    Args:
        masks: Masks bool (n, H, W) per image.
        side: Side of the square in pixels.
        device: Device of the result.
    """
    found = []
    for mask in masks:
        union = np.logical_or.reduce(mask, axis=0).astype(np.uint8) * 255
        found.append(letterbox(np.repeat(union[:, :, None], 3, axis=2), side)[:, :, 0])  # resized like the image
    return torch.from_numpy(np.stack(found)).to(device)[:, None].float() / 255


def content(image: np.ndarray) -> tuple[int, int]:
    """Compute height and width of a letterboxed image uint8 (S, S, 3) without the black padding."""
    seen = np.asarray(image).max(axis=2) > 0
    rows, columns = np.flatnonzero(seen.max(axis=1)), np.flatnonzero(seen.max(axis=0))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else image.shape[:2]
