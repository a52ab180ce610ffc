"""Measure the encoding of images by SAM, the size of embeddings on disk, and the hits of a pass over a larger set.

Run ``python benchmarks/embeddings.py`` (some five minutes on one core, 8 GB of memory). The network is SAM's ViT-B with
random weights at its published input of 1024 pixels; seconds per image do not depend on the weights. Rounds alternate
between images one by one and the same images in a batch. Hits are counted, not timed:

    memory  values of the size of an embedding in the cache in main memory, and in one with least-recently-used
            eviction, as before
    folder  embeddings of the bundled SAM on disk, where the folder takes a share of the images
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from maskgym.segmenters.byte_cache import ByteCache, ScanCache
from maskgym.segmenters.encodings import CacheLimits
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.sam import PUBLISHED, SamSegmenter, sam_tiny

MIB = 2**20
SETS = {"DUTS-TE": 5019, "DUTS-TR": 10553}  # photos
PASSES = 4


class RandomSam(SamSegmenter):
    """A SAM of published size with random weights.

    Args:
        size: Name among `PUBLISHED`.
        embedding_dtype: See `SamSegmenter`.
        batch_size: Images per forward pass.
    """

    def __init__(self, size: str, embedding_dtype: str = "auto", batch_size: int = 1) -> None:
        super(SamSegmenter, self).__init__(batch_size=batch_size)
        self.set_encoding(batch_size, embedding_dtype, CacheLimits())
        self.own_config = PUBLISHED[size]

    def _load(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.own_config.build()

    def _identity(self) -> tuple[str, list]:
        return "random", []


class Value(NamedTuple):
    """Stands for an embedding of a size."""

    nbytes: int


def speed(size: str, batch: int, rounds: int) -> str:
    """Measure encodes per second one by one and in a batch, medians over alternating rounds."""
    images = np.random.default_rng(0).integers(0, 256, (batch, 1024, 1024, 3), dtype=np.uint8)
    segmenter = RandomSam(size)
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: [segmenter.encode(images[row : row + 1]).cpu() for row in range(batch)],
        f"batches of {batch}": lambda: segmenter.encode(images).cpu(),
    }
    segmenter.encode(images[:1])  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for number, (name, way) in enumerate(ways.items()):
            segmenter.batch_size = batch if number else 1
            begun = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - begun) / batch)
    alone, together = (statistics.median(values) for values in seconds.values())
    device = f"{segmenter.device.type}, {segmenter.dtype}, {torch.get_num_threads()} threads"
    return (
        f"{size}, {device}: {1 / alone:.3f} encodes a second one by one, {1 / together:.3f} in batches of {batch}: "
        f"ratio {alone / together:.2f}"
    )


def bytes_on_disk(size: str) -> str:
    """Measure the files of one image in both precisions, the images encoded in float32."""
    image, taken = np.zeros((1, 1024, 1024, 3), np.uint8), {}
    for name in ("float32", "bfloat16"):
        segmenter = RandomSam(size, name)
        with tempfile.TemporaryDirectory() as folder:
            # Bytes depend on the shape alone, so the encoder need not run.
            shape = 1, *segmenter.embedding_shape
            segmenter.encode = lambda images, kind=segmenter.embedding_dtype, shape=shape: torch.zeros(shape).to(kind)
            EmbeddingCache(segmenter, 0, folder)(image)
            (file,) = Path(folder).rglob("*.encoding")
            taken[name] = file.stat().st_size
    return f"{size}: " + ", ".join(f"{count} bytes on disk per image in {name}" for name, count in taken.items())


def hits_in_memory(count: int, room: int) -> tuple[float, float]:
    """Count the share of hits of passes over a set after the first one, before (least recently used) and now."""
    shares = []
    for cache in (ByteCache(room), ScanCache(room)):
        found = 0
        for number in range(PASSES * count):
            index = number % count
            hit = cache.get(index) is not None
            found += hit and number >= count
            cache.keep(index, Value(4 * MIB))
        shares.append(found / ((PASSES - 1) * count))
    return shares[0], shares[1]


def hits_in_folder(count: int, fitting: int) -> float:
    """Count the share of hits of passes over images after the first one, with a folder that takes ``fitting``."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    segmenter = sam_tiny()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder is full
        room = (segmenter.embedding_bytes + 128) * fitting
        cache = EmbeddingCache(segmenter, 0, folder, room)
        for _ in range(PASSES):
            for image in images:
                cache([image])
    return cache.hits / ((PASSES - 1) * count)


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", choices=PUBLISHED, default="vit_b")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(speed(given.segmenter, given.batch, given.rounds))
    print(bytes_on_disk(given.segmenter))
    for name, count in SETS.items():
        before, now = hits_in_memory(count, 4 * 1024 * MIB)
        print(f"{name}, {count} photos, 4 GiB of main memory in float32 (1024 fit): hits {before:.3f} -> {now:.3f}")
    print(f"60 images, of which 15 fit into the folder: hits {hits_in_folder(60, 15):.3f}")


if __name__ == "__main__":
    main()
