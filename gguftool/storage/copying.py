"""Moving extents into an open file by the fastest way that works here, several at a time.

A range whose source and target offsets agree modulo the block size is cloned where the file system can: ragged head
and tail are copied, the middle shared.  Everything else is cut into segments that a few threads copy: through the
server's own copy call on network file systems, else by reading and writing through one small buffer a thread.  The
calling thread is one of the workers, so a signal's exception is raised between two buffers and stops the others.

Memory is one buffer a thread, whatever the extents' lengths.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.kernel import CLONE, SERVER_COPY, attempt, clone_grid, is_served
from gguftool.storage.plan import Copy
from gguftool.storage.positional import leading_hole, read_into, start_writeback, write_some
from gguftool.storage.source import Extent, Source

Progress = Callable[[int], None]

BUFFER = 512 << 10  # bytes; stays in the processor's second-level cache between read and write
_SEGMENT = 8 << 20  # bytes a thread takes at once, on this grid in the target so that no two share a page
_PAGES = 64 << 10  # bytes; the least grid, a multiple of every system's page
_MIN_CLONE = 64 << 10  # bytes; below, sharing blocks costs more metadata than it saves
MAX_JOBS = 64


def copy_all(
    copies: Iterable[Copy],
    target: int,
    *,
    jobs: int | None = None,
    progress: Progress = lambda nbytes: None,
    durable: bool = False,
    fresh: bool = False,
) -> None:
    """Carry out `copies` into the open file `target` with up to `jobs` threads, this one among them.

    `durable` lets the disk start early because an fsync will follow; `fresh` says that the target reads as zeros where
    nothing was written, so that holes of sources stay holes. `progress` is called in this thread only.
    Raises `SourceError` where a source ends early or fails, `OSError` or `ExecuteError` where the target does.
    """
    work = _Work(copies, target, progress, durable=durable, fresh=fresh)
    helpers: list[threading.Thread] = []
    try:
        if work.has_several():
            helpers = _start(work.help, min(jobs or work.parallelism, MAX_JOBS) - 1)
        work.drain()
        work.wait(helpers)
    finally:
        # The descriptor is the caller's to close: no thread may outlive this call.
        work.stop.set()
        work.wait(helpers)
    if work.error is not None:
        raise work.error
    work.report()


def copy_extent(extent: Extent, target: int, offset: int, progress: Progress) -> None:
    """Copy `extent` to `offset` of `target` in this thread, zeros included, as `copy_all` does."""
    copy_all((Copy(extent=extent, offset=offset),), target, jobs=1, progress=progress)


def write_fully(target: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`, however many calls it takes; raise `ExecuteError` where a call writes nothing."""
    view = memoryview(data)
    while view:
        try:
            written = write_some(target, view, offset)
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)} at offset {offset:,}") from error
        if written <= 0:
            raise ExecuteError("the file system accepted no more bytes", offset=offset)
        view = view[written:]
        offset += written


def check_sources(sources: tuple[Source, ...]) -> None:
    """Raise one `SourceError` that names every source that changed since it was opened."""
    problems = []
    for source in sources:
        try:
            source.check_unchanged()
        except SourceError as error:
            problems.append(str(error))
    if problems:
        raise SourceError("; ".join(problems))


# --- threads ---------------------------------------------------------------------------------------------------------


def _start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start `count` threads, or as many as the system allows; fewer only cost time."""
    started = []
    for _ in range(count):
        thread = threading.Thread(target=work, name="copying", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        started.append(thread)
    return started


class _Work:
    """What the threads of one `copy_all` share: segments to take, bytes done, the first error."""

    def __init__(self, copies: Iterable[Copy], target: int, progress: Progress, *, durable: bool, fresh: bool) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._target = target
        self._durable = durable
        self._fresh = fresh
        self._served = is_served(target)
        self._progress = progress
        self._owner = threading.get_ident()
        self._taking = threading.Lock()
        copies = tuple(copies)
        self.parallelism = max((copy.extent.source.parallelism for copy in copies), default=1)
        self._segments = self._cut(copies)
        self._ahead: list[Copy] = []
        self._counting = threading.Lock()
        self._unreported = 0

    def has_several(self) -> bool:
        """Return whether there is more than one segment, so that threads pay."""
        self._ahead = list(islice(self._segments, 2))
        return len(self._ahead) > 1

    def take(self) -> Copy | None:
        """Return the next segment to copy, None where there is none or the work has stopped."""
        with self._taking:
            if self.stop.is_set():
                return None
            return self._ahead.pop(0) if self._ahead else next(self._segments, None)

    def help(self) -> None:
        """Work in a thread of its own; the first error stops all."""
        try:
            self.drain()
        except BaseException as error:
            with self._counting:
                self.error = self.error or error
            self.stop.set()

    def drain(self) -> None:
        """Copy segments until there are none."""
        buffer = memoryview(b"")
        while (segment := self.take()) is not None:
            size = min(BUFFER, segment.extent.length)
            if len(buffer) < size:
                buffer = memoryview(bytearray(size))
            self._move(segment, buffer)

    def wait(self, threads: list[threading.Thread]) -> None:
        """Wait for `threads`, in steps so that a signal is heard on every system and progress goes on."""
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
                if not self.stop.is_set():
                    self.report()

    def report(self) -> None:
        """Tell `progress` what was done since the last time."""
        with self._counting:
            nbytes, self._unreported = self._unreported, 0
        if nbytes:
            self._progress(nbytes)

    def _done(self, nbytes: int) -> None:
        """Count bytes; the calling thread of `copy_all` passes on what all have done."""
        with self._counting:
            self._unreported += nbytes
        if threading.get_ident() == self._owner:
            self.report()

    # --- from copies to segments ---

    def _cut(self, copies: Iterable[Copy]) -> Iterator[Copy]:
        """Clone what can be cloned, and yield the rest in segments."""
        grid = clone_grid(self._target)
        for copy in copies:
            rest = (copy,) if grid is None else self._clone(copy, grid)
            for piece in rest:
                yield from _segments(piece)

    def _clone(self, copy: Copy, grid: int) -> tuple[Copy, ...]:
        """Share the whole blocks of `copy` with its source; return what is left to be copied."""
        start = -copy.offset % grid
        length = (copy.extent.length - start) // grid * grid
        if (copy.extent.offset - copy.offset) % grid or length < _MIN_CLONE:
            return (copy,)
        lent = copy.extent.source.descriptor()
        if lent is None:
            return (copy,)
        with lent as fd:
            place = copy.offset + start
            offset = copy.extent.offset + start
            shared = attempt(CLONE, fd, offset, self._target, place, length, lambda: not self.stop.is_set())
        if not shared:
            return (copy,)
        self._done(shared)
        behind = start + shared
        return (_part(copy, 0, start), _part(copy, behind, copy.extent.length - behind))

    # --- from segments to bytes ---

    def _move(self, segment: Copy, buffer: memoryview) -> None:
        lent = segment.extent.source.descriptor()
        if lent is None:
            self._move_stream(segment)
        else:
            with lent as fd:
                self._move_file(fd, segment, buffer)
        if self._durable and not self.stop.is_set():
            start_writeback(self._target, segment.offset, segment.extent.length)

    def _move_stream(self, segment: Copy) -> None:
        """Copy from a source without a descriptor: bytes that are computed, or come over a network."""
        extent, done = segment.extent, 0
        for data in extent.source.stream(extent.offset, extent.length):
            if self.stop.is_set():
                return
            write_fully(self._target, data, segment.offset + done)
            done += len(data)
            self._done(len(data))
        if done != extent.length:  # never publish a hole because a source counted wrong
            raise SourceError(
                f"gave {done:,} of {extent.length:,} bytes", source=extent.source.name, offset=extent.offset
            )

    def _move_file(self, fd: int, segment: Copy, buffer: memoryview) -> None:
        extent = segment.extent
        done = 0
        if self._served:
            done = attempt(SERVER_COPY, fd, extent.offset, self._target, segment.offset, extent.length)
        elif self._fresh and extent.length >= _MIN_CLONE:
            done = leading_hole(fd, extent.offset, extent.length)
        if done:
            self._done(done)
            segment = _part(segment, done, extent.length - done)
        self._read_and_write(fd, segment, buffer)

    def _read_and_write(self, fd: int, piece: Copy, buffer: memoryview) -> None:
        offset, place, left = piece.extent.offset, piece.offset, piece.extent.length
        while left and not self.stop.is_set():
            got = _read(piece.extent.source, fd, buffer[: min(len(buffer), left)], offset, left)
            write_fully(self._target, buffer[:got], place)
            self._done(got)
            offset, place, left = offset + got, place + got, left - got


def _read(source: Source, fd: int, buffer: memoryview, offset: int, left: int) -> int:
    """Read what one call gives; raise `SourceError` where the disk fails or the file ends early."""
    try:
        got = read_into(fd, buffer, offset)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=source.name, offset=offset) from error
    if not got:
        raise SourceError(
            f"ends here, {left:,} bytes early; it was {source.size:,} bytes long when it was opened",
            source=source.name,
            offset=offset,
        )
    return got


def _segments(copy: Copy) -> Iterator[Copy]:
    """Cut `copy` where its target crosses the grid of segments; a source that computes may ask for a finer one."""
    grain = getattr(copy.extent.source, "grain", _SEGMENT)
    segment = min(_SEGMENT, -(-grain // _PAGES) * _PAGES)
    done = 0
    while done < copy.extent.length:
        length = min(copy.extent.length - done, segment - (copy.offset + done) % segment)
        yield _part(copy, done, length)
        done += length


def _part(copy: Copy, start: int, length: int) -> Copy:
    extent = Extent(source=copy.extent.source, offset=copy.extent.offset + start, length=length)
    return Copy(extent=extent, offset=copy.offset + start)
