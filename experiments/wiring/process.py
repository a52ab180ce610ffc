"""Memory, threads, random seeds, messages and versions of this process."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("maskgym", "torch", "transformers", "trl", "gymnasium", "numpy")
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


@contextmanager
def beside(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a function in a thread beside a block; an event tells it that the block has ended, and it is waited for."""
    over = threading.Event()
    thread = threading.Thread(target=act, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def peak_mib() -> float:
    """Return the peak memory of this process in MiB: GPU memory if there is a GPU, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def seed_everything(seed: int) -> None:
    """Seed every global random generator that the library or its dependencies use."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def silence_transformers() -> None:
    """Suppress the progress bars and warnings of transformers; incomplete checkpoints get one line of our own."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if "transformers" in sys.modules:  # It read the variables at import. Importing it here would cost seconds.
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")


def device_name() -> str:
    """Name the GPU, or the CPU with its number of threads."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Collect the versions of Python and of the installed libraries that determine results."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
