"""Define the policy without a network, for agents that do not learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class NoPolicy:
    """Placeholder in the configs of agents that use no policy."""

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "refer", "user_need", "ranking")
