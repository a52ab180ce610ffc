"""Atomic files: a killed process leaves the old file or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file; on success its content replaces the file, on an error it is removed.

    Threads and processes that write the same file use separate temporary paths. Missing folders are created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException:  # on a full disk or Ctrl-C the old file stays
        temporary.unlink(missing_ok=True)
        raise


def write(file: Path, content: str | bytes, flush: bool = False) -> None:
    """Write a file atomically; text is encoded as UTF-8.

    Args:
        file: Path of the file.
        content: Its whole content.
        flush: Whether to wait until the content is on the disk, so that it also survives a power failure.
    """
    with replacing(file) as temporary, temporary.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())
