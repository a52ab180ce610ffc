"""Atomic files, and journals of which a killed process can only truncate the last line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident


@contextmanager
def replacing(file: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside a file; on success its content replaces the file, on an error it is removed.

    Args:
        file: Path of the file; missing folders are created.
        shared: Whether several threads or processes may write the file at the same time. Their temporary names then
            differ, and what a killed process leaves behind is not overwritten by the next one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    own = f".{os.getpid()}-{get_ident()}" if shared else ""
    temporary = file.with_name(f"{file.name}{own}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:  # on a full disk or Ctrl-C the old file stays
        temporary.unlink(missing_ok=True)
        raise


def write(file: Path, content: str | bytes, flush: bool = False, shared: bool = False) -> None:
    """Write a file atomically.

    Args:
        file: Path of the file; missing folders are created.
        content: Its whole content; text is encoded as UTF-8.
        flush: Whether to wait until the content is on the disk, so that it also survives a power failure.
        shared: See `replacing`.
    """
    with replacing(file, shared) as temporary, temporary.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())


def append(file: Path, line: str) -> None:
    """Append a line to a journal, and wait until it is on the disk."""
    with file.open("ab") as stream:
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def whole_lines(file: Path, repair: bool = True) -> bytes:
    """Read the whole lines of a journal; empty if it is absent.

    Args:
        file: Path of the journal.
        repair: Whether to remove a last line that a crash truncated.
    """
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if repair and len(whole) < len(content):
        os.truncate(file, len(whole))
    return whole
