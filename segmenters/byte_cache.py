"""Cache computed values in memory up to a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from maskgym.aliases import Settings
from maskgym.errors import UserError

VISITS = 3  # visits after which a value may replace one that had none meanwhile
RECENT = 10  # one part in so many of a `ScanCache` holds the latest values
REMEMBERED = 100_000  # keys whose visits a `ScanCache` remembers; some 20 MB


class Measured(Protocol):
    """Value of known size, such as an array or a tensor."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


_Value = TypeVar("_Value", bound=Measured)


class ByteCache(Generic[_Value]):
    """Values by key, with least-recently-used eviction.

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

    def oldest(self) -> Hashable | None:
        """Look up the key of the least recently used value; None if the cache is empty."""
        return next(iter(self._kept), None)

    def keep(self, key: Hashable, value: _Value) -> list[tuple[Hashable, _Value]]:
        """Store a value, or mark it as the latest used; a value larger than the bound is not stored.

        Returns:
            The keys and values that are not stored: those that had to go, or the given one.
        """
        if value.nbytes > self.max_bytes:
            return [(key, value)]
        if key not in self._kept:
            self._kept[key] = value
            self.bytes += value.nbytes
        self._kept.move_to_end(key)
        gone = []
        while self.bytes > self.max_bytes:
            gone.append(self._kept.popitem(last=False))
            self.bytes -= gone[-1][1].nbytes
        return gone

    def __getstate__(self) -> Settings:
        """Drop all values, because the receiving process computes its own."""
        return {**self.__dict__, "_kept": OrderedDict(), "bytes": 0}


class ScanCache(Generic[_Value]):
    """Cache for values that are asked for in epochs, such as encodings of the images of a data set.

    In a data set that is larger than the cache, each image comes again after all others. Least-recently-used eviction
    then drops every image just before its turn, and never hits. Here a tenth of the bytes holds the latest values,
    least recently used first out, for images that are asked for several times in a row. A value that leaves this tenth
    moves to the rest if there is room. Otherwise it replaces the least recently used value there only if it had three
    visits since that value's last one, where lookups in a row are one visit. Within a set that is passed over in
    epochs, in any order, this never happens: what is stored stays, and the share of hits is at least nine tenths of the
    share of the set that fits. A further set takes the place of an earlier one in its third epoch.

    Args:
        max_bytes: Memory bound in bytes.

    Raises:
        UserError: If max_bytes is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        self._rest: ByteCache[_Value] = ByteCache(max_bytes)
        self._latest: ByteCache[_Value] = ByteCache(max_bytes // RECENT)
        self._rest.max_bytes -= self._latest.max_bytes
        self._visits: OrderedDict[Hashable, tuple[int, ...]] = OrderedDict()  # times of the last visits of each key
        self._time = 0

    @property
    def bytes(self) -> int:
        """Size of the stored values."""
        return self._rest.bytes + self._latest.bytes

    def get(self, key: Hashable) -> _Value | None:
        """Look up the value of a key; None if there is none."""
        if (latest := self._latest.get(key)) is not None:
            return latest
        self._time += 1
        self._visits[key] = (*self._visits.get(key, ()), self._time)[-VISITS:]
        self._visits.move_to_end(key)
        if len(self._visits) > REMEMBERED:
            self._visits.popitem(last=False)
        return self._rest.get(key)

    def keep(self, key: Hashable, value: _Value) -> None:
        """Store a value that `get` asked for, or mark it as the latest used."""
        if self._rest.get(key) is not None:
            self._rest.keep(key, value)
            return
        for left, old in self._latest.keep(key, value):
            if self._rest.bytes + old.nbytes <= self._rest.max_bytes or self._is_wanted_more(left):
                self._rest.keep(left, old)

    def _is_wanted_more(self, key: Hashable) -> bool:
        """Check whether a key had `VISITS` visits since the last one of the least recently used value."""
        visits = self._visits.get(key, ())
        return len(visits) == VISITS and visits[0] > self._visits.get(self._rest.oldest(), (0,))[-1]
