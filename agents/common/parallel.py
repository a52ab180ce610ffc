"""Rank, world size, shares and sums of the workers that train one agent.

Workers are the processes of a ``torch.distributed`` group, which their launcher (Ray Train, torchrun) has set up. A
process outside a group is a single worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

_Item = TypeVar("_Item")


def rank() -> int:
    """Return the rank of this worker, from 0."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """Return the number of workers."""
    return dist.get_world_size() if _joined() else 1


def total(values: Sequence[float]) -> list[float]:
    """Sum numbers over all workers; every worker must call this with the same count of numbers."""
    if not _joined():
        return list(values)
    # NCCL sums only tensors on GPUs.
    sums = torch.tensor(values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(sums)
    return sums.tolist()


def share(count: int, batch: int) -> range:
    """Return the places of ``count`` that fall to this worker: whole batches in a row; the last of all may be short."""
    batches = -(-count // batch)
    first, end = (batches * number // size() for number in (rank(), rank() + 1))
    return range(first * batch, min(end * batch, count))


def gather(own: Sequence[_Item]) -> list[_Item] | None:
    """Collect the items of all workers, which can be pickled, by rank; None except on rank 0.

    Every worker must call this.
    """
    if not _joined():
        return list(own)
    found: list[list[_Item]] | None = None if rank() else [[]] * size()
    dist.gather_object(list(own), found)
    return None if found is None else [item for items in found for item in items]


def first(item: _Item) -> _Item:
    """Return the item of rank 0, which can be pickled, on every worker; every worker must call this."""
    if not _joined():
        return item
    found = [item]
    dist.broadcast_object_list(found)
    return found[0]


def wait() -> None:
    """Wait until every worker has called this."""
    total([0.0])


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Average each parameter's gradient over all workers; every worker must call this after its backward pass.

    All gradients are summed once after the pass. ``DistributedDataParallel`` does not fit: it wraps only ``forward``
    and hangs when one worker's shard has no gradient. Here such a worker's gradients count as 0.

    Returns:
        Whether any worker has a gradient.
    """
    if not _joined():
        return any(parameter.grad is not None for parameter in parameters)
    if not total([float(any(parameter.grad is not None for parameter in parameters))])[0]:
        return False
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    dist.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat / size(), [parameter.grad for parameter in parameters])
    return True


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
