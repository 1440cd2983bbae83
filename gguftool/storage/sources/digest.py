"""sha256 of extents, on all cores: hashlib and file reads let other threads run."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gguftool.errors import SourceError
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.fileio import read_into
from gguftool.storage.system.threads import Background, CancelledError

_BUFFER = 1 << 20  # bytes; larger ones leave the processor's cache and hash slower

Progress = Callable[[int], object]


def no_progress(_nbytes: int) -> None:
    """Ignore progress."""


def digest(extents: Iterable[Extent], progress: Progress = no_progress) -> str:
    """The sha256, in hex, of the bytes of `extents` one after another.

    Raises `SourceError` if they cannot be read.
    """
    sha256 = hashlib.sha256()
    for extent in extents:
        fd_context = extent.source.descriptor()
        if fd_context is None:
            for piece in extent.source.stream(extent.offset, extent.length):
                sha256.update(piece)
                progress(len(piece))
        else:
            with fd_context as fd:
                update(sha256, fd, extent.offset, extent.length, extent.source.name, progress)
    return sha256.hexdigest()


def digest_once(extents: Sequence[Extent], progress: Progress = no_progress) -> tuple[list[str], str]:
    """The digest of each of `extents`, and of all of them one after another, from bytes that are read once.

    For remote sources, where reading twice costs more than a second core saves. Raises as `digest` does.
    """
    total, singles = hashlib.sha256(), []
    for extent in extents:
        single = hashlib.sha256()
        for piece in extent.source.stream(extent.offset, extent.length):
            single.update(piece)
            total.update(piece)
            progress(2 * len(piece))
        singles.append(single.hexdigest())
    return singles, total.hexdigest()


def digest_all(
    works: Sequence[Sequence[Extent]], jobs: int | None = None, progress: Progress = no_progress
) -> tuple[str, ...]:
    """The digest of each of `works`, in their order, `jobs` at a time (default: one per core).

    An error of one of them, or a signal, stops all at once.
    """
    stop = threading.Event()

    def go_on(nbytes: int) -> None:
        if stop.is_set():
            raise CancelledError
        progress(nbytes)

    running = Background([partial(digest, work, go_on) for work in works], jobs or os.cpu_count() or 1, stop)
    try:
        return tuple(running.wait())
    finally:
        running.cancel()


def update(sha256: hashlib._Hash, fd: int, offset: int, length: int, name: str, progress: Progress) -> None:
    """Update `sha256` with `length` bytes of an open file.

    Raises `SourceError` that names `name` if they cannot be read.
    """
    buffer = memoryview(bytearray(min(_BUFFER, length)))
    while length:
        try:
            got = read_into(fd, buffer[: min(len(buffer), length)], offset)
        except OSError as error:
            raise SourceError(f"cannot read: {error.strerror}", source=name, offset=offset) from error
        if not got:
            raise SourceError(f"ends here, {length:,} bytes early", source=name, offset=offset)
        sha256.update(buffer[:got])
        progress(got)
        offset += got
        length -= got
