"""Part files: where an output grows until it is complete.

A part file lies in the target's folder (so that publishing is a rename within one file system) under a short name
derived from the target's name: a later run finds it, and a target name of 255 bytes still works.  An exclusive lock
tells a running writer from a killed one: a part that is locked is refused, one that is not is a left-over and goes.
Nothing is ever written under the final name, and publishing never replaces a file unless that was asked for.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.local import helper_path

try:
    import fcntl
except ImportError:  # Windows: two runs on one target are told apart by O_EXCL alone
    HAVE_LOCKS = False
else:
    HAVE_LOCKS = True

_CREATE = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """An open part file and the final path that it will be published under."""

    path: Path
    target: Path
    fd: int

    def close(self) -> None:
        """Close the descriptor, and with it drop the lock."""
        os.close(self.fd)


def create_part(target: Path, size: int) -> PartFile:
    """Create the part file for `target` with `size` zero bytes, removing a left-over of a killed run.

    Raises `ExecuteError` where another run holds it.
    """
    path = helper_path(target, "part")
    _remove_left_over(path, target)
    try:
        fd = os.open(path, _CREATE, 0o666)
    except FileExistsError:
        raise _busy(target) from None
    if not (_lock(fd) and _is_same(fd, path)):
        os.close(fd)
        raise _busy(target)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        path.unlink()
        raise
    return PartFile(path=path, target=target, fd=fd)


def publish(part: Path, target: Path, *, replace: bool) -> None:
    """Give the finished part file its final name; without `replace` an existing file is an `ExecuteError`."""
    if replace:
        os.replace(part, target)
        return
    try:
        os.link(part, target)  # unlike rename, link never replaces
    except FileExistsError:
        raise exists_already(target) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise exists_already(target) from None
        os.rename(part, target)
        return
    os.unlink(part)


def exists_already(target: Path) -> ExecuteError:
    """The error for an output whose final name is taken."""
    return ExecuteError("exists already; --force replaces it", source=str(target))


def _remove_left_over(path: Path, target: Path) -> None:
    try:
        fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return
    try:
        if not _lock(fd):
            raise _busy(target)
        # Unlinked, never truncated: after a crash in `publish` it may be a second name of a published file.
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    if not HAVE_LOCKS:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: O_EXCL has to do
    return True


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _busy(target: Path) -> ExecuteError:
    return ExecuteError("another gguftool is writing this file; wait for it or stop it", source=str(target))
