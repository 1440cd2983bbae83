"""Write skeletons: the heads of a model's files, byte for byte, with holes in place of the data.

An engine that loads a skeleton reads the same metadata and tensor infos as from the model, but almost nothing is on
disk. Holes must cost nothing: a folder is used only if it supports sparse files and is not in memory (tmpfs), where an
engine that touches all pages would fill the memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, joined_problems
from gguftool.format.file_names import ShardName
from gguftool.record import record
from gguftool.storage.system.reflink import file_system_of
from gguftool.storage.system.space import allocated_bytes

PREFIX = "model"  # the start of a skeleton's file names
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_TRIED = 8 << 20  # bytes of the file that shows whether holes take space
_SLACK = 1 << 20  # bytes on disk beyond the head: blocks and tables of the file system
_FREE_ANYWAY = "set TMPDIR to a folder on a disk with a file system such as ext4, XFS or btrfs"


@record
class SkeletonFile:
    """One file: its `head`, its apparent `size`, and its number if it is a shard."""

    head: bytes
    size: int
    shard: ShardName | None = None

    @property
    def name(self) -> str:
        """A plain name, with the number from which engines derive the names of other shards."""
        if self.shard is None:
            return f"{PREFIX}.gguf"
        return str(ShardName(prefix=PREFIX, number=self.shard.number, count=self.shard.count))


@contextlib.contextmanager
def scratch_folder(places: Sequence[str] | None = None) -> Iterator[Path]:
    """Yield a new folder that can hold skeletons, and remove it at the end.

    `places` are tried in order; by default the folder for temporary files, then others. Raises `ExecuteError` with the
    reasons if none is suitable.
    """
    with contextlib.ExitStack() as stack:
        yield _find_place(places if places is not None else _places(), stack)


def _find_place(places: Sequence[str], stack: contextlib.ExitStack) -> Path:
    reasons = []
    for place in places:
        try:
            made = tempfile.TemporaryDirectory(prefix="gguftool-load-", dir=place, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            reason = _objection(folder)
        except OSError as error:
            reason = error.strerror or str(error)
        if not reason:
            return folder
        reasons.append(f"{place}: {reason}")
    raise ExecuteError(f"no folder for a sparse file: {joined_problems(reasons)}; {_FREE_ANYWAY}")


def _places() -> list[str]:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    found = (tempfile.gettempdir(), "/var/tmp", cache, os.getcwd())
    return list(dict.fromkeys(os.path.realpath(place) for place in found))


def _objection(folder: Path) -> str:
    """Why `folder` cannot hold a skeleton, or ""."""
    kind = file_system_of(folder.stat().st_dev)
    if kind in _IN_MEMORY:
        return f"{kind}, where holes that an engine touches take memory"
    tried = folder / "hole"
    write_sparse(tried, b"\1", _TRIED)
    room = allocated_bytes(tried.stat())
    tried.unlink()
    return "" if room <= _SLACK else "its file system does not keep holes, so files would take their full size"


def write_skeleton(folder: Path, files: Sequence[SkeletonFile]) -> Path:
    """Write the skeleton of a model into `folder`; return the path of its first file, which engines open.

    Raises `ExecuteError` if the file system cannot hold a file of that size, or fills its holes.
    """
    for file in files:
        path = folder / file.name
        try:
            write_sparse(path, file.head, file.size)
        except OSError as error:
            if error.errno == errno.EFBIG:
                message = f"this file system cannot hold a file of {file.size:,} bytes; {_FREE_ANYWAY}"
                raise ExecuteError(message, source=str(folder)) from None
            raise ExecuteError(f"cannot write: {error.strerror}", source=str(path)) from error
        if allocated_bytes(path.stat()) > len(file.head) + _SLACK:
            raise ExecuteError(f"holes take space here; {_FREE_ANYWAY}", source=str(folder))
    return folder / files[0].name


def write_sparse(path: Path, head: bytes, size: int) -> None:
    """Write `head`, then a hole up to `size`."""
    with open(path, "xb") as out:
        out.write(head)
        out.truncate(max(size, len(head)))
