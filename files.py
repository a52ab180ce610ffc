"""Atomic files, journals of which a killed process can only truncate the last line, locks, and full disks."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import IO

from maskgym.errors import UserError

# Errors of a disk that takes no more, and how PyTorch reports any of them, without a number.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
TORCH_WRITER = ("PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def replacing(file: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside a file; on success its content replaces the file, on an error it is removed.

    Args:
        file: Path of the file; missing folders are created.
        shared: Whether several threads or processes may write the file at the same time. Their temporary names then
            differ, and what a killed process leaves behind is not overwritten by the next one.

    Raises:
        UserError: If the path is a device, a pipe or a folder, which a renamed file would replace.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: is no regular file: expected another path to write to")
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


def read(file: Path) -> bytes:
    """Read a regular file: a pipe in its place would be waited for, and a device may have no end.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(file))
    return file.read_bytes()


def append(file: Path, line: str) -> None:
    """Append a line to a journal, and wait until it is on the disk; several threads or processes may do so at once.

    What a killed writer left of a line is removed first, because nobody was told that it was saved.

    Raises:
        OSError: If the line cannot be written, as on a full disk; the whole lines of the journal are as before.
    """
    with file.open("a+b", buffering=0) as stream, _exclusive(stream):
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(-1, os.SEEK_END)
            end = end if stream.read(1) == b"\n" else len(whole_lines(file))
        rest = memoryview(f"{line}\n".encode())
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
        except BaseException:
            stream.truncate(end)
            raise


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for a lock file and hold it; the operating system releases it when the process ends.

    Raises:
        OSError: If the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream, _exclusive(stream):
        yield


@contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Lock a folder for one kind of work; the operating system releases the lock when the process ends.

    Raises:
        UserError: If another process holds it, or the folder cannot be written.
    """
    file = folder / f".{work}.lock"
    try:
        stream = _open_locked(file)
    except BlockingIOError:
        raise UserError(f"{folder}: another process is at work here ({work}): wait for it") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error
    with stream:
        try:
            yield
        finally:
            with suppress(OSError):  # a disk that became read-only
                file.unlink()


def disk_error(error: BaseException) -> str | None:
    """Describe the error of a full or unwritable disk among an error and its causes; None if there is none.

    Libraries wrap such errors, or put the system's words into errors of their own.
    """
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        said = str(error)
        for number in DISK_ERRORS:
            words = os.strerror(number)
            if getattr(error, "errno", None) == number or f"(os error {number})" in said or words in said:
                return f"{error.filename}: {words}" if isinstance(error, OSError) and error.filename else words
        if any(sign in said for sign in TORCH_WRITER):
            return "PyTorch could not write a file"
        error = error.__cause__ or error.__context__ or error
    return None


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


def _open_locked(file: Path) -> IO[bytes]:
    """Open and lock a lock file.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the file cannot be written.
    """
    while True:
        stream = file.open("ab")
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        except ImportError:  # Windows has no such locks
            return stream
        except FileNotFoundError:  # its last holder removed it meanwhile
            pass
        except BlockingIOError:
            stream.close()
            raise
        except OSError as error:  # some network file systems have no locks
            print(f"{file}: no lock ({error.strerror}): start no second process here", file=sys.stderr)
            return stream
        stream.close()


@contextmanager
def _exclusive(stream: IO[bytes]) -> Iterator[None]:
    """Wait for the lock of an open file, which closing it releases; Windows has no such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        warnings.warn(f"{stream.name}: no lock ({error.strerror}): start no second process here", stacklevel=4)
    yield
