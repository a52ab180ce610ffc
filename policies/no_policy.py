"""No network: the policy of agents that learn nothing and need none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class NoPolicy:
    """What stands in a config where an agent has no use for a policy."""

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "user_need", "ranking")
