"""Sources and systems that misbehave, and the content of a folder afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, with its bytes; folders with none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(folder)"
        for path in sorted(folder.rglob("*"))
    }


def helper_path(target: Path, suffix: str) -> Path:
    """The path of a part file or an old shard of `target`: beside it, under a short name that is always the same."""
    return target.parent / f".gguftool-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:24]}.{suffix}"


CALLS = ("open", "ftruncate", "pwrite", "pread", "copy_file_range", "fsync", "link", "rename", "replace", "mkdir")


class Faults:
    """Count system calls, and fail call number `fail_at` once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None, number: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at
        self.number = number
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **options)

        return call


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of `size` at `folder`; skip the test if that is not allowed."""
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here: run the tests as root to try full disks")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
