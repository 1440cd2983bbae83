"""Copy extents into open files, by the fastest way that works here, in several threads.

If the source and target offsets of a range agree modulo the block size, and the file system can clone, the whole blocks
are shared and only the ragged head and tail are copied. Everything else is cut into segments that a few threads copy:
with the server's own copy call on network file systems, otherwise by reading and writing through one small buffer per
thread. `streaming` copies sources without a descriptor. The calling thread is one of the workers, so an exception from
a signal is raised between two buffers and stops the others.

Memory use is one buffer per thread, whatever the extents' lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from gguftool.errors import SourceError
from gguftool.record import record
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.options import Sizes
from gguftool.storage.execute.streaming import Lane, lanes_of, part_of
from gguftool.storage.plan import Copy
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.system.fileio import close_quietly, leading_hole, read_into, write_fully
from gguftool.storage.system.names import open_unnamed
from gguftool.storage.system.reflink import CLONE, SERVER_COPY, KernelCopies, clone_grid, is_served
from gguftool.storage.system.threads import join_all, start

BUFFER = 512 << 10  # bytes; fits in the processor's second-level cache between read and write
MAX_JOBS = 64

_Segment = tuple[Copy, int]  # the bytes that one thread copies in one go, and the target file descriptor


@record
class Work:
    """Copies to make into the open file `target`."""

    copies: tuple[Copy, ...]
    target: int


def copy_all(copies: Iterable[Copy], target: int, state: CopyState | None = None, *, fresh: bool = False) -> None:
    """Make `copies` into the open file `target`, see `copy_works`."""
    copy_works([Work(copies=tuple(copies), target=target)], state or CopyState(), fresh=fresh)


def copy_works(works: Sequence[Work], state: CopyState, *, fresh: bool = False) -> int:
    """Carry out `works` in this thread and helper threads; return the number of bytes copied, without shared ones.

    `fresh`: the targets read as zeros wherever nothing was written, so holes in the sources stay holes. If `state`
    has a listener, pass a single work: a listener cannot tell targets apart by their offsets.
    Raises `SourceError` if a source ends early or fails, `OSError` or `ExecuteError` if a target fails.
    """
    kinds = [(_by_kind(work.copies), work.target) for work in works]
    files = [Work(copies=tuple(copies), target=target) for (copies, _), target in kinds if copies]
    local = _Files(files, state, fresh=fresh)
    lanes: list[Lane] = []
    helpers: list[threading.Thread] = []
    remote: list[threading.Thread] = []
    try:
        for (_, streamed), target in kinds:
            for group in lanes_of(streamed):
                lanes.append(Lane(group, target, state))
        for lane in lanes:
            if files or len(lanes) > 1 or lane.needs_threads:
                remote += lane.start(MAX_JOBS)
        helpers += local.start()
        local.drain()
        state.wait([*helpers, *remote])
        for lane in lanes:
            lane.drain()  # lanes with one thread or one request, and lanes that could not start any thread
    finally:
        # The caller closes the descriptor: no thread that uses it may outlive this call.
        state.stop.set()
        join_all(helpers)
        join_all(remote, state.sizes.grace)
        for lane in lanes:
            lane.settle()
            lane.close()
    if state.error is not None:
        raise state.error
    state.report()
    return state.copied


def _by_kind(copies: Iterable[Copy]) -> tuple[list[Copy], list[Copy]]:
    """Separate copies from sources with a descriptor from copies of other sources."""
    files: list[Copy] = []
    others: list[Copy] = []
    kinds: dict[int, bool] = {}  # by id: hashing a source for every tensor is slow
    for copy in copies:
        source = copy.extent.source
        if id(source) not in kinds:
            kinds[id(source)] = source.descriptor() is None
        (others if kinds[id(source)] else files).append(copy)
    return files, others


def copy_extent(extent: Extent, target: int, offset: int) -> None:
    """Copy `extent` to `offset` of `target` in this thread, zeros included, like `copy_all`."""
    copy_all((Copy(extent=extent, offset=offset),), target, CopyState(jobs=1))


def check_sources(sources: tuple[Source, ...]) -> None:
    """Raise one `SourceError` that names all sources that changed since they were opened."""
    problems = []
    for source in sources:
        try:
            source.check_unchanged()
        except SourceError as error:
            problems.append(str(error))
    if problems:
        raise SourceError("; ".join(problems))


# --- files ------------------------------------------------------------------------------------------------------------


class _Files:
    """Copies from files: segments that a few threads take, including the calling one."""

    def __init__(self, works: Sequence[Work], state: CopyState, *, fresh: bool) -> None:
        self._state = state
        self._fresh = fresh
        self._on_server = bool(works) and is_served(works[0].target)
        self._segments_lock = threading.Lock()
        sources = (copy.extent.source for work in works for copy in work.copies)
        self._parallelism = max((source.parallelism for source in sources), default=1)
        self._segments = self._cut(works)
        self._ahead: list[_Segment] = []

    def start(self) -> list[threading.Thread]:
        """Start helper threads if there is more than one segment: for one they do not pay."""
        self._ahead = list(islice(self._segments, 2))
        if len(self._ahead) < 2:
            return []
        return start(self._state.guard(self.drain), min(self._state.jobs or self._parallelism, MAX_JOBS) - 1)

    def drain(self) -> None:
        """Copy segments until none are left."""
        buffer = memoryview(b"")
        while (segment := self._take()) is not None:
            size = min(BUFFER, segment[0].extent.length)
            if len(buffer) < size:
                buffer = memoryview(bytearray(size))
            self._move(*segment, buffer)

    def _take(self) -> _Segment | None:
        """The next segment to copy, or None if none is left or the work has stopped."""
        with self._segments_lock:
            if self._state.stop.is_set():
                return None
            return self._ahead.pop(0) if self._ahead else next(self._segments, None)

    # --- from copies to segments ---

    def _cut(self, works: Iterable[Work]) -> Iterator[_Segment]:
        """Clone what can be cloned, and yield everything else in segments."""
        for work in works:
            grid = clone_grid(work.target)
            for copy in work.copies:
                rest = (copy,) if grid is None else self._clone(copy, work.target, grid)
                for piece in rest:
                    yield from ((segment, work.target) for segment in _segments(piece, self._state.sizes.segment))

    def _clone(self, copy: Copy, target: int, grid: int) -> tuple[Copy, ...]:
        """Share the whole blocks of `copy` with its source; return what remains to be copied."""
        start, length = _whole_blocks(copy, grid, self._state.sizes.least_clone)
        if not length:
            return (copy,)
        opened = copy.extent.source.descriptor()
        if opened is None:
            return (copy,)
        with opened as fd:
            place = copy.offset + start
            offset = copy.extent.offset + start
            shared = self._state.kernel.attempt(
                CLONE, (fd, offset), (target, place), length, lambda: not self._state.stop.is_set()
            )
        if not shared:
            return (copy,)
        self._state.written(place, shared, shared=True)
        behind = start + shared
        return (part_of(copy, 0, start), part_of(copy, behind, copy.extent.length - behind))

    # --- from segments to bytes ---

    def _move(self, segment: Copy, target: int, buffer: memoryview) -> None:
        opened = segment.extent.source.descriptor()
        if opened is None:
            raise SourceError("has lost its descriptor", source=segment.extent.source.name)
        with opened as fd:
            self._move_file(fd, segment, target, buffer)
        if not self._state.stop.is_set():
            self._state.start_write_back(target, segment.offset, segment.extent.length)

    def _move_file(self, fd: int, segment: Copy, target: int, buffer: memoryview) -> None:
        extent = segment.extent
        done = 0
        if self._on_server:
            done = self._state.kernel.attempt(SERVER_COPY, (fd, extent.offset), (target, segment.offset), extent.length)
        elif self._fresh and extent.length >= self._state.sizes.least_clone:
            done = leading_hole(fd, extent.offset, extent.length)
        if done:
            self._state.written(segment.offset, done)
            segment = part_of(segment, done, extent.length - done)
        self._read_and_write(fd, segment, target, buffer)

    def _read_and_write(self, fd: int, piece: Copy, target: int, buffer: memoryview) -> None:
        offset, place, left = piece.extent.offset, piece.offset, piece.extent.length
        while left and not self._state.stop.is_set():
            got = _read(piece.extent.source, fd, buffer[: min(len(buffer), left)], offset, left)
            write_fully(target, buffer[:got], place)
            self._state.written(place, got)
            offset, place, left = offset + got, place + got, left - got


def _read(source: Source, fd: int, buffer: memoryview, offset: int, left: int) -> int:
    """Read once into `buffer`; raise `SourceError` if the disk fails or the file ends early."""
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


def _whole_blocks(copy: Copy, grid: int, least: int) -> tuple[int, int]:
    """Start and length of the part of `copy` that can be shared in blocks of `grid` bytes; 0, 0 if below `least`."""
    start = -copy.offset % grid
    length = (copy.extent.length - start) // grid * grid
    worth = (copy.extent.offset - copy.offset) % grid == 0 and length >= least
    return (start, length) if worth else (0, 0)


def shared_bytes(copies: Iterable[Copy], folder: Path) -> int:
    """Count the bytes of `copies` that a file in `folder` would share with their sources.

    Found out by trying: the first block of each copy is shared with an unnamed temporary file.
    """
    fd = open_unnamed(folder)
    if fd is None:
        return 0  # count nothing as shared
    try:
        grid = clone_grid(fd)
        kernel = KernelCopies()
        return sum(_would_share(copy, fd, grid, kernel) for copy in copies) if grid is not None else 0
    finally:
        close_quietly(fd)


def _would_share(copy: Copy, fd: int, grid: int, kernel: KernelCopies) -> int:
    start, length = _whole_blocks(copy, grid, Sizes().least_clone)
    opened = copy.extent.source.descriptor() if length else None
    if opened is None:
        return 0
    with opened as source:
        return length if kernel.attempt(CLONE, (source, copy.extent.offset + start), (fd, 0), grid) else 0


def _segments(copy: Copy, size: int) -> Iterator[Copy]:
    """Cut `copy` at multiples of `size` bytes in the target, so that no two threads share a page."""
    done = 0
    while done < copy.extent.length:
        length = min(copy.extent.length - done, size - (copy.offset + done) % size)
        yield part_of(copy, done, length)
        done += length
