"""Memory settings and peak memory of this process."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names, of its malloc.h
LARGEST_BLOCK = 32 * 2**20  # the most that glibc takes for the second
KEPT = 512 * 2**20


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to 512 MiB, instead of handing it back to the system at once.

    A step on CPU frees and asks for the same megabytes again; faulting them in took up to a fifth of a
    decoding of clicks. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)


def peak_mib() -> float:
    """Return the peak memory of this process in MiB: GPU memory if there is a GPU, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
