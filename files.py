"""Atomic files: a killed process leaves the old file or the new one, never a part."""

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
