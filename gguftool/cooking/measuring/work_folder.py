"""The work folder of a run, next to its output: saved logits and scratch copies. Only this user can open it.

It is locked while a run uses it, kept if the run is interrupted, and removed after the last measurement.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.system.locks import lock
from gguftool.storage.system.ownership import is_private

SUFFIX = ".work"


def work_folder_of(output: Path) -> Path:
    """The work folder of `output`, as an absolute path: engines run in it."""
    return output.absolute().with_name(output.name + SUFFIX)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Create the folder `path` if needed, and keep other runs out of it.

    Raises `ExecuteError` if another run uses it, or it is not a private folder of this user.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or not is_private(path):
            raise ExecuteError(
                "is not a folder that only you can write to; move it away: logits are kept there", source=str(path)
            ) from None
    except OSError as error:
        raise ExecuteError(f"cannot make this folder: {error.strerror}", source=str(path)) from error
    fd = os.open(path, os.O_RDONLY)
    try:
        lock_file(fd, path, "another run is measuring there; wait for it, or stop it")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it keeps something for a later run
                os.rmdir(path)
    finally:
        os.close(fd)


def lock_file(fd: int, path: Path, reason: str) -> None:
    """Lock an open file or folder until it is closed; raise `ExecuteError` with `reason` if somebody else has."""
    if not lock(fd):
        raise ExecuteError(reason, source=str(path))


def remove_folder(path: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
