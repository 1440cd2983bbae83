"""What of an output has landed, when its bytes come from many connections at once.

A watermark, as the resume journal has it for local copies, would have to wait for the slowest connection.  So what is
journaled here is ranges: every few dozen megabytes, or seconds, the part file is made durable while the connections
go on, and then the ranges that had landed before are noted.  What a kill costs is what landed since.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence

from gguftool.storage.execute.part import PartFile
from gguftool.storage.execute.resume import ResumeLog, agrees
from gguftool.storage.execute.runs import part_of
from gguftool.storage.plan import Copy, OutputFile
from gguftool.storage.system.durable import sync_file

STEP = 16 << 20  # bytes after which what has landed is made durable and noted,
_SHORTEST, _LONGEST = 0.25, 2.0  # but not sooner than this many seconds after the last time, nor later

Ranges = Sequence[tuple[int, int]]


class Landing:
    """The watch over the part file of one output: notes its ranges in `log`."""

    def __init__(self, log: ResumeLog, index: int, part: PartFile) -> None:
        self._log = log
        self._index = index
        self._part = part
        self._step = min(STEP, log.step)
        self._lock = threading.Lock()
        self._starts: dict[int, int] = {}  # end -> start of what landed since the last note
        self._nbytes = 0
        self._noted = time.monotonic()

    def landed(self, offset: int, nbytes: int) -> None:
        """Bytes were written to the part file."""
        with self._lock:
            self._starts[offset + nbytes] = self._starts.pop(offset, offset)
            self._nbytes += nbytes

    def pulse(self) -> None:
        """Note what has landed, where it is time to."""
        if not self._nbytes:
            return
        waited = time.monotonic() - self._noted
        if waited >= (_SHORTEST if self._nbytes >= self._step else _LONGEST):
            self.note()

    def note(self, *, durable: bool = False) -> None:
        """Note what has landed, durable first; with `durable` it is that already."""
        with self._lock:
            starts, self._starts, self._nbytes = self._starts, {}, 0
        if starts and not durable:
            sync_file(self._part.fd)
        self._log.note_ranges(self._index, [(start, end) for end, start in starts.items()])
        self._noted = time.monotonic()

    def note_quietly(self) -> None:
        """Note what has landed before the run ends in an error; where that fails, it will be fetched again."""
        with contextlib.suppress(OSError):
            self.note()


def is_streamed(output: OutputFile) -> bool:
    """Whether bytes of `output` come from a source without a descriptor: over a network, or computed."""
    known: dict[int, bool] = {}
    for copy in output.copies:
        source = copy.extent.source
        if id(source) not in known:
            known[id(source)] = source.descriptor() is None
            if known[id(source)]:
                return True
    return False


def believable(part: PartFile, output: OutputFile, noted: Ranges) -> tuple[tuple[int, int], ...]:
    """Return the `noted` ranges joined, or none of them where the last one's end is not as the plan wants it."""
    if not noted:
        return ()
    start, end = noted[-1]
    return joined(noted) if agrees(part, output, end, start) else ()


def joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return (start, end) `ranges` sorted, those that touch or overlap joined."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def without(copies: Iterable[Copy], ranges: Ranges) -> tuple[Copy, ...]:
    """Return what of `copies` (ascending) lies outside `ranges` (joined) of the target."""
    rest: list[Copy] = []
    at = 0
    for copy in copies:
        here, end = copy.offset, copy.offset + copy.extent.length
        while at < len(ranges) and ranges[at][1] <= here:
            at += 1
        index = at
        while here < end:
            start, stop = ranges[index] if index < len(ranges) else (end, end)
            if here < min(start, end):
                rest.append(part_of(copy, here - copy.offset, min(start, end) - here))
            here, index = max(here, stop), index + 1
    return tuple(rest)
