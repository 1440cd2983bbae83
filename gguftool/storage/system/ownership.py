"""Create and open helper files (part files, journals) safely, even in a folder that other users can write to.

A helper file is found by its name, and anybody who can write to the folder can put a file under that name. So a helper
is opened without following links and without waiting for a pipe. An opened file is trusted only if it is a regular
file, belongs to the effective user, cannot be written by others, and has one name. New helpers are created exclusively,
with mode 0600.

Version 0.1 created helpers with the mode that the umask gives, often 0664. Their mode is ignored in a folder that
belongs to the user and that nobody else can write to.

A file system that keeps no owners and modes shows new files as somebody else's. New outputs can be written there: the
run knows its files by device and inode. A change in place, `--consume`, resume and recovery are refused.

Windows: the owner of the file must be this user, or the group that owns files made by an elevated process; volumes
without access lists (FAT) keep no owners. Modes mean nothing there: the access list that a helper inherits from its
folder decides who may write to it.

A file that gets its final name gets the mode of a plainly created file there, or that of the file it replaces.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from gguftool.errors import ExecuteError, printable
from gguftool.storage.system.names import open_file, unlink

if sys.platform == "win32":
    from gguftool.storage.system import windows

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
_REOPEN = getattr(os, "O_NONBLOCK", 0)
_PRIVATE = 0o600
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Helpers that hold no only copy of data: the way out is to remove them. Others must only be moved away.
_REPLACEABLE = frozenset({"part", "resume", "old", "mode"})


def create_helper(path: Path, *, append: bool = False) -> int:
    """Create a helper file that only this user can open; return its descriptor.

    Raises `FileExistsError` if something has this name.
    """
    return open_file(path, _CREATE | (os.O_APPEND if append else 0), _PRIVATE, follow=False)


def open_helper(
    path: Path, *, append: bool = False, writable: bool = True, target: Path | None = None, twin: Path | None = None
) -> int:
    """Open an existing helper file; return its descriptor. `target` and `twin` as in `distrust`.

    Raises `FileNotFoundError` if it does not exist, `ExecuteError` if it must not be trusted.
    """
    flags = _REOPEN | (os.O_RDWR if writable else os.O_RDONLY) | (os.O_APPEND if append else 0)
    try:
        fd = open_file(path, flags, follow=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        refuse_strange(path, error, target=target, twin=twin)
        raise
    try:
        reason = distrust(path, os.fstat(fd), target=target, twin=twin)
        if reason is None and sys.platform == "win32" and not os.path.samestat(os.fstat(fd), os.lstat(path)):
            reason = distrust(path, os.lstat(path), target=target, twin=twin) or "was replaced just now; run it again"
        if reason is not None:
            raise ExecuteError(reason, source=str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_helper(path: Path, *, target: Path | None = None, twin: Path | None = None) -> os.stat_result:
    """The status of a helper file that is not opened; `target` and `twin` as in `distrust`.

    Raises `FileNotFoundError` if it does not exist, `ExecuteError` if it must not be trusted.
    """
    status = os.lstat(path)
    reason = distrust(path, status, target=target, twin=twin)
    if reason is not None:
        raise ExecuteError(reason, source=str(path))
    return status


def reopen_written(path: Path, is_written: Callable[[os.stat_result], bool]) -> int | None:
    """Open the very file that this run wrote at `path`; return its descriptor, or None if it is gone.

    `is_written` recognizes it, not owner and mode: some file systems keep neither.
    """
    try:
        fd = open_file(path, _REOPEN | os.O_RDWR, follow=False)
    except OSError:
        return None
    try:
        if is_written(os.fstat(fd)):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def require_owners(probe: Path, way_out: str) -> None:
    """Raise `ExecuteError` with `way_out` if a helper file that is created now could not be trusted later.

    This happens on file systems that keep no owners and modes, in a folder that others can write to. A file is created
    at `probe` and removed.
    """
    remove_helper(probe)  # left by a run that was killed here
    fd = create_helper(probe)
    try:
        reason = distrust(probe, os.fstat(fd))
    finally:
        os.close(fd)
        unlink(probe)
    if reason is not None:
        raise ExecuteError(
            f"this file system keeps no owners or no modes, and others can write to this folder: {way_out}",
            source=str(probe.parent),
        )


def remove_helper(path: Path) -> None:
    """Remove a helper file, if it exists; if another user's ownership prevents that, the error names the owner."""
    try:
        unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        refuse_strange(path, error)
        raise


def refuse_strange(path: Path, cause: OSError, *, target: Path | None = None, twin: Path | None = None) -> None:
    """Raise `ExecuteError` if a call on `path` failed because of the file there; otherwise return."""
    try:
        status = os.lstat(path)
    except OSError:
        return
    reason = distrust(path, status, target=target, twin=twin)
    if reason is not None:
        raise ExecuteError(reason, source=str(path)) from cause


def distrust(path: Path, status: os.stat_result, *, target: Path | None = None, twin: Path | None = None) -> str | None:
    """Explain why the helper file at `path` must not be trusted, and the way out; None if it is trusted.

    `target`: the final name of a part file. A part that has that name too was published: only its helper name is
    removed, and no byte of it is used. `twin`: the part file of a journal; it stays if the run is killed while the
    journal gets its name.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        return _refusal(path, status, f"is {kind}, where gguftool keeps a helper file")
    if status.st_nlink > 1 and _is_other_name(target, status) and is_own(path, status):
        return None
    if status.st_nlink > 1 and not (status.st_nlink == 2 and _is_other_name(twin, status)):
        return _refusal(
            path, status, f"has {status.st_nlink} names (hard links), and could be changed under another name"
        )
    if not is_own(path, status):
        return _refusal(path, status, "is a helper file of another user")
    if _is_open_to_others(status) and not is_private(path.parent):
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
        return _refusal(path, status, f"is a helper file that others can write to ({mode}), and so is its folder")
    return None


def is_private(folder: Path) -> bool:
    """Whether `folder` belongs to this user and nobody else can write to it."""
    status = os.stat(folder)
    return is_own(folder, status) and not _is_open_to_others(status)


def is_own(path: Path, status: os.stat_result) -> bool:
    """Whether the file at `path`, with this `status`, belongs to the effective user."""
    if sys.platform == "win32":
        return windows.is_own(path)
    else:
        return status.st_uid == os.geteuid()


def _is_open_to_others(status: os.stat_result) -> bool:
    """Whether the mode lets others write; on Windows modes say nothing."""
    return sys.platform != "win32" and bool(status.st_mode & _OTHERS_WRITE)


def _is_other_name(path: Path | None, status: os.stat_result) -> bool:
    if path is None:
        return False
    try:
        return os.path.samestat(os.lstat(path), status)
    except OSError:
        return False


# --- the mode of published files -------------------------------------------------------------------------------------


# Errors of fchmod on file systems that keep no modes, or not this one.
_NO_MODES = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def plain_mode(probe: Path) -> int:
    """The mode that plain creation gives in the folder of `probe`, by umask and default access list.

    To find it, a file is created at `probe` and removed.
    """
    remove_helper(probe)  # left by a run that was killed here
    fd = open_file(probe, _CREATE, 0o666, follow=False)
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
        unlink(probe)


def own_mode(path: Path) -> int | None:
    """The mode of a regular file of this user; None for other files, or if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_mode & 0o777 if stat.S_ISREG(status.st_mode) and is_own(path, status) else None


def set_mode(fd: int, mode: int) -> None:
    """Give an open file its mode, if its file system keeps modes."""
    if sys.platform == "win32" or stat.S_IMODE(os.fstat(fd).st_mode) == mode:
        return
    try:
        os.fchmod(fd, mode)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise


# --- the message -----------------------------------------------------------------------------------------------------


def _refusal(path: Path, status: os.stat_result, reason: str) -> str:
    return f"{reason}, owned by {_owner(status)}: it is not trusted, and nothing was changed; {_way_out(path, status)}"


def _owner(status: os.stat_result) -> str:
    if sys.platform == "win32":
        return "another account"
    import pwd

    try:
        return f"{printable(pwd.getpwuid(status.st_uid).pw_name)} (user {status.st_uid})"
    except KeyError:
        return f"user {status.st_uid}"


def _way_out(path: Path, status: os.stat_result) -> str:
    import shlex

    suffix = path.suffix[1:]
    name = shlex.quote(os.path.abspath(path))
    if suffix in _REPLACEABLE and not stat.S_ISDIR(status.st_mode):
        command = f"rm -f {name}"
    else:
        command = f"mv {name} {shlex.quote(f'{os.path.abspath(path)}.distrusted')}"
    command = printable(command, 3 * 4096)
    if not _may_remove(path, status):
        return (
            f"only its owner can remove it ('{command}'); or write to a folder that nobody else can write to "
            "('mkdir -m 700 FOLDER')"
        )
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and is_own(path, status):
        return f"if nobody else wrote to it: {printable(f'chmod 600 {name}', 4096)}; if nobody needs it: {command}"
    if suffix in _REPLACEABLE or not stat.S_ISREG(status.st_mode):
        return f"if nobody needs it: {command}"
    if not is_own(path, status):
        return f"its owner can run the same command to finish; if nobody needs it: {command}"
    return f"if nobody needs it: {command}"


def _may_remove(path: Path, status: os.stat_result) -> bool:
    """Whether this user can rename and remove `path`: in a folder with the sticky bit only the two owners can."""
    try:
        folder = os.stat(path.parent)
    except OSError:
        return True
    if not folder.st_mode & stat.S_ISVTX or is_own(path, status) or is_own(path.parent, folder):
        return True
    return sys.platform != "win32" and os.geteuid() == 0
