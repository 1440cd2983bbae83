"""Copy from sources without a descriptor: bytes that come over a network, or are computed.

Lanes: each kind of source has a `Lane` with its own threads (their number was chosen by measurement), so that computing
does not wait for a server, and local copies wait for neither. A thread that hangs in a dead connection at the end is
left behind. It writes through the lane's own descriptor, and writes nothing after the lane has stopped: the lane waits
for a write in progress.

Requests: `join_runs` joins copies that are close together in their source into `SourceRun`s, and `requests` cuts these
into pieces. A thread reads each piece in one go.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from gguftool.errors import SourceError
from gguftool.record import record
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.options import Sizes
from gguftool.storage.plan import Copy
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.system.fileio import close_quietly, write_fully
from gguftool.storage.system.threads import start


def lanes_of(copies: Sequence[Copy]) -> tuple[tuple[Copy, ...], ...]:
    """Group `copies` by the kind of source."""
    kinds: dict[type, list[Copy]] = {}
    for copy in copies:
        kinds.setdefault(type(copy.extent.source), []).append(copy)
    return tuple(tuple(group) for group in kinds.values())


class Lane:
    """Requests to one kind of source, and the threads that make them."""

    def __init__(self, copies: Sequence[Copy], target: int, state: CopyState) -> None:
        self._jobs = state.jobs or max(copy.extent.source.parallelism for copy in copies)
        self._requests = requests(join_runs(copies), self._jobs, state.sizes)
        self._ahead: list[SourceRun] = []
        self._state = state
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._writing: set[int] = set()  # threads
        self._users = 1
        self._fd = os.dup(target)

    @property
    def needs_threads(self) -> bool:
        """Whether there is more than one request, and more than one thread is allowed."""
        with self._lock:
            if not self._ahead:
                self._ahead = list(islice(self._requests, 2))
        return self._jobs > 1 and len(self._ahead) > 1

    def start(self, most: int) -> list[threading.Thread]:
        """Start the lane's threads."""
        return start(self._state.guard(self._run_thread), min(self._jobs, most))

    def drain(self) -> None:
        """Make requests until none are left."""
        while (run := self._take()) is not None:
            self._stream_run(run)

    def settle(self) -> None:
        """After the stop signal: wait for writes in progress; no others will start."""
        with self._idle:
            while self._writing - {threading.get_ident()}:  # a signal may have interrupted this thread in a write
                self._idle.wait(0.1)

    def close(self) -> None:
        """Close the descriptor once the last thread is done with it."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            close_quietly(self._fd)

    def _run_thread(self) -> None:
        with self._lock:
            if not self._users:
                return
            self._users += 1
        try:
            self.drain()
        finally:
            self.close()

    def _take(self) -> SourceRun | None:
        with self._lock:
            if self._state.stop.is_set():
                return None
            return self._ahead.pop(0) if self._ahead else next(self._requests, None)

    def _stream_run(self, run: SourceRun) -> None:
        """Stream one run and write its copies as bytes arrive."""
        writes, place = deque(run.copies), run.offset
        for data in run.source.stream(run.offset, run.length):
            for target, piece in _cut_by_copies(memoryview(data), place, writes):
                if not self._write(piece, target):
                    return
                self._state.written(target, len(piece))
            place += len(data)
        if place != run.offset + run.length:  # never publish a hole because a source gave too few bytes
            raise SourceError(
                f"gave {place - run.offset:,} of {run.length:,} bytes", source=run.source.name, offset=run.offset
            )
        for copy in run.copies:
            self._state.start_write_back(self._fd, copy.offset, copy.extent.length)

    def _write(self, piece: memoryview, target: int) -> bool:
        """Write one piece; return whether all of it was written: false if the copy was stopped."""
        stopped = self._state.stop.is_set
        with self._lock:
            if stopped():
                return False
            self._writing.add(threading.get_ident())
        try:
            write_fully(self._fd, piece, target, stopped)
        finally:
            with self._idle:
                self._writing.discard(threading.get_ident())
                self._idle.notify_all()
        return not stopped()


def _cut_by_copies(view: memoryview, place: int, writes: deque[Copy]) -> Iterator[tuple[int, memoryview]]:
    """Cut `view`, read at offset `place` of the source, into (offset in the target, bytes); drop gaps."""
    end = place + len(view)
    while writes and writes[0].extent.offset < end:
        copy = writes[0]
        begin, stop = max(place, copy.extent.offset), min(end, copy.extent.end)
        yield copy.offset + begin - copy.extent.offset, view[begin - place : stop - place]
        if copy.extent.end > end:
            return
        writes.popleft()


# --- from copies to requests -----------------------------------------------------------------------------------------


MAX_GAP = 64 << 10  # bytes; shorter gaps between extents are read too: cheaper than a round trip on most networks
_GRID = 4096  # bytes; cuts are at multiples of it in the target, so that no two threads write to one page


@record
class SourceRun:
    """`length` bytes of `source` from `offset`, read in one go; `copies` map them to the target.

    The copies ascend in the source and do not overlap; the first starts at `offset` and the last ends with the run.
    """

    source: Source
    offset: int
    length: int
    copies: tuple[Copy, ...]


def join_runs(copies: Iterable[Copy]) -> tuple[SourceRun, ...]:
    """Join `copies` that are up to `MAX_GAP` apart in their source; keep sources in the order of first use."""
    by_source: dict[int, list[Copy]] = {}  # by id: hashing a source may be slow
    for copy in copies:
        if copy.extent.length:
            by_source.setdefault(id(copy.extent.source), []).append(copy)
    return tuple(run for group in by_source.values() for run in _join(group))


def _join(copies: list[Copy]) -> Iterator[SourceRun]:
    group: list[Copy] = []
    for copy in sorted(copies, key=lambda copy: copy.extent.offset):
        if group and not 0 <= copy.extent.offset - group[-1].extent.end <= MAX_GAP:
            yield _run(group)
            group = []
        group.append(copy)
    if group:
        yield _run(group)


def _run(copies: Iterable[Copy]) -> SourceRun:
    copies = tuple(copies)
    first, last = copies[0].extent, copies[-1].extent
    return SourceRun(source=first.source, offset=first.offset, length=last.end - first.offset, copies=copies)


def requests(runs: Iterable[SourceRun], parallelism: int, sizes: Sizes) -> Iterator[SourceRun]:
    """Cut `runs` so that `parallelism` readers finish at about the same time.

    A source that computes may have a `preferred_chunk`, large enough for one thread; its requests cost no round trip.
    """
    runs = tuple(runs)
    left = sum(run.length for run in runs)
    for run in runs:
        rest = deque(run.copies)
        while rest:
            usual = max(sizes.least_request, min(sizes.most_request, left // (2 * max(1, parallelism))))
            request = _run(_take(rest, run.source.preferred_chunk or usual))
            left -= request.length
            yield request


def _take(rest: deque[Copy], size: int) -> Iterator[Copy]:
    """Take copies from the front of `rest` that span about `size` bytes of their source; cut the last if needed."""
    limit = rest[0].extent.offset + size
    while rest and rest[0].extent.offset < limit:
        copy = rest.popleft()
        if copy.extent.end > limit:
            length = limit - copy.extent.offset
            length -= (copy.offset + length) % _GRID
            if length > 0:
                yield part_of(copy, 0, length)
                rest.appendleft(part_of(copy, length, copy.extent.length - length))
                return
        yield copy


def part_of(copy: Copy, start: int, length: int) -> Copy:
    """The part of `copy` with `length` bytes from its byte `start`."""
    extent = Extent(source=copy.extent.source, offset=copy.extent.offset + start, length=length)
    return Copy(extent=extent, offset=copy.offset + start)
