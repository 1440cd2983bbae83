"""Publish one file: give a complete part file its final name, and the mode that a plain creation would have.

A hard link, which never replaces, or an atomic rename over the old file. Before that rename the old file gets a second
name (a hard link), which is kept until the folder is durable.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.execute.part import (
    PartFile,
    publish,
    remove_quietly,
    replaced,
)
from gguftool.storage.sources.sidecars import MODE, OLD, helper_path
from gguftool.storage.system.fileio import close_quietly, sync_folders
from gguftool.storage.system.names import rename, replace_file, unlink
from gguftool.storage.system.ownership import (
    check_helper,
    open_helper,
    own_mode,
    plain_mode,
    remove_helper,
    reopen_written,
    set_mode,
)


def publish_one(part: PartFile, *, replace: bool, sync: bool, private: bool = False) -> None:
    """Publish a single output; if that fails, restore what had the final name before.

    `private`: it is a journal, and keeps the mode of a helper file.
    """
    if not private:
        Modes(part.target).give_written(part, old=part.target if replace else None)
    backup = _keep_old(part.target) if replace else None
    kept = None if backup is None else status_of(backup)
    is_named = False
    try:
        part.require()
        if replace:
            replace_file(part.path, part.target)
        else:
            publish(part.path, part.target, part.is_at)
        is_named = True
        if not part.is_published():
            raise replaced(part.path, None)
        if sync:
            sync_folders([part.target.parent])
    except BaseException:
        if is_named or part.is_published():
            unpublish(part)
            if backup is not None:
                give_back(backup, part.target, kept)
        elif backup is not None:
            remove_quietly(backup)
        raise
    if backup is not None:
        remove_quietly(backup)
        sync_quietly(part.target.parent, sync=sync)


class Modes:
    """Modes for files that get their names in one folder; the mode of plain creation there is probed once.

    The name of the probe file is made from `target`: the run that finishes after a kill probes again, and removes it.
    """

    def __init__(self, target: Path) -> None:
        self._probe = helper_path(target, MODE)
        self._plain: int | None = None

    def give(self, part: Path, target: Path, *, old: Path | None) -> None:
        """Give an earlier run's part file the mode of `old`, the file that it replaces, or else that of plain creation.

        The mode of another user's file is not used: it might let that user write the new one.
        """
        fd = open_helper(part, target=target)
        try:
            set_mode(fd, self._mode(old))
        finally:
            close_quietly(fd)

    def give_written(self, part: PartFile, *, old: Path | None) -> None:
        """Give a part file of this run its mode, as `give`; raise `ExecuteError` if it is no longer at its path."""
        fd = reopen_written(part.path, part.is_file)
        if fd is None:
            raise replaced(part.path, None)
        try:
            set_mode(fd, self._mode(old))
        finally:
            close_quietly(fd)

    def _mode(self, old: Path | None) -> int:
        mode = own_mode(old) if old is not None else None
        if mode is not None:
            return mode
        self._plain = plain_mode(self._probe) if self._plain is None else self._plain
        return self._plain


def sync_quietly(folder: Path, *, sync: bool) -> None:
    """Make the removal of helper files durable: after a power failure they would block a run, or take space."""
    if sync:
        with contextlib.suppress(OSError):
            sync_folders([folder])


def _keep_old(target: Path) -> Path | None:
    """Keep the old file under a second name; None if there is no old file, or the file system has no hard links."""
    backup = helper_path(target, OLD)
    remove_helper(backup)
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError:
        return None
    return backup


def status_of(path: Path) -> os.stat_result | None:
    """The status of a file, or None if there is none or it cannot be read."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def give_back(old: Path, target: Path, kept: os.stat_result | None) -> None:
    """Give the old file its name back; raise `ExecuteError` if another file is at the path `old` now.

    `kept`: the status of the file that moved aside; if it is unknown, the file is checked as a helper file is.
    """
    if kept is None:
        check_helper(old)
    elif not os.path.samestat(os.lstat(old), kept):
        raise ExecuteError(
            f"was replaced while it held the old {target.name}, and does not get that name", source=str(old)
        )
    rename(old, target)


def unpublish(part: PartFile) -> None:
    """Make a published file a part file again, unless another run's part file has its path: then remove it."""
    if os.path.lexists(part.path) and not part.is_at(part.path):
        unlink(part.target)
        return
    rename(part.target, part.path)
    with contextlib.suppress(FileNotFoundError):
        unlink(part.target)  # if both are names of one file, rename does nothing
