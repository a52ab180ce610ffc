"""Ways to run a `maskgym` command in a process of its own: cold, forked from a server, or as a Ray task."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import TracebackType
from typing import NamedTuple, TypeVar

from maskgym.experiments.grids.fork_server import COMMAND, Request

# A library that looks for a GPU while it is imported asks NVML, which does not initialise CUDA. Arrow's own allocator
# would start a thread.
SERVER = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class Finished(NamedTuple):
    """The end of a command: its exit status, negative for a signal, and what it printed."""

    status: int
    out: str
    error: str


_Found = TypeVar("_Found")
# Runs a `maskgym` command, given by its words, in a process of its own, and waits for its end; called from several
# threads. The flag asks for a process that has imported nothing.
Runner = Callable[[Sequence[str], bool], Finished]


def run_cold(words: Sequence[str], threads: int) -> Finished:
    """Run a command in a new Python process with a number of threads for numerical libraries; see `threads_of`."""
    command = [sys.executable, "-m", COMMAND, *words]
    done = subprocess.run(command, env=_environment(threads), capture_output=True, text=True, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def run_in_task(words: Sequence[str], cold: bool = True) -> Finished:
    """Run a command in a Ray task with one core."""
    import ray

    task = ray.remote(num_cpus=1)(run_cold).remote(words, 1)
    while ray.is_initialized():  # Ctrl-C shuts Ray down, after which ray.get would block forever
        if ray.wait([task], timeout=1)[0]:
            return ray.get(task)
    return Finished(130, "", "interrupted")


class ForkServer:
    """`Runner` that forks commands from one process, which imports their libraries once.

    The process starts with the first command. Leaving the context stops it, and no command starts afterwards. Commands
    are cold on systems other than Linux, whose libraries may start threads when they are imported, and if an import
    used a GPU.

    Args:
        threads: Number of threads of numerical libraries per command; see `threads_of`.
        parts: Modules to import, and ``module:name`` for entries of registries.
    """

    def __init__(self, threads: int, parts: Sequence[str]) -> None:
        self.threads, self.parts = threads, parts
        self._place = TemporaryDirectory(prefix="maskgym-")
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None
        self._closed = False

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: BaseException | type[BaseException] | TracebackType | None) -> None:
        self._closed = True  # a thread that waits for the server to start sees it end
        if self._server is not None:
            self._server.terminate()
        with self._lock:
            if self._server is not None:
                self._server.terminate()  # it may have started meanwhile
                self._server.communicate()
            self._place.cleanup()

    def __call__(self, words: Sequence[str], cold: bool = False) -> Finished:
        """Run a command."""
        address = None if cold or sys.platform != "linux" else self._address()
        if self._closed:
            return Finished(130, "", "interrupted")
        if address is None:
            return run_cold(words, self.threads)
        with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
            status = self._fork(address, words, (out.fileno(), error.fileno()))
            texts = [file.read() for file in (out, error) if not file.seek(0)]
        return Finished(1, texts[0], "its process was lost") if status is None else Finished(status, *texts)

    def show(self, words: Sequence[str]) -> int:
        """Run a command whose output goes where that of this process goes; return its exit status."""
        address = self._address() if sys.platform == "linux" else None
        if self._closed:
            return 130
        sys.stdout.flush()
        if address is not None:
            status = self._fork(address, words, (1, 2))
            return 1 if status is None else status
        process = subprocess.Popen([sys.executable, "-m", COMMAND, *words], env=_environment(self.threads))
        return outlast(process.wait)

    def _fork(self, address: str, words: Sequence[str], outputs: Sequence[int]) -> int | None:
        """Run a command with these descriptors as its output; return its exit status, None if its process was lost."""
        request: Request = (list(words), os.getcwd(), _environment(self.threads))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            socket.send_fds(connection, [b"\n"], outputs)
            connection.sendall(f"{json.dumps(request)}\n".encode())
            answer = outlast(connection.makefile().readline)
        return int(answer) if answer else None

    def _address(self) -> str | None:
        """Start the server if it does not run, wait until it listens, and return the path of its socket, if any."""
        address = str(Path(self._place.name) / "socket")
        with self._lock:
            if self._closed:
                return None
            if self._server is None or self._server.poll() is not None:
                Path(address).unlink(missing_ok=True)
                command = [sys.executable, "-m", "maskgym.experiments.grids.fork_server", address, *self.parts]
                environment = {**_environment(self.threads), **SERVER}
                self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
                assert self._server.stdout is not None  # a pipe
                if not self._server.stdout.readline():
                    # Ctrl-C reaches the server too, and the command that waited for it must not start.
                    self._closed |= self._server.wait() == -signal.SIGINT
                    return None
        return address


def outlast(wait: Callable[[], _Found]) -> _Found:
    """Wait for what Ctrl-C has reached too, and then raise the interruption.

    `timeout` and some shells send the signal twice at once; a later one is somebody who does not want to wait.

    Raises:
        KeyboardInterrupt: After the wait if it was interrupted, or in it a second later.
    """
    first: float | None = None
    while True:
        try:
            found = wait()
        except KeyboardInterrupt:
            first = first or time.monotonic()
            if time.monotonic() > first + 1:
                raise
        else:
            if first is not None:
                raise KeyboardInterrupt
            return found


def threads_of(share: int) -> str:
    """Return the number of threads of a command: what ``OMP_NUM_THREADS`` says, else its share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(share)


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": threads_of(threads)}
