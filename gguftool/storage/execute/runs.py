"""From copies to requests: which ranges of a source without a descriptor are asked for at once, and in what sizes.

A request costs a round trip, so extents that are neighbours in their source are one request even where the target has
them apart, and a gap of padding between them is read through.  A request that never ends is as bad: it leaves the
other connections idle at the end of the work, so pieces become smaller as less is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from gguftool.record import record
from gguftool.storage.plan import Copy
from gguftool.storage.sources.source import Extent, Source

MAX_GAP = 64 << 10  # bytes between two extents that are read through: less than a round trip costs on most lines
MAX_REQUEST = 64 << 20  # bytes; at 15 MB/s a connection and 100 ms to the host, round trips cost 2 %
MIN_REQUEST = 4 << 20
_GRID = 4096  # bytes; cuts lie on it in the target, so that no two threads write to one page


@record
class Run:
    """`length` bytes of `source` from `offset`, read in one go; `copies` say which of them are written where.

    The copies ascend in the source and do not overlap; the first starts at `offset` and the last ends with the run.
    """

    source: Source
    offset: int
    length: int
    copies: tuple[Copy, ...]


def join_runs(copies: Iterable[Copy]) -> tuple[Run, ...]:
    """Join `copies` that are neighbours in their source, up to `MAX_GAP` apart; sources in the order of first use."""
    by_source: dict[int, list[Copy]] = {}  # by id: a source may be costly to hash
    for copy in copies:
        if copy.extent.length:
            by_source.setdefault(id(copy.extent.source), []).append(copy)
    return tuple(run for ours in by_source.values() for run in _join(ours))


def _join(copies: list[Copy]) -> Iterator[Run]:
    group: list[Copy] = []
    for copy in sorted(copies, key=lambda copy: copy.extent.offset):
        if group and not 0 <= copy.extent.offset - group[-1].extent.end <= MAX_GAP:
            yield _run(group)
            group = []
        group.append(copy)
    if group:
        yield _run(group)


def _run(copies: Iterable[Copy]) -> Run:
    copies = tuple(copies)
    first, last = copies[0].extent, copies[-1].extent
    return Run(source=first.source, offset=first.offset, length=last.end - first.offset, copies=copies)


def requests(runs: Iterable[Run], parallelism: int) -> Iterator[Run]:
    """Cut `runs` so that `parallelism` readers end at about the same time.

    A source that computes may have a `grain` in bytes: what is worth a thread's while, where a request costs no trip.
    """
    runs = tuple(runs)
    left = sum(run.length for run in runs)
    for run in runs:
        rest = deque(run.copies)
        while rest:
            size = left // (2 * max(1, parallelism))
            request = _run(_take(rest, getattr(run.source, "grain", max(MIN_REQUEST, min(MAX_REQUEST, size)))))
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
