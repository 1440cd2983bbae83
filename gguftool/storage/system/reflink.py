"""In-kernel copies (reflinks and server-side copy), and which blocks a file shares with others.

No byte of an in-kernel copy enters this process. Each way is tried if it may help, and given up for a named list of
errnos. `KernelCopies` remembers which pairs of file systems decline for good, so a set of thousands of files tries
once.

`copy_file_range` is tried only on network and FUSE file systems, where it may save the way over the wire and back. On
local ones it copies through a pipe of 64 KiB and is slower than reading and writing through a buffer that stays in the
processor's cache. `sendfile` uses the same pipe, and was slower wherever it was measured (docs/benchmarks.md).

`own_bytes` and `overwrites` look at the extents of a file (Linux FIEMAP): removing a file frees only the blocks that no
other file shares, and writing to shared blocks takes new ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from gguftool.record import record
from gguftool.storage.system.names import open_file
from gguftool.storage.system.space import allocated_bytes

if sys.platform == "linux":
    import fcntl
elif sys.platform == "win32":
    from gguftool.storage.system import windows

# linux/fs.h: _IOW(0x94, 13, struct file_clone_range). The few architectures that number ioctls differently fail with
# ENOTTY, and extents are copied.
_FICLONERANGE = 0x4020940D
_REFS_CLUSTER = 1 << 16  # bytes, the larger of the two sizes that ReFS formats with

# These two file systems never support it: remembered for the pair.
NEVER_HERE = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY})
# Not for these files, or not for this range: the next way is tried. EPERM and EACCES occur under seccomp filters and on
# network file systems, EINVAL for ranges off the block grid and btrfs files with other checksum flags, ETXTBSY for swap
# files, EBADF for append-only ones. EIO does not tell which disk failed; separate reads and writes find out.
NOT_THIS_TIME = frozenset(
    {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ETXTBSY, errno.EBADF, errno.EIO, errno.EISDIR, errno.EAGAIN}
    | {errno.EINTR}  # Python retries reads and writes after EINTR, but not these calls
)

_SERVER_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "ceph", "lustre", "9p", "glusterfs", "gpfs", "beegfs")


@record
class Way:
    """A kernel call: (source fd, its offset, target fd, its offset, length) -> bytes copied, at most `chunk`."""

    name: str
    call: Callable[[int, int, int, int, int], int]
    chunk: int


def _clone(source: int, offset: int, target: int, place: int, length: int) -> int:
    if sys.platform == "linux":
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, offset, length, place))
        return length
    elif sys.platform == "win32":
        return windows.clone(source, offset, target, place, length)
    else:
        return 0


def _copy_file_range(source: int, offset: int, target: int, place: int, length: int) -> int:
    if sys.platform == "linux":
        return os.copy_file_range(source, target, length, offset, place)
    else:
        return 0


# Ctrl-C waits for one chunk: cloning a GiB of fragmented extents takes some milliseconds.
CLONE = Way(name="clone", call=_clone, chunk=1 << 30)
SERVER_COPY = Way(name="server copy", call=_copy_file_range, chunk=8 << 20)


class KernelCopies:
    """Try in-kernel copies, and remember which pairs of file systems decline them for good."""

    def __init__(self) -> None:
        self._declined: set[tuple[str, object]] = set()

    def attempt(
        self,
        way: Way,
        source: tuple[int, int],
        target: tuple[int, int],
        length: int,
        keep_going: Callable[[], bool] = lambda: True,
    ) -> int:
        """Copy `length` bytes by `way`, or as many as the kernel accepts; return their number, 0 if it declines.

        `source` and `target`: (open file, offset). Stops when `keep_going` is false. Raises `OSError` for errors that
        no other way avoids, such as a full disk.
        """
        (fd, offset), (target_fd, place) = source, target
        pair = (way.name, _pair(fd, target_fd))
        done = 0
        while done < length and pair not in self._declined and keep_going():
            try:
                moved = way.call(fd, offset + done, target_fd, place + done, min(way.chunk, length - done))
            except OSError as error:
                if error.errno in NEVER_HERE:
                    self._declined.add(pair)
                elif error.errno not in NOT_THIS_TIME:
                    raise
                break
            if moved <= 0:
                break  # the end of the file, or an unclear answer of the file system: reading finds out
            done += moved
        return done


def _pair(source: int, target: int) -> tuple[int, int, int]:
    """Identify the two file systems; the file system id tells apart mounts that reuse a device number."""
    if sys.platform == "win32":
        identity = 0
    else:
        identity = os.fstatvfs(target).f_fsid
    return os.fstat(source).st_dev, os.fstat(target).st_dev, identity


def clone_grid(target: int) -> int | None:
    """The block size in bytes to which cloned ranges of `target` must be aligned, or None if it cannot clone."""
    if sys.platform == "linux":
        try:
            return max(os.fstatvfs(target).f_frsize, 512)
        except OSError:  # a file system without statvfs shares no blocks either
            return None
    elif sys.platform == "win32":
        return _REFS_CLUSTER if windows.shares_blocks(target) else None
    else:
        return None


def is_served(target: int) -> bool:
    """Whether `target` is on a file system that another machine or another process serves."""
    return file_system_of(os.fstat(target).st_dev).startswith(_SERVER_FILE_SYSTEMS)


@lru_cache(maxsize=64)
def file_system_of(device: int) -> str:
    """Look up the type of a device's file system in Linux's mount table; empty if it is not listed."""
    if sys.platform == "win32":
        return ""
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


# linux/fiemap.h: _IOWR('f', 11, struct fiemap), with its request and reply. Dirty data has no extent yet, so the
# request has the kernel write it first (FIEMAP_FLAG_SYNC).
_FIEMAP = 0xC020660B
_HEADER = struct.Struct("=QQIIII")  # start, length, flags, extents found, capacity, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # offset in the file, on the disk, length, flags
_FLAG_SYNC, _EXTENT_LAST, _EXTENT_SHARED = 1, 1, 0x2000
_EXTENTS_PER_CALL = 512
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)

_BTRFS_INFO = 0x8400941F  # linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)


def own_bytes(path: Path) -> int:
    """Bytes on disk that the file at `path` shares with no other file; 0 if there is no such regular file."""
    try:
        fd = open_file(path, _OPEN_FLAGS, follow=False)
    except FileNotFoundError:
        return 0
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return 0
        return max(0, allocated_bytes(status) - sum(_shared_extents(fd)))
    finally:
        os.close(fd)


def _shared_extents(fd: int) -> Iterator[int]:
    """Yield the lengths of extents that an open file shares; nothing if the file system cannot list extents."""
    start, flags = 0, 0
    while not flags & _EXTENT_LAST:
        found = _extents_from(fd, start)
        if not found:
            return
        yield from (length for _, length, flags in found if flags & _EXTENT_SHARED)
        offset, length, flags = found[-1]
        start = offset + length


def _extents_from(fd: int, start: int) -> list[tuple[int, int, int]]:
    """The next extents of an open file: offset, length and flags; none if the system cannot list them."""
    answer = bytearray(
        _HEADER.pack(start, (1 << 64) - 1 - start, _FLAG_SYNC, 0, _EXTENTS_PER_CALL, 0)
        + bytes(_EXTENTS_PER_CALL * _EXTENT.size)
    )
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _FIEMAP, answer)
            count = _HEADER.unpack_from(answer)[3]
            rows = (_EXTENT.unpack_from(answer, _HEADER.size + number * _EXTENT.size) for number in range(count))
            return [(offset, length, flags) for offset, _, length, *_, flags in rows]
    return []


def overwrites(path: Path) -> bool:
    """Whether writes to the file at `path` reuse its blocks, so that they need no free space.

    False if the file shares blocks with another, and for every file on btrfs: exempt files there are not detected.
    """
    fd = open_file(path, _OPEN_FLAGS, follow=False)
    try:
        return not _is_btrfs(fd) and not any(_shared_extents(fd))
    finally:
        os.close(fd)


def _is_btrfs(fd: int) -> bool:
    """Detect btrfs by an ioctl of its own: the device numbers of its files are not in the table of mounts."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return bool(fcntl.ioctl(fd, _BTRFS_INFO, bytearray(1024)) == 0)
    return False
