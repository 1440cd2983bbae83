"""Part files: an output is written to one until it is complete.

A part file is created in the target's folder (so that publishing is a rename within one file system). Its short name is
derived from the target's name: a later run finds it, and a target name of 255 bytes still works. An exclusive lock
tells a live run from a killed one: a locked part is refused; an unlocked one is left over, and is taken over (see
`resume`) or removed. Nothing is ever written under the final name.

A part file that is the only copy of its bytes (see `consume`) has another name, and no other run takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from gguftool.errors import ExecuteError, printable
from gguftool.record import record, replace
from gguftool.storage.sources.sidecars import PART, consume_path, helper_path, only_copy_path
from gguftool.storage.system.fileio import close_quietly, open_path, set_size
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import RENAME_NEVER_REPLACES, rename, unlink
from gguftool.storage.system.ownership import check_helper, create_helper, open_helper, remove_helper
from gguftool.storage.system.reflink import is_served

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


@record
class PartFile:
    """A part file, its final path `target` with the planned `size`, and its (device, inode).

    It is open and locked, or closed: then `fd` is -1, and `mtime` (in nanoseconds) tells it from a later file with the
    same inode. On network file systems, times may change after closing: there `mtime` is None.
    """

    path: Path
    target: Path
    size: int
    fd: int
    file_id: tuple[int, int]
    mtime: int | None = None

    def close(self) -> None:
        """Close the descriptor, which releases the lock; errors after the last fsync do not matter."""
        close_quietly(self.fd)

    def closed(self) -> PartFile:
        """Close it, and return a closed one, which still knows its file."""
        try:
            mtime = None if is_served(self.fd) else os.fstat(self.fd).st_mtime_ns
        finally:
            self.close()
        return replace(self, fd=-1, mtime=mtime)

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is the very file that was written."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        return self.is_file(status) and status.st_size == self.size

    def is_file(self, status: os.stat_result) -> bool:
        """Whether `status` is that of this file."""
        same = (status.st_dev, status.st_ino) == self.file_id
        return same and (self.fd >= 0 or self.mtime is None or status.st_mtime_ns == self.mtime)

    def is_published(self) -> bool:
        """Whether the final name is this file."""
        return self.is_at(self.target)

    def require(self, beside: PartFile | None = None) -> None:
        """Raise `ExecuteError` if another file, or none, is at the part's path; `beside` is an open part of the set."""
        if not self.is_at(self.path):
            raise replaced(self.path, self._place_now(beside))

    def require_place(self) -> None:
        """As `require`, also while it does not have its size."""
        try:
            is_there = self.is_file(os.lstat(self.path))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise replaced(self.path, self._place_now(None))

    def remove_quietly(self) -> None:
        """Remove it, unless another run's file has its path, or it cannot be removed."""
        with contextlib.suppress(OSError):
            if self.is_file(os.lstat(self.path)):
                unlink(self.path)

    def _place_now(self, beside: PartFile | None) -> str | None:
        """Where the written file is now, if the system can tell: its folder may have been renamed."""
        if self.fd >= 0:
            return open_path(self.fd)
        folder = None if beside is None or beside.fd < 0 else open_path(beside.fd)
        moved = None if folder is None else Path(folder).parent / self.path.name
        return str(moved) if moved is not None and self.is_at(moved) else None


def replaced(path: Path, place: str | None) -> ExecuteError:
    """Make the error for a part file that is no longer at its path; `place`: where it is now, if that is known."""
    where = "" if place is None else f"; the file that was written is now {printable(place, 4096)}"
    return ExecuteError(
        f"is not the file that was written here: it was removed or replaced, or its folder was moved{where}; "
        "no output was made or changed",
        source=str(path),
    )


def create_part(target: Path, size: int, *, is_sized: bool = True) -> PartFile:
    """Create the part file for `target` with `size` zero bytes; first remove one that a killed run left.

    Without `is_sized` it is empty, and no later run takes it over. Raises `ExecuteError` if another run holds it.
    """
    path = helper_path(target, PART)
    remove_left_over(target)
    try:
        fd = create_helper(path)
    except FileExistsError:
        raise busy(target) from None
    try:
        part = _lock_part(fd, path, target, size)
    except BaseException:
        close_quietly(fd)
        raise
    try:
        if is_sized:
            set_size(fd, size)
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
        part = _lock_part(fd, path, target, size)
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


def publish(part: Path, target: Path, is_written: Callable[[Path], bool]) -> None:
    """Give a complete part file its final name; never replace an existing file, but raise `ExecuteError`.

    `is_written`: whether the file at a path is the very one that was written. If another file got the name at the last
    moment, the name is taken back.
    """
    if not is_written(part):
        raise replaced(part, None)
    if not _link(part, target):
        if os.path.lexists(target):
            raise exists_already(target) from None
        try:
            rename(part, target)
        except FileExistsError:
            raise exists_already(target) from None
        _check_named(part, target, is_written, lambda: rename(target, part))
        return
    _check_named(part, target, is_written, lambda: unlink(target))
    remove_quietly(part)  # harmless if it stays: the next run removes this second name


def _link(part: Path, target: Path) -> bool:
    """Give the file a second name; return False if files cannot be published that way here.

    Linking never replaces a file. Renaming does, except on some systems.
    """
    if RENAME_NEVER_REPLACES:
        return False
    try:
        os.link(part, target)
    except FileExistsError:
        raise exists_already(target) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _check_named(part: Path, target: Path, is_written: Callable[[Path], bool], take_back: Callable[[], object]) -> None:
    try:
        if not is_written(target):
            raise replaced(part, None)
    except BaseException:
        take_back()
        raise


def remove_quietly(path: Path) -> None:
    """Unlink `path`, or leave it if that fails."""
    with contextlib.suppress(OSError):
        unlink(path)


def exists_already(target: Path) -> ExecuteError:
    """Make the error for an output with a final name that is taken."""
    return ExecuteError("exists already; --force replaces it", source=str(target))


def busy(target: Path) -> ExecuteError:
    """Make the error for an output that a live run is writing."""
    return ExecuteError("another gguftool is writing this file; wait for it or stop it", source=str(target))


def _lock_part(fd: int, path: Path, target: Path, size: int) -> PartFile:
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
    return PartFile(path=path, target=target, size=size, fd=fd, file_id=(status.st_dev, status.st_ino))


# --- parts that are the only copy of their bytes, see `consume` ------------------------------------------------------


def refuse_only_copies(targets: Iterable[Path]) -> None:
    """Raise `ExecuteError` if an unfinished run that removes its sources writes one of `targets`."""
    for target in targets:
        for path in (consume_path(target), only_copy_path(target)):
            if os.path.lexists(path):
                check_helper(path, target=target, twin=helper_path(path, PART))
                raise ExecuteError(
                    f"a merge --consume is unfinished here: {path.name} may be the only copy of tensors from files "
                    "that are gone; run that same merge --consume again to resume it",
                    source=str(target),
                )
