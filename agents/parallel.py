"""Workers that train one agent together: who this is, how many there are, and sums over all of them.

Workers are the processes of a ``torch.distributed`` group, which whatever starts them has set up (Ray Train, torchrun).
A process on its own is one worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def rank() -> int:
    """Return the number of this worker, from 0."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """Return how many workers there are."""
    return dist.get_world_size() if _joined() else 1


def total(values: Sequence[float]) -> list[float]:
    """Return the sums of some numbers over all workers; every worker calls this, with as many numbers."""
    if not _joined():
        return list(values)
    # NCCL adds up what is on GPUs only.
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
