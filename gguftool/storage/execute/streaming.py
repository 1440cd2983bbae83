"""Copying from sources without a descriptor: bytes that come over a network, or are computed.

Every kind of source has a lane with as many threads as pay for it, so that computing does not wait for a server, nor
local copies for either.  A thread that hangs in a dead connection when all is over is left behind: it writes through a
descriptor of the lane's own, and not a byte once the lane is closed: one that is in a write then is waited for.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from gguftool.errors import SourceError
from gguftool.storage.execute.runs import Run, join_runs, requests
from gguftool.storage.plan import Copy
from gguftool.storage.system.durable import close_quietly
from gguftool.storage.system.fileio import start_writeback, write_fully
from gguftool.storage.system.threads import Tally, start


def lanes_of(copies: Sequence[Copy]) -> tuple[tuple[Copy, ...], ...]:
    """Group `copies` by the kind of their source."""
    kinds: dict[type, list[Copy]] = {}
    for copy in copies:
        kinds.setdefault(type(copy.extent.source), []).append(copy)
    return tuple(tuple(group) for group in kinds.values())


class Lane:
    """The requests of one kind of source, and the threads that make them."""

    def __init__(self, copies: Sequence[Copy], target: int, tally: Tally, *, jobs: int | None, durable: bool) -> None:
        self._jobs = jobs or max(copy.extent.source.parallelism for copy in copies)
        self._requests = requests(join_runs(copies), self._jobs)
        self._ahead: list[Run] = []
        self._tally = tally
        self._durable = durable
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._writing: set[int] = set()  # threads
        self._users = 1
        self._fd = os.dup(target)

    @property
    def pays_threads(self) -> bool:
        """Whether there is more than one request, and more than one thread to make them."""
        with self._lock:
            if not self._ahead:
                self._ahead = list(islice(self._requests, 2))
        return self._jobs > 1 and len(self._ahead) > 1

    def start(self, most: int) -> list[threading.Thread]:
        """Start the lane's threads."""
        return start(self._tally.guard(self._help), min(self._jobs, most))

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

    def _take(self) -> Run | None:
        with self._lock:
            if self._tally.stop.is_set():
                return None
            return self._ahead.pop(0) if self._ahead else next(self._requests, None)

    def _carry(self, run: Run) -> None:
        """Stream one run and write its copies as the bytes come."""
        writes, place = deque(run.copies), run.offset
        for data in run.source.stream(run.offset, run.length):
            for target, piece in _cut(memoryview(data), place, writes):
                if not self._write(piece, target):
                    return
                self._tally.landed(target, len(piece))
            place += len(data)
        if place != run.offset + run.length:  # never publish a hole because a source counted wrong
            raise SourceError(
                f"gave {place - run.offset:,} of {run.length:,} bytes", source=run.source.name, offset=run.offset
            )
        if self._durable:
            for copy in run.copies:
                start_writeback(self._fd, copy.offset, copy.extent.length)

    def _write(self, piece: memoryview, target: int) -> bool:
        """Write one piece; return whether it is there as a whole, which it need not be where all has stopped."""
        stopped = self._tally.stop.is_set
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
