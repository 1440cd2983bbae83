"""The output of `measure`: each line is appended as a whole and made durable, so that a killed run loses no line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from gguftool.cooking.measure_lines import (
    MAX_FILE,
    Basis,
    ErrorLine,
    FloorLine,
    KldLine,
    Line,
    MeasureFile,
    foreign_line,
    parse_measure,
    serialize_line,
)
from gguftool.cooking.measuring.work_folder import lock_file
from gguftool.errors import ExecuteError, PlanError
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.system.fileio import close_quietly, read_fully, set_size, sync_file, sync_folders
from gguftool.storage.system.names import open_file


class MeasureOutput:
    """The file at `path`, which may exist; `lines` are the lines in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        found = read_output(path)
        self.lines: list[Line] = list(found.lines)
        self._nbytes = found.nbytes

    def check(self, basis: Basis) -> None:
        """Raise `PlanError` if a line was measured on something else than `basis`."""
        found = foreign_line(self.lines, basis)
        if found is not None:
            number, differences = found
            raise PlanError(
                f"was measured with different inputs ({' and '.join(differences)}); give another file with -o",
                source=str(self.path),
                where=f"line {number}",
            )

    def begin(self) -> None:
        """Open or create the file, and cut off the incomplete line that a killed run left.

        Raises `ExecuteError` if another run is writing to it, or has written to it since it was read.
        """
        if self._fd is not None:
            return
        is_new = not self.path.exists()
        self._fd = _open(self.path)
        lock_file(self._fd, self.path, "another run is writing to it; wait for it, or stop it")
        size = os.fstat(self._fd).st_size
        kept = read_fully(self._fd, size, 0).rfind(b"\n") + 1
        if kept != self._nbytes:
            self.close()
            raise ExecuteError("changed while this run began; run it again", source=str(self.path))
        if kept != size:
            set_size(self._fd, kept)
        if is_new:
            sync_folders([self.path.absolute().parent])

    def append(self, line: Line) -> None:
        """Append a line and make it durable; raises `ExecuteError` if that fails."""
        self.begin()
        assert self._fd is not None
        data, size = serialize_line(line).encode(), os.fstat(self._fd).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            sync_file(self._fd)
        except OSError as error:
            set_size(self._fd, size)
            full = " (make room and run it again)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise ExecuteError(f"cannot write: {error.strerror}{full}", source=str(self.path)) from error
        self.lines.append(line)
        self._nbytes += len(data)

    def __enter__(self) -> MeasureOutput:
        """Use the file until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            close_quietly(self._fd)
            self._fd = None

    def arrange(self, keys: Iterable[tuple[object, ...]]) -> None:
        """Write the lines in order: the floor, lines that this run did not request, then `keys` in their order."""
        places = {key: place for place, key in enumerate(keys)}
        ordered = sorted(self.lines, key=lambda line: _place(line, places))
        if ordered == self.lines:
            return
        self.close()
        head = "".join(map(serialize_line, ordered)).encode()
        output = OutputFile(path=self.path, head=head, copies=(), size=len(head))
        execute(Plan(outputs=(output,), inputs=()), Options(force=True, resume=False))
        self.lines = ordered


def _place(line: Line, places: dict[tuple[object, ...], int]) -> int:
    if isinstance(line, FloorLine):
        return -2
    return places.get(line.key, -1) if isinstance(line, (KldLine, ErrorLine)) else -1


def read_output(path: Path) -> MeasureFile:
    """Read the file at `path`, empty if it is absent.

    Raises `FormatError` for one that `measure` did not write, `ExecuteError` if it cannot be read.
    """
    try:
        fd = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return MeasureFile(lines=(), nbytes=0)
    except OSError as error:
        raise ExecuteError(f"cannot be read: {error.strerror}", source=str(path)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ExecuteError("is not a regular file", source=str(path))
        data = read_fully(fd, min(status.st_size, MAX_FILE + 1), 0)
    finally:
        close_quietly(fd)
    return parse_measure(data, str(path))


def _open(path: Path) -> int:
    try:
        return open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666, follow=False)
    except OSError as error:
        hint = "is a symbolic link; name the file itself" if error.errno == errno.ELOOP else error.strerror
        raise ExecuteError(f"cannot write: {hint}", source=str(path)) from error
