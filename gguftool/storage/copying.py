"""Moving one extent into an open file by the fastest call that works here.

A chain of tries: the kernel's `copy_file_range` (no byte enters this process; file systems that can share blocks do),
then plain `pread` and `pwrite` through one buffer. A named list of errnos means "not here, try the next"; anything
else is an error. Memory is one buffer, whatever the extent's length.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.source import Extent, Source

Progress = Callable[[int], None]

# What copy_file_range answers where it cannot serve these two files (man 2 copy_file_range; EPERM and EACCES are seen
# under seccomp filters and on some network file systems).
_NOT_HERE = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EBADF}
)
_KERNEL_CHUNK = 32 << 20  # bytes a call: progress moves and Ctrl-C is heard at every one
_BUFFER = 1 << 20


def copy_extent(extent: Extent, target: int, offset: int, progress: Progress) -> None:
    """Copy `extent` to `offset` of the open file `target`, calling `progress` with the bytes done since the last call.

    Raises `SourceError` where the source ends early or fails, `OSError` where the target does.
    """
    lent = extent.source.descriptor()
    done = 0
    if lent is not None and hasattr(os, "copy_file_range"):
        with lent as fd:
            done = _copy_in_kernel(fd, extent, target, offset, progress)
    _copy_plainly(extent, done, target, offset, progress)


def _copy_in_kernel(fd: int, extent: Extent, target: int, offset: int, progress: Progress) -> int:
    """Return how many bytes went through; fewer than all where the kernel declined."""
    done = 0
    while done < extent.length:
        want = min(_KERNEL_CHUNK, extent.length - done)
        try:
            moved = os.copy_file_range(fd, target, want, extent.offset + done, offset + done)
        except OSError as error:
            if error.errno in _NOT_HERE:
                break
            raise
        if moved == 0:
            break  # the end of the file, or a file system that does not know: the plain path finds out
        done += moved
        progress(moved)
    return done


def _copy_plainly(extent: Extent, done: int, target: int, offset: int, progress: Progress) -> None:
    while done < extent.length:
        data = extent.source.read_at(extent.offset + done, min(_BUFFER, extent.length - done))
        write_fully(target, data, offset + done)
        done += len(data)
        progress(len(data))


def write_fully(target: int, data: bytes, offset: int) -> None:
    """Write all of `data`, however many calls it takes; raise `ExecuteError` where a call writes nothing."""
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        if written <= 0:
            raise ExecuteError("the file system accepted no more bytes", offset=offset)
        view = view[written:]
        offset += written


def check_sources(sources: tuple[Source, ...]) -> None:
    """Raise one `SourceError` that names every source that changed since it was opened."""
    problems = []
    for source in sources:
        try:
            source.check_unchanged()
        except SourceError as error:
            problems.append(str(error))
    if problems:
        raise SourceError("; ".join(problems))
