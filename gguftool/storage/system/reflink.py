"""Copies that no byte of enters this process: shared blocks (reflink), and copies that a file server makes.

Each is tried where it can pay and declined by a named list of errnos; what a pair of devices declines for good is
remembered, so that a set of thousands of files asks once.

`copy_file_range` is asked only of network and FUSE file systems, where it may save the way over the wire and back.
On local ones it goes through a pipe of 64 KiB and is slower than reading and writing through a buffer that stays in the
processor's cache; `sendfile` is the same pipe, and slower everywhere it was measured (docs/benchmarks.md).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from gguftool.record import record

try:
    import fcntl
except ImportError:  # Windows
    HAVE_IOCTL = False
else:
    HAVE_IOCTL = sys.platform == "linux"

# linux/fs.h: _IOW(0x94, 13, struct file_clone_range); on the few architectures that number ioctls differently the
# answer is ENOTTY, and extents are copied.
_FICLONERANGE = 0x4020940D

# "These two file systems never will": remembered for the pair.
NEVER_HERE = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY})
# "Not these files, or not this range": the next way is tried. EPERM and EACCES are seen under seccomp filters and on
# network file systems, EINVAL for ranges off the block grid and btrfs files with other checksum flags, ETXTBSY for swap
# files, EBADF for append-only ones. EIO does not say whose disk failed; reading and writing apart finds out.
NOT_THIS_TIME = frozenset(
    {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EBADF, errno.EIO, errno.EISDIR, errno.EAGAIN}
    | {errno.EINTR}  # which Python retries for reads and writes, but not for these calls
)

_SERVED = ("nfs", "cifs", "smb", "fuse", "ceph", "lustre", "9p", "glusterfs", "gpfs", "beegfs")


@record
class Way:
    """One kernel call: (source fd, its offset, target fd, its offset, length) -> bytes moved, by `chunk` at most."""

    name: str
    call: Callable[[int, int, int, int, int], int]
    chunk: int


def _clone(source: int, offset: int, target: int, place: int, length: int) -> int:
    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, offset, length, place))
    return length


def _copy_file_range(source: int, offset: int, target: int, place: int, length: int) -> int:
    return os.copy_file_range(source, target, length, offset, place)


# A chunk is what Ctrl-C waits for: cloning a GiB of fragmented extents takes some milliseconds.
CLONE = Way(name="clone", call=_clone, chunk=1 << 30)
SERVER_COPY = Way(name="server copy", call=_copy_file_range, chunk=8 << 20)


class KernelCopies:
    """Tries copies by the kernel, and remembers which pairs of file systems decline them for good."""

    def __init__(self) -> None:
        self._declined: set[tuple[str, object]] = set()

    def attempt(
        self,
        way: Way,
        source: tuple[int, int],
        target: tuple[int, int],
        length: int,
        go_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """Move `length` bytes by `way` as far as the kernel agrees; return the bytes moved, 0 if it declines.

        `source` and `target`: (open file, offset). Raises `OSError` for what no other way would cure, such as a full
        disk.
        """
        (fd, offset), (target_fd, place) = source, target
        pair = (way.name, _pair(fd, target_fd))
        done = 0
        while done < length and pair not in self._declined and go_on():
            try:
                moved = way.call(fd, offset + done, target_fd, place + done, min(way.chunk, length - done))
            except OSError as error:
                if error.errno in NEVER_HERE:
                    self._declined.add(pair)
                elif error.errno not in NOT_THIS_TIME:
                    raise
                break
            if moved <= 0:
                break  # the end of the file, or a file system that does not know: reading finds out
            done += moved
        return done


def _pair(source: int, target: int) -> tuple[int, int, int]:
    """Return what stands for the two file systems; the id tells apart mounts that reuse a device number."""
    identity = os.fstatvfs(target).f_fsid if hasattr(os, "fstatvfs") else 0
    return os.fstat(source).st_dev, os.fstat(target).st_dev, identity


def clone_grid(target: int) -> int | None:
    """Return the block size on which ranges of `target` can be cloned, in bytes; None where nothing can be."""
    if not HAVE_IOCTL:
        return None
    try:
        return max(os.fstatvfs(target).f_frsize, 512)
    except OSError:  # a file system that does not say shares nothing either
        return None


def is_served(target: int) -> bool:
    """Return whether `target` lies on a file system that is another machine's, or another process's, work."""
    return hasattr(os, "copy_file_range") and _file_system(os.fstat(target).st_dev).startswith(_SERVED)


@lru_cache(maxsize=64)
def _file_system(device: int) -> str:
    """Return the name of a device's file system by the table of mounts; empty where it is not listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            for line in table:
                fields, _, rest = line.partition(b" - ")
                if fields.split()[2:3] == [wanted]:
                    return rest.split()[0].decode("ascii", "replace")
    except (OSError, IndexError):
        pass
    return ""


# --- which blocks a file shares --------------------------------------------------------------------------------------


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
