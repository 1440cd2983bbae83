"""Disk space: how much is free, and how much a file takes."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

# Errors of file systems that do not count their space: there, writing fails when the disk is full.
_NO_ANSWER = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the file system of `folder`, or None if it does not count them."""
    try:
        if sys.platform == "win32":
            import shutil

            return shutil.disk_usage(folder).free
        else:
            space = os.statvfs(folder)
            return space.f_bavail * space.f_frsize
    except OSError as error:
        if error.errno not in _NO_ANSWER:
            raise
        return None


def allocated_bytes(status: os.stat_result) -> int:
    """Bytes on disk of a file, by its status; its size on Windows, which does not say."""
    if sys.platform == "win32":
        return status.st_size
    else:
        return status.st_blocks * 512
