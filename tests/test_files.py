"""Journals on a full disk, after a kill, and with several writers; locks; what may be written to."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from maskgym import files
from maskgym.errors import UserError


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let files grow to ``size`` bytes only, as on a full disk: what fits of a line is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", range(8, 20))
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, room):
    journal = tmp_path / "journal"
    files.append(journal, "saved")
    with room_for(room), pytest.raises(OSError, match="too large"):
        files.append(journal, "not saved yet.")
    assert journal.read_bytes() == b"saved\n"
    files.append(journal, "again")
    assert journal.read_bytes() == b"saved\nagain\n"


@pytest.mark.parametrize("left", [b"", b"first\n", b"fir", b"first\nsec", b"first\nsecond"])
def test_what_a_kill_left_of_a_line_is_not_continued(tmp_path, left):
    journal = tmp_path / "journal"
    journal.write_bytes(left)
    files.append(journal, "third")
    assert journal.read_bytes() == left[: left.rfind(b"\n") + 1] + b"third\n"


def test_several_writers_lose_no_line(tmp_path):
    journal, lines = tmp_path / "journal", [f"{number} " * 200 for number in range(60)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda line: files.append(journal, line), lines))
    assert sorted(journal.read_text().splitlines()) == sorted(lines)


def _hold(folder, held) -> None:
    with files.alone(folder, "run"):
        held.set()
        time.sleep(60)


def test_a_folder_has_one_holder_and_a_killed_one_leaves_it_free(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(30)
        with pytest.raises(UserError, match=r"another process is at work here \(run\)"), files.alone(tmp_path, "run"):
            pass
        with files.alone(tmp_path, "other"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    finally:
        process.kill()  # as no process can prevent
        process.join()
    with files.alone(tmp_path, "run"):
        assert (tmp_path / ".run.lock").exists()
    assert not any(tmp_path.iterdir())


def test_a_lock_whose_file_is_removed_while_one_waits_to_open_it_is_taken_again(tmp_path, monkeypatch):
    fstat, file = os.fstat, tmp_path / ".run.lock"
    removed = []

    def remove_first(descriptor):
        if not removed:
            removed.append(file.unlink())
        return fstat(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", remove_first)
        lock = files.alone(tmp_path, "run")
        lock.__enter__()
    with pytest.raises(UserError, match="another process"), files.alone(tmp_path, "run"):
        pass
    lock.__exit__(None, None, None)
    assert removed and not file.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none/\.run\.lock: cannot be written: No such file"):
        files.alone(tmp_path / "none", "run").__enter__()


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(OSError, match=f"is no regular file.*{name}"):
            files.read(tmp_path / name)
    (tmp_path / "file").write_text("x")
    assert files.read(tmp_path / "file") == b"x"


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(UserError, match=f"{name}: is no regular file"):
            files.write(tmp_path / name, "x")
    with pytest.raises(UserError, match="^/dev/null: is no regular file"):
        files.write(files.Path("/dev/null"), "x")
    files.write(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x" and (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob("*.tmp"))


def _chained(inner: Exception, outer: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "x", "a/b"), "a/b: No space left on device"),
        (_chained(OSError(errno.EDQUOT, "x"), RuntimeError("y")), "Disk quota exceeded"),
        (_chained(_chained(OSError(errno.EROFS, "x", "c"), ValueError()), KeyError()), "c: Read-only file system"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device"),  # safetensors
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1 vs 0"), "PyTorch could not write"),
        (OSError(errno.ENOENT, "x"), None),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), None),
    ],
)
def test_an_error_of_the_disk_is_found_among_the_causes(error, expected):
    found = files.disk_error(error)
    assert found is None if expected is None else found.startswith(expected)


def test_libraries_that_write_to_a_full_disk_are_understood(tmp_path):
    import torch
    from safetensors.torch import save_file

    big = {"x": torch.zeros(100_000)}
    for save in (lambda: torch.save(big, tmp_path / "a.pt"), lambda: save_file(big, tmp_path / "b.safetensors")):
        with room_for(1000), pytest.raises(Exception) as caught:
            save()
        assert files.disk_error(caught.value)


def test_a_disk_without_locks_is_told_and_takes_lines(tmp_path, monkeypatch):
    def refuse(stream, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for line in ("first", "second"):
        with pytest.warns(UserWarning, match="journal: no lock .*: start no second process here"):
            files.append(tmp_path / "journal", line)
    assert (tmp_path / "journal").read_bytes() == b"first\nsecond\n"
