"""Locks of open files."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from gguftool.storage.system import locks
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import open_file


def test_a_lock_is_exclusive_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    one, two = (open_file(path, os.O_RDWR) for _ in range(2))
    assert lock(one) is True
    assert lock(two) is False
    assert path.read_bytes() == b"content"
    os.close(one)
    assert lock(two) is True
    os.close(two)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is a call of POSIX: run on Linux or macOS")
def test_a_file_system_without_locks_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "none")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    fd = open_file(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    assert lock(fd) is True
    os.close(fd)
