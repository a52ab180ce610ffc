"""Base of the mask agents: a policy of needs, its optimizer, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from torch import Tensor

from maskgym.agents.common.checkpoints import CheckpointedAgent, TrainingState
from maskgym.aliases import Observation, Settings
from maskgym.envs.letterbox import letterbox
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal
from maskgym.segmenters.outputs import Weights

SHOWN_AT_ONCE = 16  # images per forward pass without learning


class MaskAgent(CheckpointedAgent):
    """Run, save and resume a `UserSal`; a subclass trains it.

    Args:
        policy: Detector of needs.
        env: Vector environment that shows an image and a need and takes a mask of the observed square.
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        learning_rate: Learning rate for Adam.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, the policy is of another kind, or the image does not fit it.
    """

    tasks: ClassVar[tuple[str, ...]] = ("user_need", "ranking")
    kinds: ClassVar[tuple[str, ...]] = ("usersal", "usersal_plus")  # kinds of policy
    checkpoint_name: ClassVar[str] = "masks.pt"

    def __init__(
        self, policy: UserSal, env: VectorEnv, seed: int, output: str | Path, learning_rate: float, save_every: int
    ) -> None:
        super().__init__(seed, output, save_every)
        given = policy.kind if isinstance(policy, UserSal) else type(policy).__name__
        if given not in self.kinds:
            raise UserError(f"policy={given}: expected {' or '.join(self.kinds)}")
        square = env.single_action_space
        assert isinstance(square, Box)
        self.side, divisor = square.shape[0], policy.backbone.size_divisor
        if self.side % divisor:
            raise UserError(f"env.image_size={self.side}: expected a multiple of {divisor}, for the policy's backbone")
        self.policy, self.learning_rate = policy, learning_rate
        self.optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=learning_rate)

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> np.ndarray:
        """Compute the maps, float32 (B, S, S) in [0, 1]; a detector is deterministic, so ``greedy`` has no effect."""
        return torch.cat([logits.sigmoid() for logits in self.logits(observations)])[:, 0].cpu().numpy()

    @torch.no_grad()
    def logits(self, observations: Sequence[Observation]) -> Iterator[Tensor]:
        """Yield the logits (b, 1, S, S) of the observations in small batches."""
        for start in range(0, len(observations), SHOWN_AT_ONCE):
            rows = observations[start : start + SHOWN_AT_ONCE]
            pixels = to_pixels([row["image"] for row in rows], self.policy.device)
            yield self.policy(pixels, [row["need"] for row in rows])

    def save(self, path: str | Path) -> None:
        """Write the trained weights to a folder; see `UserSal.save`."""
        self.policy.save(path)

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: If `UserSal.load` refuses the folder.
        """
        self.policy.load(path)

    def frozen(self) -> dict[str, Weights]:
        """Describe the backbone and the need encoder."""
        made = self.policy.describe()
        random = {"backbone": bool(self.policy.backbone.random_part), "encoder": self.policy.encoder.random_weights}
        return {part: {"name": part, "fingerprint": str(made[part]), "random": random[part]} for part in random}

    def training_state(self) -> TrainingState:
        """Collect the trained weights, the description of the policy, and the state of the optimizer."""
        description, optimizer = self.policy.describe(), self.optimizer.state_dict()
        return {"policy": self.policy.trained_state(), "description": description, "optimizer": optimizer}

    def learned_state(self) -> TrainingState:
        """Collect the trained weights, without the fingerprints of the frozen modules."""
        return {"policy": self.policy.trained_state()}

    def load_training_state(self, state: Settings, file: Path) -> None:
        """Load what `training_state` returned.

        Raises:
            UserError: If the policy's backbone, encoder or settings differ.
        """
        self.policy.check(state["description"], file)
        self.policy.load_trained_state(state["policy"], file)
        self.optimizer.load_state_dict(state["optimizer"])


def to_pixels(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Convert images uint8 (S, S, 3) to float32 (B, 3, S, S) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255


def letterboxed(masks: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Letterbox the union of each image's masks to the observed square, uint8 (B, side, side): its share times 255.

    Args:
        masks: Masks bool (n, H, W) per image.
        side: Side of the square in pixels.
    """
    found = []
    for mask in masks:
        union = np.logical_or.reduce(mask, axis=0).astype(np.uint8) * 255
        # The union has three channels, so that it is resized exactly like the image.
        found.append(letterbox(np.repeat(union[:, :, None], 3, axis=2), side)[:, :, 0])
    return np.stack(found)


def content(image: np.ndarray) -> tuple[int, int]:
    """Compute height and width of a letterboxed image uint8 (S, S, 3) without the black padding."""
    seen = np.asarray(image).max(axis=2) > 0
    rows, columns = np.flatnonzero(seen.max(axis=1)), np.flatnonzero(seen.max(axis=0))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else image.shape[:2]
