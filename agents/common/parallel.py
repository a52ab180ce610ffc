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


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Make each parameter's gradient the mean over all workers; every worker calls this after its backward pass.

    One sum for all of them after the pass, where ``DistributedDataParallel`` has several during it: that wraps
    ``forward`` only, and waits for ever when one worker's share of a batch has nothing to learn from. Here such a
    worker's gradients count as 0.

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
