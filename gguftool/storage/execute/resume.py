"""Resume: the journal of an unfinished run, and the ranges of outputs that are complete.

The journal records how far each part file is complete and durable. Its first line identifies the plan (fingerprint,
sources, outputs). Each other line is one of

    INDEX OFFSET       output INDEX is complete below OFFSET, its watermark
    INDEX START END    this range of output INDEX is complete (outputs with streamed sources, see `CompletedRanges`)
    INDEX anew         output INDEX starts over; ignore all earlier lines about it

A line is appended only after its data is durable, and a torn line claims less, never more: so the journal is true
wherever a run was interrupted. It is created at the first checkpoint: runs that write little, because they are short or
share blocks, leave no journal. It is kept next to the first output; the lock of that output's part file is the lock of
the journal.

`CompletedRanges` collects the ranges of one streamed output, where data arrives out of order, and records them in the
journal from time to time, after an fsync. A later run trusts the recorded progress only after it has compared the last
bytes with their source (`agrees`, `believable`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gguftool.errors import ExecuteError, SourceError, listed
from gguftool.record import record
from gguftool.storage.execute.options import Sizes
from gguftool.storage.execute.part import PartFile, remove_left_over
from gguftool.storage.execute.streaming import part_of
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.sidecars import RESUME, helper_path
from gguftool.storage.sources.source import ChangedError
from gguftool.storage.system.fileio import close_quietly, read_fully, sync_file, sync_folders
from gguftool.storage.system.names import unlink
from gguftool.storage.system.ownership import create_helper, open_helper, remove_helper

_VERSION = "gguftool resume 1"
_RESTART = "anew"
_MAX_JOURNAL = 256 << 20  # bytes; a run of 2 TB in 65,535 files writes some 10 million
_PROBE = 64 << 10  # bytes below a watermark or a range's end; compared with their source before these are trusted


def resume_path(plan: Plan) -> Path:
    """The path of the resume journal of `plan`."""
    return helper_path(plan.outputs[0].path, RESUME)


@record
class Done:
    """Progress of an interrupted run: watermarks of outputs by index, or complete (start, end) ranges."""

    ends: Mapping[int, int]
    ranges: Mapping[int, Sequence[tuple[int, int]]]


class ResumeJournal:
    """Record progress of a run; watermarks are `step` written bytes apart.

    `sync_data` makes all part files durable at once, if there are many. If it is None, the caller makes each part
    file durable before it is recorded. `guard` is called before anything is recorded, and raises `ExecuteError` if the
    part files at their paths are no longer this run's: then the journal may be another run's, too.
    """

    def __init__(
        self,
        plan: Plan,
        done: Done,
        *,
        step: int,
        sync_data: Callable[[], None] | None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.done = done
        self.step = step
        self.sync_data = sync_data
        self._guard = guard
        self._fd: int | None = None
        self._forgotten: set[int] = set()
        self._pending: dict[int, int] = {}
        self._pending_bytes = 0

    @property
    def is_kept(self) -> bool:
        """Whether a later run can resume from this journal."""
        return self._fd is not None

    def gather(self, ends: Mapping[int, int], written: int) -> bool:
        """Collect watermarks of outputs, by index; return whether a checkpoint is due: after `step` written bytes.

        If so, make these outputs durable, then call `checkpoint`.
        """
        self._pending.update(ends)
        self._pending_bytes += written
        return self._pending_bytes >= self.step

    def checkpoint(self) -> None:
        """Record collected watermarks; the data is durable already, or `sync_data` makes it so."""
        if self.sync_data is not None:
            self.sync_data()
        text = "".join(f"{number} {offset}\n" for number, offset in self._pending.items())
        self._append(text.encode())
        self._pending.clear()
        self._pending_bytes = 0

    def record_ranges(self, index: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Record immediately that these (start, end) ranges of output `index` are complete, and durable already."""
        if ranges:
            self._append("".join(f"{index} {start} {end}\n" for start, end in ranges).encode())

    def forget(self, index: int) -> None:
        """Record, before the part of output `index` is created or truncated, that none of it is complete."""
        if index not in self._forgotten and (index in self.done.ends or index in self.done.ranges):
            self._forgotten.add(index)
            self._append(f"{index} {_RESTART}\n".encode())

    def _append(self, data: bytes) -> None:
        self._guard()
        new = self._fd is None
        if self._fd is None:
            data = _header_line(self.plan) + data
            self._fd = create_helper(resume_path(self.plan), append=True)
        while data:
            data = data[os.write(self._fd, data) :]
        sync_file(self._fd)
        if new:
            sync_folders([resume_path(self.plan).parent])

    def reopen(self) -> None:
        """Open the existing journal for appending."""
        self._fd = open_helper(resume_path(self.plan), append=True)
        os.write(self._fd, b"\n")  # terminate a torn line

    def close(self) -> None:
        """Close the journal and keep it."""
        if self._fd is not None:
            close_quietly(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove the journal: the outputs are complete, or abandoned. Without part files it is harmless if it stays."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(resume_path(self.plan))):
                    unlink(resume_path(self.plan))
            self.close()


def _header_line(plan: Plan) -> bytes:
    import json  # few runs write or read a journal

    header = {
        "version": _VERSION,
        "fingerprint": plan.fingerprint,
        "sources": [[source.name, source.identity] for source in plan.inputs],
        "outputs": [[output.path.name, output.size] for output in plan.outputs],
    }
    return json.dumps(header).encode() + b"\n"


def read_resume(plan: Plan) -> Done:
    """Read the progress of an interrupted run of this same plan; empty if there is no journal.

    Raises `ExecuteError`, which says what changed, if the journal belongs to another plan. Call with the lock held.
    """
    nothing = Done(ends={}, ranges={})
    try:
        with open(open_helper(resume_path(plan), writable=False), "rb") as file:
            first, *lines = file.read(_MAX_JOURNAL).split(b"\n")
    except FileNotFoundError:
        return nothing
    header = _parse_header(first)
    if header is None:
        return nothing  # torn before its first line was durable: it records nothing
    if header["fingerprint"] != plan.fingerprint:
        raise ExecuteError(
            f"an interrupted run left part files of another plan here: {_difference(header, plan)}; "
            "--no-resume removes them and starts over",
            source=str(plan.outputs[0].path),
        )
    return _done(lines, plan)


def _done(lines: Sequence[bytes], plan: Plan) -> Done:
    ends: dict[int, int] = {}
    ranges: dict[int, list[tuple[int, int]]] = {}
    for index, numbers in _lines(lines, plan):
        size = plan.outputs[index].size
        if not numbers:
            ends.pop(index, None)
            ranges.pop(index, None)
        elif len(numbers) == 1 and numbers[0] <= size:
            ends[index] = max(numbers[0], ends.get(index, 0))
        elif len(numbers) == 2 and numbers[0] < numbers[1] <= size:
            ranges.setdefault(index, []).append((numbers[0], numbers[1]))
    return Done(ends=ends, ranges=ranges)


def _lines(lines: Sequence[bytes], plan: Plan) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield each line's output index and numbers (no numbers if the output starts over); skip torn lines."""
    for line in lines:
        first, *words = line.split(b" ")
        with contextlib.suppress(ValueError):
            numbers = () if words == [_RESTART.encode()] else tuple(int(word) for word in words)
            index = int(first)
            if 0 <= index < len(plan.outputs) and words and all(number >= 0 for number in numbers):
                yield index, numbers


def _parse_header(line: bytes) -> dict[str, Any] | None:
    import json

    try:
        header = json.loads(line)
        names = [name for name, _ in header["outputs"]]
        identities = [identity for _, identity in header["sources"]]
        good = header["version"] == _VERSION and isinstance(header["fingerprint"], str)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not good or not all(isinstance(text, str) for text in (*names, *identities)):
        return None
    return header  # type: ignore[no-any-return]


def _difference(header: dict[str, Any], plan: Plan) -> str:
    now = {source.name: source.identity for source in plan.inputs}
    before = {str(name): identity for name, identity in header["sources"]}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        return f"changed since: {listed(changed)}"
    if before.keys() != now.keys():
        return f"its sources were {listed(list(before))}"
    outputs = [[output.path.name, output.size] for output in plan.outputs]
    if header["outputs"] != outputs:
        return f"its {len(header['outputs']):,} output(s) had other names or sizes"
    return "its options were different"


def remove_resume(plan: Plan) -> None:
    """Remove the journal of any plan, and the part files that it names. Call with the lock held."""
    path = resume_path(plan)
    try:
        with open(open_helper(path, writable=False), "rb") as file:
            header = _parse_header(file.readline(_MAX_JOURNAL))
    except FileNotFoundError:
        return
    own = plan.outputs[0].path
    for name, _ in header["outputs"] if header else ():
        target = own.parent / Path(name).name
        if target != own:
            remove_left_over(target)
    remove_helper(path)


def agrees(part: PartFile, output: OutputFile, mark: int, floor: int = 0) -> bool:
    """Whether the last bytes of `part` below `mark` (and not below `floor`) are as planned.

    Compares the last 64 KiB with head and sources.
    """
    start = max(floor, mark - _PROBE)
    wanted = [(len(output.head[start:mark]), start, output.head[start:mark])] if start < len(output.head) else []
    for copy in output.copies:
        begin, end = max(start, copy.offset), min(mark, copy.offset + copy.extent.length)
        if begin < end:
            place = copy.extent.offset + begin - copy.offset
            wanted.append((end - begin, begin, copy.extent.source.read_at(place, end - begin)))
    return all(read_fully(part.fd, length, offset) == data for length, offset, data in wanted)


def worth_keeping(error: BaseException, sources: Sequence[Any]) -> bool:
    """Whether to keep part files for a later run: after a signal, or if a source failed but did not change."""
    if not isinstance(error, Exception):
        return True
    if not isinstance(error, SourceError):
        return False
    if isinstance(error, ChangedError):
        return False
    try:
        for source in sources:
            if source.file_id is not None:  # a dead server takes long to answer, and a later run checks anyway
                source.check_unchanged()
    except SourceError:
        return False
    return True


# --- ranges of outputs that are streamed -----------------------------------------------------------------------------


_MAX_WAIT = 2.0  # seconds after which ranges are recorded, even short ones

Ranges = Sequence[tuple[int, int]]


class CompletedRanges:
    """Track which ranges of one output are written, and record them in the resume journal."""

    def __init__(self, journal: ResumeJournal, index: int, part: PartFile, sizes: Sizes) -> None:
        self._journal = journal
        self._index = index
        self._part = part
        self._step = min(sizes.range_step, journal.step)
        self._pause = sizes.range_pause
        self._lock = threading.Lock()
        self._starts: dict[int, int] = {}  # end -> start of ranges written since the last record
        self._nbytes = 0
        self._recorded = time.monotonic()

    def on_written(self, offset: int, nbytes: int) -> None:
        """Bytes were written to the part file."""
        with self._lock:
            self._starts[offset + nbytes] = self._starts.pop(offset, offset)
            self._nbytes += nbytes

    def tick(self) -> None:
        """Record new ranges if it is time to."""
        if not self._nbytes:
            return
        waited = time.monotonic() - self._recorded
        if waited >= (self._pause if self._nbytes >= self._step else _MAX_WAIT):
            self.record()

    def record(self, *, durable: bool = False) -> None:
        """Make new ranges durable, then record them; with `durable`, they are durable already."""
        with self._lock:
            starts, self._starts, self._nbytes = self._starts, {}, 0
        if starts and not durable:
            sync_file(self._part.fd)
        self._journal.record_ranges(self._index, [(start, end) for end, start in starts.items()])
        self._recorded = time.monotonic()

    def record_quietly(self) -> None:
        """Record new ranges before the run ends in an error; if that fails, a later run fetches them again."""
        with contextlib.suppress(OSError, ExecuteError):
            self.record()


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


def believable(part: PartFile, output: OutputFile, recorded: Ranges) -> tuple[tuple[int, int], ...]:
    """Join the recorded ranges, or return () if the bytes at the end of the last one are not as planned."""
    if not recorded:
        return ()
    start, end = recorded[-1]
    return joined(recorded) if agrees(part, output, end, start) else ()


def joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort (start, end) `ranges`, and join those that touch or overlap."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def without(copies: Iterable[Copy], ranges: Ranges) -> tuple[Copy, ...]:
    """Cut `copies` (ascending) to the parts outside `ranges` (joined) of the target."""
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
