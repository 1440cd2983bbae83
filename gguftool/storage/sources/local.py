"""Local files as sources.

A local source keeps no descriptor: each use opens the file, compares its identity with the recorded one, and closes
it. That costs a few microseconds per extent. It bounds the number of open files for sets of thousands of shards, and
ensures that the bytes come from the file in the plan.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gguftool.errors import SourceError
from gguftool.record import record
from gguftool.storage.sources.sidecars import refuse_unfinished
from gguftool.storage.sources.source import Source
from gguftool.storage.system.fileio import read_some
from gguftool.storage.system.names import open_file

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)


class FileStamp(NamedTuple):
    """The values that identify one version of one file; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """The stamp of a file, from its status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@record
class LocalSource(Source):
    """A regular file, known by its stamp."""

    path: Path
    file_stamp: FileStamp

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self.file_stamp.size

    @property
    def identity(self) -> str:
        """Device, inode, size, mtime and ctime."""
        return "local:" + ":".join(str(part) for part in self.file_stamp)

    @property
    def file_id(self) -> tuple[int, int]:
        """(device, inode)."""
        return self.file_stamp.device, self.file_stamp.inode

    @property
    def parallelism(self) -> int:
        """Two: the kernel serializes writes to a file, so one thread reads while another writes."""
        return 2

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Lend a read-only descriptor; raise `SourceError` if the file cannot be opened or was replaced."""
        fd = _open(self.path)
        try:
            self._compare(_status(fd, self.path))
            yield fd
        finally:
            os.close(fd)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        with self.descriptor() as fd:
            return self.read_fully(fd, offset, length)

    def read_fully(self, fd: int, offset: int, length: int) -> bytes:
        """Read from a lent descriptor; raise `SourceError` if the file ends early or the disk fails."""
        parts = []
        while length:
            try:
                part = read_some(fd, length, offset)
            except OSError as error:
                raise SourceError(f"cannot read: {error.strerror}", source=self.name, offset=offset) from error
            if not part:
                raise SourceError(
                    f"ends here, {length:,} bytes early; it was {self.size:,} bytes long when it was opened",
                    source=self.name,
                    offset=offset,
                )
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_unchanged(self) -> None:
        """Raise `SourceError` if path, size, times or inode differ from those at opening."""
        with self.descriptor():
            pass

    def _compare(self, status: os.stat_result) -> None:
        now = FileStamp.of(status)
        if now != self.file_stamp:
            pairs = zip(FileStamp._fields, self.file_stamp, now, strict=True)
            changed = ", ".join(field for field, old, new in pairs if old != new)
            raise SourceError(f"changed since it was opened ({changed}); start again", source=self.name)


def open_local(path: Path) -> LocalSource:
    """Open the regular file at `path`.

    Raises `SourceError` if it does not exist, is not readable, or a change of it was interrupted.
    """
    refuse_unfinished(path)
    return open_local_even_unfinished(path)


def open_local_even_unfinished(path: Path) -> LocalSource:
    """Open the regular file at `path`, even in the middle of a change in place: for recovery.

    The first read shows whether it is readable.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise SourceError("is a directory; expected a file", source=str(path))
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("is not a regular file (a pipe or a device cannot be read at offsets)", source=str(path))
    return LocalSource(path=path, file_stamp=FileStamp.of(status))


def _open(path: Path) -> int:
    try:
        return open_file(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: Exception) -> SourceError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return SourceError(f"cannot open: {reason}", source=str(path))


def _status(fd: int, path: Path) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=str(path)) from error
