"""What makes bytes and names outlive a power cut: fsync of files and folders, and one syncfs for many files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

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
