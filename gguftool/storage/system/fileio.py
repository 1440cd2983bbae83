"""Reading and writing at offsets, and starting write-back, on every system.

Where the system has `preadv` and `pwrite` no file position is involved and threads need no lock.  Where it has not
(Windows) one lock guards seek and transfer: slower with several threads, and right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from gguftool.errors import ExecuteError

_POSITION = threading.Lock()
_WRITE = 2  # SYNC_FILE_RANGE_WRITE in linux/fs.h: start, do not wait


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Read up to ``len(buffer)`` bytes from `offset`; return how many, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = read_some(fd, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def read_some(fd: int, length: int, offset: int) -> bytes:
    """Return up to `length` bytes from `offset`, none at the end of the file."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _POSITION:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """Return `length` bytes from `offset`, however many calls it takes; fewer where the file ends."""
    data = read_some(fd, length, offset)
    while len(data) < length:
        more = read_some(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write_some(fd: int, data: memoryview, offset: int) -> int:
    """Write `data` at `offset`; return how many bytes the system took."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _POSITION:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def write_fully(fd: int, data: bytes | memoryview, offset: int, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write all of `data`, however many calls it takes, or until `stopped`.

    Raises `ExecuteError` where a call writes nothing, `OSError` that says the offset where one fails.
    """
    view = memoryview(data)
    while view and not stopped():
        try:
            written = write_some(fd, view, offset)
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)} at offset {offset:,}") from error
        if written <= 0:
            raise ExecuteError("the file system accepted no more bytes", offset=offset)
        view = view[written:]
        offset += written


def leading_hole(fd: int, offset: int, length: int) -> int:
    """Return how many bytes at the start of a range are a hole of a sparse file, 0 where that cannot be told.

    Only the leading hole: on tmpfs, asking where data ends walks through all of it. A file that was cut shorter looks
    like a hole too, so the range must lie inside the file.
    """
    status = os.fstat(fd)
    if not hasattr(os, "SEEK_DATA") or status.st_blocks * 512 >= status.st_size or status.st_size < offset + length:
        return 0
    try:
        return min(length, os.lseek(fd, offset, os.SEEK_DATA) - offset)
    except OSError as error:
        return length if error.errno == errno.ENXIO else 0


class WriteBack:
    """Lets the disk begin with what was just written, without waiting; errors show in the later fsync.

    The kernel by itself starts only when a tenth of the memory is dirty, so without this the disk idles while the
    copy runs and the copy waits while the disk writes. A run that writes little is at its fsync before the call would
    be loaded, which takes 2 ms, so nothing is done for the first `unstarted` bytes.
    """

    def __init__(self, unstarted: int) -> None:
        self._unstarted = unstarted  # need not be exact: threads may count at once

    def start(self, fd: int, offset: int, length: int) -> None:
        """Start write-back of a range of an open file, where the system can."""
        if self._unstarted > 0:
            self._unstarted -= length
            return
        call = _sync_file_range()
        if call is not None:
            call(fd, offset, length, _WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Return Linux's sync_file_range, None on other systems: it is not in `os`."""
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


# --- durability ------------------------------------------------------------------------------------------------------


try:
    import fcntl
except ImportError:  # Windows
    _FULL_SYNC = None
else:
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS alone: its fsync leaves data in the drive's cache

# What F_FULLFSYNC answers on file systems that have no such notion (network ones, some external disks).
_NO_FULL_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
# What fsync answers for a folder on file systems that have no such notion (some FUSE and network ones).
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF})


def sync_file(fd: int) -> None:
    """Make the bytes of an open file durable; raise `OSError` where the disk says that they are not."""
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(fd, _FULL_SYNC)
        except OSError as error:
            if error.errno not in _NO_FULL_SYNC:
                raise
        else:
            return
    os.fsync(fd)


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in `folders` durable; raise `OSError` where the disk says that they are not."""
    if os.name == "nt":
        return  # Windows has no descriptors of folders
    for folder in dict.fromkeys(folders):
        fd = os.open(folder, os.O_RDONLY)
        try:
            sync_file(fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            close_quietly(fd)


def close_quietly(fd: int) -> None:
    """Close a descriptor whose data is durable, or of which nothing is wanted: what close answers changes nothing."""
    with contextlib.suppress(OSError):
        os.close(fd)


def bulk_sync(folders: Iterable[Path], cleanup: contextlib.ExitStack) -> Callable[[], None] | None:
    """Return a call that makes everything written since now durable, or None where the system has no syncfs.

    The descriptors are opened before the first write: syncfs reports write-back errors since its descriptor's opening.
    """
    if os.name == "nt" or _syncfs() is None:
        return None
    fds = []
    for folder in dict.fromkeys(folders):
        fd = os.open(folder, os.O_RDONLY)
        cleanup.callback(close_quietly, fd)
        fds.append(fd)

    def sync_all() -> None:
        for fd in fds:
            syncfs(fd)

    return sync_all


def syncfs(fd: int) -> None:
    """Write back the whole file system of `fd`; raise `OSError` where that failed since `fd` was opened."""
    import ctypes

    call = _syncfs()
    while call is not None and call(fd) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:  # which Python retries for the calls of `os`, but not here
            raise OSError(number, os.strerror(number))


def _syncfs() -> Callable[[int], int] | None:
    """Return Linux's syncfs, None on other systems: it is not in `os`, and what calls it takes a while to load."""
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
