"""Which of its blocks a file has for itself: what a file system that shares them says."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from gguftool.storage.system.reflink import HAVE_IOCTL

if HAVE_IOCTL:
    import fcntl

# linux/fiemap.h: _IOWR('f', 11, struct fiemap), and what it asks and answers. Data that waits in memory has no extent
# yet, so it is written first.
_FIEMAP = 0xC020660B
_MAP = struct.Struct("=QQIIII")  # start, length, flags, extents found, room for so many, nothing
_EXTENT = struct.Struct("=QQQ16xI12x")  # offset in the file, on the disk, length, flags
_SYNC, _LAST, _SHARED = 1, 1, 0x2000
_AT_ONCE = 512
_LOOK = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_BTRFS_INFO = 0x8400941F  # linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)


def own_bytes(path: Path) -> int:
    """Return the bytes on disk that the file at `path` shares with no other; 0 where there is no such regular file."""
    try:
        fd = os.open(path, _LOOK)
    except FileNotFoundError:
        return 0
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return 0
        return max(0, status.st_blocks * 512 - sum(_shared_extents(fd)))
    finally:
        os.close(fd)


def _shared_extents(fd: int) -> Iterator[int]:
    """Yield the lengths of the extents that an open file shares; none where the file system has no such list."""
    start, flags = 0, 0
    while HAVE_IOCTL and not flags & _LAST:
        answer = bytearray(
            _MAP.pack(start, (1 << 64) - 1 - start, _SYNC, 0, _AT_ONCE, 0) + bytes(_AT_ONCE * _EXTENT.size)
        )
        try:
            fcntl.ioctl(fd, _FIEMAP, answer)
        except OSError:
            return
        count = _MAP.unpack_from(answer)[3]
        if not count:
            return
        for number in range(count):
            offset, _, length, *_, flags = _EXTENT.unpack_from(answer, _MAP.size + number * _EXTENT.size)
            if flags & _SHARED:
                yield length
        start = offset + length


def overwrites(path: Path) -> bool:
    """Whether what is written to the file at `path` takes the place of what is there, so that it needs no room.

    It does not where the file shares blocks with another, nor anywhere on btrfs; what files are exempt there is not
    looked at.
    """
    fd = os.open(path, _LOOK)
    try:
        return not _is_btrfs(fd) and not any(_shared_extents(fd))
    finally:
        os.close(fd)


def _is_btrfs(fd: int) -> bool:
    """Ask what btrfs alone answers: the device numbers of its files are not in the table of mounts."""
    try:
        return HAVE_IOCTL and fcntl.ioctl(fd, _BTRFS_INFO, bytearray(1024)) == 0
    except OSError:
        return False
