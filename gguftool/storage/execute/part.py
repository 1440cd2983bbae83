"""Part files: an output is written to one until it is complete.

A part file is created in the target's folder (so that publishing is a rename within one file system) under a short name
derived from the target's name: a later run finds it, and a target name of 255 bytes still works. An exclusive lock
tells a live run from a killed one: a locked part is refused, an unlocked one is left over and is taken over (see
`resume`) or removed. Nothing is ever written under the final name.

A part file that is the only copy of its bytes (see `consume`) has another name, and no other run takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.sources.sidecars import PART, consume_path, helper_path, only_copy_path
from gguftool.storage.system.fileio import close_quietly
from gguftool.storage.system.ownership import check_helper, create_helper, open_helper, remove_helper

try:
    import fcntl
except ImportError:  # Windows: only O_EXCL keeps two runs on one target apart
    HAVE_LOCKS = False
else:
    HAVE_LOCKS = True

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@record
class PartFile:
    """An open, locked part file, its final path `target`, and its (device, inode)."""

    path: Path
    target: Path
    fd: int
    file_id: tuple[int, int]

    def close(self) -> None:
        """Close the descriptor, which releases the lock; errors after the last fsync do not matter."""
        close_quietly(self.fd)

    def is_published(self) -> bool:
        """Whether the final name is this file."""
        try:
            status = os.lstat(self.target)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.file_id


def create_part(target: Path, size: int) -> PartFile:
    """Create the part file for `target` with `size` zero bytes; remove one that a killed run left.

    Raises `ExecuteError` if another run holds it.
    """
    path = helper_path(target, PART)
    remove_left_over(target)
    try:
        fd = create_helper(path)
    except FileExistsError:
        raise busy(target) from None
    try:
        part = _lock_part(fd, path, target)
    except BaseException:
        close_quietly(fd)
        raise
    try:
        os.ftruncate(fd, size)
    except BaseException:
        remove_quietly(path)
        close_quietly(fd)
        raise
    return part


def take_over(target: Path, size: int) -> PartFile | None:
    """Open and lock the part file that an interrupted run left for `target`, or None if there is none of this size.

    A file with a second name is never written to: after a crash in `publish`, that name is the final one.
    Raises `ExecuteError` if another run holds it.
    """
    path = helper_path(target, PART)
    try:
        fd = open_helper(path, target=target)
    except FileNotFoundError:
        return None
    try:
        part = _lock_part(fd, path, target)
        status = os.fstat(fd)
        if status.st_size == size and status.st_nlink == 1:
            return part
    except BaseException:
        close_quietly(fd)
        raise
    close_quietly(fd)
    return None


def remove_left_over(target: Path) -> None:
    """Remove the part file of a killed run; raise `ExecuteError` if its run is still live."""
    path = helper_path(target, PART)
    try:
        fd = open_helper(path, target=target)
    except FileNotFoundError:
        return
    try:
        if not lock(fd):
            raise busy(target)
        # Unlinked, never truncated: after a crash in `publish` it may be a second name of a published file.
        remove_helper(path)
    finally:
        close_quietly(fd)


def refuse_busy(target: Path) -> None:
    """Raise `ExecuteError` if a live run holds the part file of `target`."""
    try:
        fd = open_helper(helper_path(target, PART), target=target)
    except FileNotFoundError:
        return
    try:
        if not lock(fd):
            raise busy(target)
    finally:
        close_quietly(fd)


def publish(part: Path, target: Path) -> None:
    """Give a complete part file its final name; never replace an existing file, but raise `ExecuteError`."""
    try:
        os.link(part, target)  # link never replaces a file; rename does
    except FileExistsError:
        raise exists_already(target) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise exists_already(target) from None
        os.rename(part, target)
        return
    remove_quietly(part)  # harmless if it stays: the next run removes this second name


def remove_quietly(path: Path) -> None:
    """Unlink `path`, or leave it if that fails."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def exists_already(target: Path) -> ExecuteError:
    """Make the error for an output with a final name that is taken."""
    return ExecuteError("exists already; --force replaces it", source=str(target))


def lock(fd: int) -> bool:
    """Take the exclusive lock of an open file; return False if another run holds it."""
    if not HAVE_LOCKS:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: O_EXCL must suffice
    return True


def busy(target: Path) -> ExecuteError:
    """Make the error for an output that a live run is writing."""
    return ExecuteError("another gguftool is writing this file; wait for it or stop it", source=str(target))


def _lock_part(fd: int, path: Path, target: Path) -> PartFile:
    """Lock an open part file; raise `ExecuteError` if another run was faster."""
    if not lock(fd):
        raise busy(target)
    status = os.fstat(fd)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        raise busy(target) from None
    if not os.path.samestat(status, there):
        raise busy(target)
    return PartFile(path=path, target=target, fd=fd, file_id=(status.st_dev, status.st_ino))


# --- parts that are the only copy of their bytes, see `consume` ------------------------------------------------------


def refuse_only_copies(targets: Iterable[Path]) -> None:
    """Raise `ExecuteError` if an unfinished run that removes its sources writes one of `targets`."""
    for target in targets:
        for path in (consume_path(target), only_copy_path(target)):
            if os.path.lexists(path):
                check_helper(path, target=target, twin=helper_path(path, PART))
                raise ExecuteError(
                    f"an unfinished merge --consume lies here: {path.name} may be the only copy of tensors whose files "
                    f"are gone; 'gguftool merge ... -o OUT --consume', as it was begun, goes on",
                    source=str(target),
                )
