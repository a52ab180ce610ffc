"""Cache computed values in memory up to a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from maskgym.aliases import Settings
from maskgym.errors import UserError

_Value = TypeVar("_Value", np.ndarray, Tensor)


class ByteCache(Generic[_Value]):
    """Arrays or tensors by key, with least-recently-used eviction.

    Args:
        max_bytes: Memory bound in bytes.

    Raises:
        UserError: If max_bytes is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise UserError(f"max_bytes={max_bytes}: expected at least 0")
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable) -> _Value | None:
        """Look up the value of a key; None if there is none."""
        return self._kept.get(key)

    def keep(self, key: Hashable, value: _Value) -> None:
        """Store a value, or mark it as the latest used; a value larger than the bound is not stored."""
        if value.nbytes > self.max_bytes:
            return
        if key not in self._kept:
            self._kept[key] = value
            self.bytes += value.nbytes
        self._kept.move_to_end(key)
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def __getstate__(self) -> Settings:
        """Drop all values, because the receiving process computes its own."""
        return {**self.__dict__, "_kept": OrderedDict(), "bytes": 0}
