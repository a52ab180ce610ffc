"""Journals on a full disk, after a kill, and with several writers."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from maskgym import files


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
