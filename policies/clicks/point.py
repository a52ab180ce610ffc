"""Build the actor-critic of point prompting, with shared convolutions over the patch grid (AlignSAM §3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical

from maskgym.aliases import Observation
from maskgym.errors import UserError

INPUTS = ("all", "state")


@dataclass(frozen=True)
class PointActorCritic:
    """Sizes of the networks; the methods build them for an environment's spaces.

    `network` builds a whole policy for an algorithm of one's own; `trunk`, `actor` and `critic` build the parts that
    Stable-Baselines3 and RLlib put together.

    Args:
        channels: Width of the shared trunk.
        layers: Number of 3 × 3 convolutions in the trunk.
        inputs: Maps that the trunk reads: ``all`` of the observation and a learned position, or the ``state`` alone,
            which is the input of Eq. 5. Clicked patches are excluded either way.

    Raises:
        UserError: If a size is out of range, or the inputs are unknown.
    """

    channels: int = 32
    layers: int = 2
    inputs: str = "all"
    tasks: ClassVar[tuple[str, ...]] = ("point_prompt", "user_need_point")

    def __post_init__(self) -> None:
        if self.channels < 8 or self.channels % 8 or self.layers < 0:
            raise UserError(
                f"channels={self.channels}, layers={self.layers}: expected a multiple of 8 and at least 0 layers"
            )
        if self.inputs not in INPUTS:
            raise UserError(f"inputs={self.inputs!r}: expected one of {', '.join(INPUTS)}")

    def network(self, observation_space: spaces.Dict, action_space: spaces.Space) -> ClickNetwork:
        """Build a policy that draws clicks and computes their log-probabilities."""
        return ClickNetwork(self, observation_space, action_space)

    def trunk(self, observation_space: spaces.Dict) -> GridTrunk:
        """Build the trunk that actor and critic share."""
        return GridTrunk(observation_space, self.channels, self.layers, self.inputs)

    def actor(self, observation_space: spaces.Dict, action_space: spaces.Space) -> GridActor:
        """Build the layer that computes the logits of actions."""
        return GridActor(
            self.channels, grid_side(observation_space), labelled=isinstance(action_space, spaces.MultiDiscrete)
        )

    def critic(self, observation_space: spaces.Dict) -> GridCritic:
        """Build the layer that computes the value."""
        return GridCritic(self.channels, grid_side(observation_space))


def grid_side(observation_space: spaces.Dict) -> int:
    """Read g, the number of patches along a side, from the space of masks (1, g, g)."""
    shape = observation_space["mask"].shape
    assert shape is not None
    return shape[-1]


class GridTrunk(nn.Module):
    """Compute features of each patch by convolutions over the normalised maps of the observation.

    The trunk uses group norm because the first ratio of PPO must be 1 independently of the rest of the batch.
    """

    def __init__(self, observation_space: spaces.Dict, channels: int, layers: int, inputs: str = "all") -> None:
        super().__init__()
        side = grid_side(observation_space)
        self.names = [name for name in sorted(observation_space) if inputs == "all" or name == "state"]
        widths = [(observation_space[name].shape or (0,))[0] for name in self.names]
        # Eq. 5 has no position: there it stays a constant 0.
        self.position = nn.Parameter(torch.zeros(channels, side, side), requires_grad=inputs == "all")
        self.stem = nn.Conv2d(sum(widths), channels, 1)
        blocks: list[nn.Module] = []
        for _ in range(layers):
            blocks += [nn.GroupNorm(8, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks, nn.GroupNorm(8, channels), nn.ReLU())
        self.features = channels * side**2 + (side**2 if "clicked" in observation_space.spaces else 0)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Compute patch features (B, channels · g²) of maps (B, C_k, g, g), and append ``clicked`` (B, g²) if given.

        An entry that is not a map, such as the feature (B, D) of a need, is repeated on every patch.
        """
        side = self.position.shape[-1]
        maps = torch.cat([_spread(observations[name], side) for name in self.names], dim=1)
        features = self.blocks(self.stem(maps) + self.position).flatten(1)
        clicked = [observations["clicked"].flatten(1)] if "clicked" in observations else []
        return torch.cat([features, *clicked], dim=1)


def _spread(values: Tensor, side: int) -> Tensor:
    """Repeat features (B, C) on every patch; maps (B, C, g, g) stay unchanged."""
    return values if values.ndim == 4 else values[:, :, None, None].expand(-1, -1, side, side)


class GridActor(nn.Module):
    """Compute one logit per patch, masked at clicked patches, and two label logits if the action has a label."""

    def __init__(self, channels: int, side: int, labelled: bool) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.patch = nn.Conv2d(channels, 1, 1)
        self.label = nn.Linear(channels, 2) if labelled else None
        for layer in (self.patch, self.label):
            if layer is not None:  # small weights make the initial policy nearly uniform
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits (B, g²) or (B, g² + 2)."""
        maps, clicked = split_features(features, self.channels, self.side)
        logits = self.patch(maps).flatten(1) - 1e9 * clicked
        return logits if self.label is None else torch.cat([logits, self.label(maps.mean((2, 3)))], dim=1)


class GridCritic(nn.Module):
    """Compute the value of a state from the mean over its patches."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        self.value = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Compute values (B, 1)."""
        return self.value(split_features(features, self.channels, self.side)[0].mean((2, 3)))


def split_features(features: Tensor, channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Split the output of `GridTrunk` into maps (B, channels, g, g) and ``clicked`` (B, g²), by default zeros."""
    maps, clicked = features.split([channels * side**2, features.shape[1] - channels * side**2], dim=1)
    clicked = clicked if clicked.shape[1] else features.new_zeros(len(features), side**2)
    return maps.unflatten(1, (channels, side, side)), clicked


class ClickNetwork(nn.Module):
    """Policy over the patch grid without a critic.

    Args:
        sizes: Sizes of the networks.
        observation_space: Space of one observation, with the patch grid.
        action_space: Patches, ``Discrete(g²)``, or patches and labels, ``MultiDiscrete([g², 2])``.
    """

    def __init__(self, sizes: PointActorCritic, observation_space: spaces.Dict, action_space: spaces.Space) -> None:
        super().__init__()
        self.trunk, self.actor = sizes.trunk(observation_space), sizes.actor(observation_space, action_space)
        self.names, self.labelled = tuple(observation_space.spaces), isinstance(action_space, spaces.MultiDiscrete)

    def forward(self, observations: Sequence[Observation]) -> list[Categorical]:
        """Compute the distribution of the patch, and that of the label if the action has one.

        Args:
            observations: B unbatched observations from the environments.
        """
        device = self.trunk.position.device
        batch = {
            name: torch.as_tensor(np.stack([row[name] for row in observations]), device=device).float()
            for name in self.names
        }
        logits = self.actor(self.trunk(batch))  # (B, g²) or (B, g² + 2)
        parts = logits.split([logits.shape[1] - 2, 2], dim=1) if self.labelled else [logits]
        return [Categorical(logits=part) for part in parts]

    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], greedy: bool = False) -> np.ndarray:
        """Draw one action per observation, or take the most probable one, int64 (B,) or (B, 2)."""
        found = [part.logits.argmax(dim=1) if greedy else part.sample() for part in self(observations)]
        return (torch.stack(found, dim=1) if self.labelled else found[0]).cpu().numpy()

    def log_probabilities(self, observations: Sequence[Observation], actions: np.ndarray) -> Tensor:
        """Compute the log-probabilities of actions with gradient, for a loss of one's own.

        Args:
            observations: B unbatched observations from the environments.
            actions: One per observation, int (B,) or (B, 2), as `sample` gives them.

        Returns:
            float32 (B,).

        Raises:
            UserError: If the shape of the actions does not fit.

        Example:
            >>> actions = network.sample(observations)  # doctest: +SKIP
            >>> loss = -(advantages * network.log_probabilities(observations, actions)).mean()  # doctest: +SKIP
        """
        parts = self(observations)
        given = np.asarray(actions)
        shape = (len(observations), 2) if self.labelled else (len(observations),)
        if given.shape != shape:
            raise UserError(f"log_probabilities: actions of shape {given.shape}: expected {shape}")
        chosen = torch.as_tensor(given.reshape(len(given), -1), device=self.trunk.position.device)
        return torch.stack([part.log_prob(chosen[:, k]) for k, part in enumerate(parts)]).sum(dim=0)
