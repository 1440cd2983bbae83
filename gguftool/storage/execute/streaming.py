"""Copying from sources without a descriptor: bytes that come over a network, or are computed.

Every kind of source has a lane with as many threads as pay for it, so that computing does not wait for a server, nor
local copies for either.  A thread that hangs in a dead connection when all is over is left behind: it writes through a
descriptor of the lane's own, and not a byte once the lane is closed: one that is in a write then is waited for.
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
    """Group `copies` by the kind of their source."""
    kinds: dict[type, list[Copy]] = {}
    for copy in copies:
        kinds.setdefault(type(copy.extent.source), []).append(copy)
    return tuple(tuple(group) for group in kinds.values())


class Lane:
    """The requests of one kind of source, and the threads that make them."""

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
        """Whether there is more than one request, and more than one thread to make them."""
        with self._lock:
            if not self._ahead:
                self._ahead = list(islice(self._requests, 2))
        return self._jobs > 1 and len(self._ahead) > 1

    def start(self, most: int) -> list[threading.Thread]:
        """Start the lane's threads."""
        return start(self._state.guard(self._help), min(self._jobs, most))

    def drain(self) -> None:
        """Make requests until there are none."""
        while (run := self._take()) is not None:
            self._carry(run)

    def settle(self) -> None:
        """After the stop: wait for writes that are under way; there will be no others."""
        with self._idle:
            while self._writing - {threading.get_ident()}:  # this one was interrupted by a signal, wherever it was
                self._idle.wait(0.1)

    def close(self) -> None:
        """Close the descriptor as soon as the last thread is done with it."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            close_quietly(self._fd)

    def _help(self) -> None:
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

    def _carry(self, run: SourceRun) -> None:
        """Stream one run and write its copies as the bytes come."""
        writes, place = deque(run.copies), run.offset
        for data in run.source.stream(run.offset, run.length):
            for target, piece in _cut(memoryview(data), place, writes):
                if not self._write(piece, target):
                    return
                self._state.written(target, len(piece))
            place += len(data)
        if place != run.offset + run.length:  # never publish a hole because a source counted wrong
            raise SourceError(
                f"gave {place - run.offset:,} of {run.length:,} bytes", source=run.source.name, offset=run.offset
            )
        for copy in run.copies:
            self._state.start_write_back(self._fd, copy.offset, copy.extent.length)

    def _write(self, piece: memoryview, target: int) -> bool:
        """Write one piece; return whether it is there as a whole, which it need not be where all has stopped."""
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


def _cut(view: memoryview, place: int, writes: deque[Copy]) -> Iterator[tuple[int, memoryview]]:
    """Cut `view`, which is at `place` of the source, into (offset in the target, bytes); gaps fall away."""
    end = place + len(view)
    while writes and writes[0].extent.offset < end:
        copy = writes[0]
        begin, stop = max(place, copy.extent.offset), min(end, copy.extent.end)
        yield copy.offset + begin - copy.extent.offset, view[begin - place : stop - place]
        if copy.extent.end > end:
            return
        writes.popleft()


# --- from copies to requests -----------------------------------------------------------------------------------------


MAX_GAP = 64 << 10  # bytes between two extents that are read through: less than a round trip costs on most lines
_GRID = 4096  # bytes; cuts lie on it in the target, so that no two threads write to one page


@record
class SourceRun:
    """`length` bytes of `source` from `offset`, read in one go; `copies` say which of them are written where.

    The copies ascend in the source and do not overlap; the first starts at `offset` and the last ends with the run.
    """

    source: Source
    offset: int
    length: int
    copies: tuple[Copy, ...]


def join_runs(copies: Iterable[Copy]) -> tuple[SourceRun, ...]:
    """Join `copies` that are neighbours in their source, up to `MAX_GAP` apart; sources in the order of first use."""
    by_source: dict[int, list[Copy]] = {}  # by id: a source may be costly to hash
    for copy in copies:
        if copy.extent.length:
            by_source.setdefault(id(copy.extent.source), []).append(copy)
    return tuple(run for ours in by_source.values() for run in _join(ours))


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
    """Cut `runs` so that `parallelism` readers end at about the same time.

    A source that computes may have a `preferred_chunk`: what is worth a thread's while, where a request costs no trip.
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
    """Take copies from the front of `rest` that span about `size` bytes of their source; the last may be cut."""
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
    """Return `length` bytes of `copy` from its byte `start`."""
    extent = Extent(source=copy.extent.source, offset=copy.extent.offset + start, length=length)
    return Copy(extent=extent, offset=copy.offset + start)
