"""File I/O on every system: reads and writes at offsets, early write-back, durability.

Positional I/O: `preadv` and `pwrite`, and the calls of Windows, take an offset, so there is no shared file position and
threads need no lock.

Write-back: `WriteBack` starts writing to disk while the copy runs, with Linux's `sync_file_range`.

Durability: `sync_file` and `sync_folders` use fsync, or F_FULLFSYNC on macOS. `bulk_sync` uses one Linux `syncfs` for
many files. Errors of `close` are ignored: they change nothing after a sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.system.names import HAVE_FOLDER_DESCRIPTORS
from gguftool.storage.system.space import allocated_bytes

if sys.platform == "win32":
    from gguftool.storage.system import windows

_MAX_READ = 1 << 24  # bytes that one call reads on Windows, where it allocates a buffer for them
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: start, do not wait


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Read up to ``len(buffer)`` bytes at `offset`; return the number of bytes read, 0 at the end of the file."""
    if sys.platform == "win32":
        return windows.read_into(fd, buffer, offset)
    else:
        return os.preadv(fd, [buffer], offset)


def read_some(fd: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at `offset` in one call; empty at the end of the file."""
    if sys.platform == "win32":
        buffer = bytearray(min(length, _MAX_READ))
        return bytes(buffer[: windows.read_into(fd, memoryview(buffer), offset)])
    else:
        return os.pread(fd, length, offset)


def read_fully(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`, in several calls if needed; fewer only if the file ends."""
    data = read_some(fd, length, offset)
    while len(data) < length:
        more = read_some(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write_some(fd: int, data: memoryview, offset: int) -> int:
    """Write `data` at `offset` in one call; return the number of bytes written."""
    if sys.platform == "win32":
        return windows.write_some(fd, data, offset)
    else:
        return os.pwrite(fd, data, offset)


def set_size(fd: int, size: int) -> None:
    """Set the size of an open file; bytes beyond its old end read as zeros, and take no space if the system can."""
    if sys.platform == "win32":
        windows.set_size(fd, size)
    else:
        os.ftruncate(fd, size)


def write_fully(fd: int, data: bytes | memoryview, offset: int, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write all of `data`, in several calls if needed, or until `stopped`.

    Raises `ExecuteError` if a call writes nothing, and `OSError` with the offset in its message if one fails.
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
    """Count the bytes of a hole (of a sparse file) at the start of a range; 0 if unknown.

    Only the leading hole is searched: on tmpfs, finding the end of data walks through all of it. A truncated file
    looks like a hole too, so the range must be inside the file.
    """
    status = os.fstat(fd)
    if not hasattr(os, "SEEK_DATA") or allocated_bytes(status) >= status.st_size or status.st_size < offset + length:
        return 0
    try:
        return min(length, os.lseek(fd, offset, os.SEEK_DATA) - offset)
    except OSError as error:
        return length if error.errno == errno.ENXIO else 0


class WriteBack:
    """Start write-back of ranges just written, without waiting; the later fsync reports errors.

    The kernel itself starts only when a tenth of the memory is dirty: the disk would idle while the copy runs, and the
    copy would wait while the disk writes. Loading the call takes 2 ms, and a run that writes little reaches its fsync
    sooner, so the first `unstarted` bytes start nothing.
    """

    def __init__(self, unstarted: int) -> None:
        self._unstarted = unstarted  # need not be exact: several threads count without a lock

    def start(self, fd: int, offset: int, length: int) -> None:
        """Start write-back of a range of an open file, if the system can."""
        if self._unstarted > 0:
            self._unstarted -= length
            return
        call = _sync_file_range()
        if call is not None:
            call(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's sync_file_range, which is not in `os`; None on other systems."""
    try:
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


# --- durability ------------------------------------------------------------------------------------------------------


if sys.platform == "win32":
    _FULL_SYNC: int | None = None
else:
    import fcntl

    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS only: its fsync leaves data in the drive's cache

# Errors of F_FULLFSYNC on file systems that do not support it (network ones, some external disks).
_NO_FULL_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
# Errors of fsync of a folder on file systems that do not support it (some FUSE and network ones).
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF})


def sync_file(fd: int) -> None:
    """Make the bytes of an open file durable; raise `OSError` if the disk reports a failure."""
    if sys.platform != "win32" and _FULL_SYNC is not None:
        try:
            fcntl.fcntl(fd, _FULL_SYNC)
        except OSError as error:
            if error.errno not in _NO_FULL_SYNC:
                raise
        else:
            return
    os.fsync(fd)


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names in `folders` durable; raise `OSError` if the disk reports a failure."""
    if not HAVE_FOLDER_DESCRIPTORS:
        return  # its renames are durable by themselves
    for folder in dict.fromkeys(folders):
        fd = os.open(folder, os.O_RDONLY)
        try:
            sync_file(fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            close_quietly(fd)


def drop_cached(fd: int) -> None:
    """Drop cached pages of an open file, if the system can, so that the next read is from the disk."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def close_quietly(fd: int) -> None:
    """Close a descriptor and ignore errors: its data is durable already, or not needed."""
    with contextlib.suppress(OSError):
        os.close(fd)


def open_path(fd: int) -> str | None:
    """The current path of an open file, or None if it was removed, or the system cannot tell."""
    try:
        if not os.fstat(fd).st_nlink:
            return None
        if sys.platform == "darwin":
            return os.fsdecode(fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None


def bulk_sync(folders: Iterable[Path], cleanup: contextlib.ExitStack) -> Callable[[], None] | None:
    """Make a function that makes everything written from now on durable, or None if the system has no syncfs.

    Call this before the first write: syncfs reports write-back errors since its descriptor was opened.
    """
    if not HAVE_FOLDER_DESCRIPTORS or _syncfs() is None:
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
    """Write back the whole file system of `fd`; raise `OSError` if any write-back failed since `fd` was opened."""
    import ctypes

    call = _syncfs()
    while call is not None and call(fd) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:  # Python retries the calls of `os` after EINTR, but not this one
            raise OSError(number, os.strerror(number))


def _syncfs() -> Callable[[int], int] | None:
    """Linux's syncfs, which is not in `os`; None on other systems. ctypes takes a while to load."""
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
