"""A server that has imported the libraries of a run, and forks one process per `maskgym` command.

``python -m maskgym.experiments.grids.fork_server SOCKET PART …`` imports its parts, prints a line, and listens on a
Unix socket. A part is a module, or ``module:name`` for the entry of a registry. A client sends the two files for the
command's output as descriptors, then a `Request` as a line of JSON, and receives the exit status. The server computes
nothing, because threads and CUDA do not survive a fork. OpenBLAS starts threads when it is imported, but stops them
before a fork. The server exits with the process that started it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from maskgym.errors import UserError

COMMAND = "maskgym.experiments.cli"
PATIENCE_S = 0.5  # interval at which the server looks for its parent


# A command: its words, working directory and environment variables.
Request = tuple[list[str], str, dict[str, str]]


def main(address: str, *parts: str) -> int:
    """Serve at a socket; return the exit status of a command, in the process that was forked for it."""
    ended: list[int] = []  # the exit status of a command that ended without an exception
    atexit.register(_leave, ended)  # registered before any library, and therefore called last
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import without a traceback
    for part in parts:
        with suppress(ImportError, UserError):  # a command that needs it tells more
            module, _, name = part.partition(":")
            found = importlib.import_module(module)
            if name:
                found.get(name)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return 1  # by an import; its client runs commands cold
    gc.freeze()  # a collection in a command would copy the memory that it shares with the server
    # Ctrl-C reaches the commands too, which end by themselves. One that comes while a command is forked waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps the processes that wait for commands
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        print("ready", flush=True)
        words = _serve(listener)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        ended.append(importlib.import_module(COMMAND).main(words))
    except KeyboardInterrupt:  # before the command could take it
        print("interrupted", file=sys.stderr)
        ended.append(130)
    return ended[0]


def _leave(ended: list[int]) -> None:
    """Exit without freeing every imported object, which takes a second, after a command that has ended."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


def _serve(listener: socket.socket) -> list[str]:
    """Fork a process per connection; return only in a process that is to run a command, with its words."""
    parent = os.getppid()
    while True:
        if not select.select([listener], [], [], PATIENCE_S)[0]:
            if os.getppid() != parent:
                os._exit(0)
            continue
        connection, _ = listener.accept()
        with connection:
            if not os.fork() and (words := _fork_command(connection)) is not None:
                return words


def _fork_command(connection: socket.socket) -> list[str] | None:
    """Fork a command, wait for it, report its exit status and exit; return the words in the command's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, *_ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("rb") as stream:
        words, directory, environment = json.loads(stream.readline())
    if command := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        connection.sendall(f"{status}\n".encode())
        os._exit(0)
    for place, file in enumerate(files, start=1):
        os.dup2(file, place)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["maskgym", *words]
    return words


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
