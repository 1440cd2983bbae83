"""Sources and systems that misbehave, and what a folder looks like afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gguftool.errors import SourceError
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.source import Extent, Source, stream_in_steps


@dataclass(frozen=True)
class MemorySource:
    """A source without a file behind it, as a remote or a computed one."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> str:
        return f"memory:{self.name}:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def file_id(self) -> None:
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.data):
            raise SourceError("ends early", source=self.name, offset=offset)
        return self.data[offset : offset + length]

    @property
    def parallelism(self) -> int:
        return 2

    def stream(self, offset: int, length: int):
        return stream_in_steps(self, offset, length, 1 << 16)

    def descriptor(self) -> None:
        return None

    def check_unchanged(self) -> None:
        pass


def copy_plan(source: Source, *targets: Path, pieces: int = 2) -> Plan:
    """A plan that copies all of `source` into each target, behind a head of 16 bytes, in pieces with gaps of 16."""
    size = source.size // pieces
    copies = tuple(
        Copy(extent=Extent(source=source, offset=size * piece, length=size), offset=16 + (size + 16) * piece)
        for piece in range(pieces)
    )
    outputs = tuple(
        OutputFile(path=target, head=b"%-16d" % number, copies=copies, size=16 + (size + 16) * pieces)
        for number, target in enumerate(targets)
    )
    return Plan(outputs=outputs, inputs=(source,))


def expected(source_data: bytes, number: int = 0, pieces: int = 2) -> bytes:
    """The bytes that `copy_plan` asks for in output `number`."""
    size = len(source_data) // pieces
    parts = [source_data[size * piece : size * (piece + 1)] + bytes(16) for piece in range(pieces)]
    return b"%-16d" % number + b"".join(parts)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, with its bytes; folders with none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"(folder)"
        for path in sorted(folder.rglob("*"))
    }


def helper_path(target: Path, suffix: str) -> Path:
    """Where a part file or an old shard of `target` lies: beside it, under a short name that is the same every time."""
    return target.parent / f".gguftool-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:24]}.{suffix}"


CALLS = ("open", "ftruncate", "pwrite", "pread", "copy_file_range", "fsync", "link", "rename", "replace", "mkdir")


class Faults:
    """Counts calls into the system, and fails number `fail_at` of them once."""

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
    """Mount a file system of `size` at `folder`; skip where that is not allowed."""
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
