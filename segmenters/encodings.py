"""Cache what a frozen network computes of an image, in memory up to a bound, and optionally on disk."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from maskgym import files
from maskgym.errors import UserError
from maskgym.segmenters.byte_cache import ScanCache
from maskgym.segmenters.frozen import FrozenNetwork, chunks

DIGEST_BYTES = 32  # the checksum at the start of a file
RECOUNT = 64  # one part in so many of the folder's bound is written between two counts of what others wrote
GIB = 2**30
CACHE_BYTES, CACHE_FOLDER_BYTES = 4 * GIB, 64 * GIB  # defaults of large segmenters


@dataclass(frozen=True)
class CacheLimits:
    """Bounds and places of cached encodings.

    Args:
        cache_bytes: Bound in main memory, bytes; 0 for none there.
        cache_folder: Folder of the cache on disk, or None.
        cache_folder_bytes: Bound on disk, bytes, over all networks. Each process that writes there may exceed it by a
            sixty-fourth, after which it counts again what others wrote.

    Raises:
        UserError: If a bound is negative.
    """

    cache_bytes: int = 0
    cache_folder: str | Path | None = None
    cache_folder_bytes: int = CACHE_FOLDER_BYTES

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "cache_folder_bytes"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 0")

    def __bool__(self) -> bool:
        """Whether anything is cached."""
        return self.cache_bytes > 0 or self.cache_folder is not None


@dataclass(frozen=True)
class Encoding:
    """Encoding of one image: tensors on the CPU, without a batch axis."""

    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(part.nbytes for part in self.parts)


class EncodingCache(ABC):
    """Cache of the encodings of one network, by the pixels of the image; a subclass implements `encode`.

    Encodings are kept in main memory, not on the accelerator, where the policy needs the room; moving one there takes
    less than a thousandth of the time of computing it. `ScanCache` states which are kept.

    On disk each network has a subfolder, named by its fingerprint, so that another checkpoint, precision or size never
    shares files. A file begins with a checksum over the fingerprint, the pixels' key and the content. A file that is
    damaged, or belongs to another network or image, is told and computed again. Writes are atomic. A full folder keeps
    what it holds, so that a pass over a larger set finds the share that fits.

    Args:
        network: Its fingerprint names the subfolder, and encodings move to its device.
        limits: Where and how much.
        batch_size: Maximum number of images per call of `encode`.
    """

    def __init__(self, network: FrozenNetwork, limits: CacheLimits, batch_size: int) -> None:
        self.network, self.limits, self.batch_size = network, limits, batch_size
        self.kept: ScanCache[Encoding] = ScanCache(limits.cache_bytes)
        self.hits = self.misses = 0
        self.stores = limits.cache_folder is not None  # until the folder is full
        self._told, self._uncounted = False, 0

    @abstractmethod
    def encode(self, images: list[np.ndarray]) -> tuple[Tensor, ...]:
        """Compute tensors with one row per image."""

    @cached_property
    def folder(self) -> Path | None:
        """Subfolder of the network on disk."""
        root = self.limits.cache_folder
        return None if root is None else Path(root).expanduser() / self.network.fingerprint

    def look_up(self, images: Sequence[np.ndarray], keys: Sequence[bytes]) -> tuple[Tensor, ...]:
        """Look up the encodings of B images on the network's device; new images are encoded in batches.

        Args:
            images: B images, as `encode` takes them.
            keys: Their keys, from `maskgym.segmenters.frozen.pixels_key`; at least one.

        Returns:
            Tensors (B, …), as `encode` returns them.
        """
        rows = {key: row for key in dict.fromkeys(keys) if (row := self._find(key)) is not None}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in rows}
        self.hits, self.misses = self.hits + len(rows), self.misses + len(new)
        for chunk in chunks(new.items(), self.batch_size):
            encoded = self.encode([image for _, image in chunk])
            for number, (key, _) in enumerate(chunk):
                # A view would keep the whole batch in memory.
                rows[key] = Encoding(tuple(part[number].to("cpu", copy=True) for part in encoded))
                self._store(key, rows[key])
        for key, row in rows.items():
            self.kept.keep(key, row)
        columns = zip(*(rows[key].parts for key in keys), strict=True)
        return tuple(torch.stack(column).to(self.network.device) for column in columns)

    def is_stored(self, key: bytes) -> bool:
        """Check whether there is a file of an image on disk, without reading it."""
        return self.folder is not None and self._file(key).is_file()

    def _find(self, key: bytes) -> Encoding | None:
        kept = self.kept.get(key)
        if kept is not None or self.folder is None:
            return kept
        try:
            return self._read(key)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            if not self._told:
                self._told = True
                told = f"{self._file(key)}: {error}: computed again, as others of its kind"
                warnings.warn(told, stacklevel=5)
            return None

    def _read(self, key: bytes) -> Encoding:
        """Read a file.

        Raises:
            OSError: If it cannot be read.
            ValueError, SafetensorError: If it is not what was written for this network and image.
        """
        content = files.read(self._file(key))
        digest, payload = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if digest != self._digest(key, payload):
            raise ValueError("is damaged, or of another segmenter or image")
        found = load(payload)
        return Encoding(tuple(found[str(number)] for number in range(len(found))))

    def _store(self, key: bytes, row: Encoding) -> None:
        if not self.stores or self.folder is None:
            return
        if self._uncounted > self.limits.cache_folder_bytes // RECOUNT:
            self._stored, self._uncounted = self._count(), 0
        if self._stored + row.nbytes > self.limits.cache_folder_bytes:
            self._stop(f"holds {self._stored / GIB:.2f} GiB of cache_folder_bytes={self.limits.cache_folder_bytes}")
            return
        payload = save({str(number): part.contiguous() for number, part in enumerate(row.parts)})
        try:
            files.write(self._file(key), self._digest(key, payload) + payload, shared=True)
        except OSError as error:  # on a full disk the run continues without storage
            self._stop(str(error))
        else:
            self._stored += DIGEST_BYTES + len(payload)
            self._uncounted += DIGEST_BYTES + len(payload)

    def _stop(self, reason: str) -> None:
        self.stores = False
        warnings.warn(f"{self.folder}: encodings of further images are not stored: {reason}", stacklevel=5)

    @cached_property
    def _stored(self) -> int:
        """Bytes in the folder of all networks, as far as this process knows."""
        return self._count()

    def _count(self) -> int:
        assert self.folder is not None
        found = 0
        for file in self.folder.parent.glob("*/*.encoding"):
            with suppress(FileNotFoundError):  # somebody else makes room
                found += file.stat().st_size
        return found

    def _digest(self, key: bytes, payload: bytes) -> bytes:
        digest = hashlib.blake2b(self.network.fingerprint.encode() + key, digest_size=DIGEST_BYTES)
        digest.update(payload)
        return digest.digest()

    def _file(self, key: bytes) -> Path:
        assert self.folder is not None
        return self.folder / f"{key.hex()}.encoding"
