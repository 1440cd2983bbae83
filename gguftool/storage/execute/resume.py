"""The resume journal: how far each part file of an unfinished run is complete and durable.

The first line says what the plan was (fingerprint, sources, outputs), each other one ``INDEX OFFSET``: output INDEX is
complete below OFFSET, or ``INDEX START END``: that range of it is there (see `landing`), or ``INDEX anew``: it is begun
anew, and the lines before say nothing of it.  A line is appended only after the data it speaks of is durable, and a
torn line says less, never more; so whatever interrupted the run, what the journal says is true.  It is made at the
first checkpoint: runs that write little, short ones and those that share blocks, leave none.  Kept beside the first
output; the lock of that output's part file is the lock of the journal.
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
from gguftool.storage.execute.part import CREATE, REOPEN, PartFile, remove_left_over, remove_quietly
from gguftool.storage.execute.streaming import part_of
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.sidecars import RESUME, helper_path
from gguftool.storage.sources.source import ChangedError
from gguftool.storage.system.fileio import close_quietly, read_fully, sync_file, sync_folders

_VERSION = "gguftool resume 1"
_ANEW = "anew"
_MAX_JOURNAL = 256 << 20  # bytes; a run of 2 TB over 65,535 files writes some 10 million
_PROBE = 64 << 10  # bytes below a watermark or a range's end, compared with their source before they are trusted


def resume_path(plan: Plan) -> Path:
    """Return where the resume journal of `plan` lies."""
    return helper_path(plan.outputs[0].path, RESUME)


@record
class Done:
    """What an interrupted run left: up to where outputs, by index, are complete, or which (start, end) they have."""

    ends: Mapping[int, int]
    ranges: Mapping[int, Sequence[tuple[int, int]]]


class ResumeJournal:
    """Appends watermarks, `step` written bytes apart.

    `sync_data` makes all part files durable at once, where there are many; without it each is, before it is noted.
    """

    def __init__(self, plan: Plan, done: Done, *, step: int, sync_data: Callable[[], None] | None) -> None:
        self.plan = plan
        self.done = done
        self.step = step
        self.sync_data = sync_data
        self._fd: int | None = None
        self._pending: dict[int, int] = {}
        self._pending_bytes = 0

    @property
    def is_kept(self) -> bool:
        """Whether there is something that a later run can go on from."""
        return self._fd is not None

    def gather(self, ends: Mapping[int, int], written: int) -> bool:
        """Take up to where outputs, by index, are complete; return whether `step` written bytes have gathered.

        Then `checkpoint` is due, when these outputs are durable.
        """
        self._pending.update(ends)
        self._pending_bytes += written
        return self._pending_bytes >= self.step

    def checkpoint(self) -> None:
        """Record what has gathered, which is durable, or made so by `sync_data`."""
        if self.sync_data is not None:
            self.sync_data()
        text = "".join(f"{number} {offset}\n" for number, offset in self._pending.items())
        self._append(text.encode())
        self._pending.clear()
        self._pending_bytes = 0

    def record_ranges(self, index: int, ranges: Sequence[tuple[int, int]]) -> None:
        """Record at once that these (start, end) of output `index`, durable by now, are there."""
        if ranges:
            self._append("".join(f"{index} {start} {end}\n" for start, end in ranges).encode())

    def forget(self, index: int) -> None:
        """Record, before output `index` is written anew, that nothing of it is there."""
        if index in self.done.ends or index in self.done.ranges:
            self._append(f"{index} {_ANEW}\n".encode())

    def _append(self, data: bytes) -> None:
        new = self._fd is None
        if self._fd is None:
            data = _first_line(self.plan) + data
            self._fd = os.open(resume_path(self.plan), CREATE | os.O_APPEND, 0o666)
        while data:
            data = data[os.write(self._fd, data) :]
        sync_file(self._fd)
        if new:
            sync_folders([resume_path(self.plan).parent])

    def reopen(self) -> None:
        """Open the journal that is there, to append to it."""
        self._fd = os.open(resume_path(self.plan), REOPEN | os.O_APPEND)
        os.write(self._fd, b"\n")  # ends a torn line

    def close(self) -> None:
        """Close the journal and leave it where it is."""
        if self._fd is not None:
            close_quietly(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove the journal: the outputs are complete, or are given up. One that stays without parts says nothing."""
        if self._fd is not None:
            remove_quietly(resume_path(self.plan))
            self.close()


def _first_line(plan: Plan) -> bytes:
    import json  # few runs come here, or read what one left

    said = {
        "version": _VERSION,
        "fingerprint": plan.fingerprint,
        "sources": [[source.name, source.identity] for source in plan.inputs],
        "outputs": [[output.path.name, output.size] for output in plan.outputs],
    }
    return json.dumps(said).encode() + b"\n"


def read_resume(plan: Plan) -> Done:
    """Return how far an interrupted run of this very plan came; nothing without a journal.

    Raises `ExecuteError` that says what changed, where the journal is of another plan. Call with the lock held.
    """
    nothing = Done(ends={}, ranges={})
    try:
        with open(resume_path(plan), "rb") as file:
            first, *lines = file.read(_MAX_JOURNAL).split(b"\n")
    except FileNotFoundError:
        return nothing
    said = _parse_first(first)
    if said is None:
        return nothing  # torn before its first line was durable: nothing in it can be true
    if said["fingerprint"] != plan.fingerprint:
        raise ExecuteError(
            f"an interrupted run left part files of another plan here: {_difference(said, plan)}; "
            "--no-resume removes them and starts anew",
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
    """Yield the output that each line is about, and its numbers; none where it is begun anew. Torn lines fall away."""
    for line in lines:
        first, *words = line.split(b" ")
        with contextlib.suppress(ValueError):
            numbers = () if words == [_ANEW.encode()] else tuple(int(word) for word in words)
            index = int(first)
            if 0 <= index < len(plan.outputs) and words and all(number >= 0 for number in numbers):
                yield index, numbers


def _parse_first(line: bytes) -> dict[str, Any] | None:
    import json

    try:
        said = json.loads(line)
        names = [name for name, _ in said["outputs"]]
        identities = [identity for _, identity in said["sources"]]
        good = said["version"] == _VERSION and isinstance(said["fingerprint"], str)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not good or not all(isinstance(text, str) for text in (*names, *identities)):
        return None
    return said  # type: ignore[no-any-return]


def _difference(said: dict[str, Any], plan: Plan) -> str:
    now = {source.name: source.identity for source in plan.inputs}
    before = {str(name): identity for name, identity in said["sources"]}
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        return f"changed since: {listed(changed)}"
    if before.keys() != now.keys():
        return f"its sources were {listed(list(before))}"
    outputs = [[output.path.name, output.size] for output in plan.outputs]
    if said["outputs"] != outputs:
        return f"it was to write {len(said['outputs']):,} file(s) of other names or sizes"
    return "its options were others"


def remove_resume(plan: Plan) -> None:
    """Remove a journal and the part files it names, whoever's plan it was. Call with the lock held."""
    path = resume_path(plan)
    try:
        with open(path, "rb") as file:
            said = _parse_first(file.readline(_MAX_JOURNAL))
    except FileNotFoundError:
        return
    own = plan.outputs[0].path
    for name, _ in said["outputs"] if said else ():
        target = own.parent / Path(name).name
        if target != own:
            remove_left_over(target)
    remove_quietly(path)


def agrees(part: PartFile, output: OutputFile, mark: int, floor: int = 0) -> bool:
    """Whether the last bytes of `part` from `floor` on and below `mark` are those that the plan wants there."""
    start = max(floor, mark - _PROBE)
    wanted = [(len(output.head[start:mark]), start, output.head[start:mark])] if start < len(output.head) else []
    for copy in output.copies:
        begin, end = max(start, copy.offset), min(mark, copy.offset + copy.extent.length)
        if begin < end:
            place = copy.extent.offset + begin - copy.offset
            wanted.append((end - begin, begin, copy.extent.source.read_at(place, end - begin)))
    return all(read_fully(part.fd, length, offset) == data for length, offset, data in wanted)


def worth_keeping(error: BaseException, sources: Sequence[Any]) -> bool:
    """Whether the part files stay for a later run: after a signal, or where a source failed without having changed."""
    if not isinstance(error, Exception):
        return True
    if not isinstance(error, SourceError):
        return False
    if isinstance(error, ChangedError):
        return False
    try:
        for source in sources:
            if source.file_id is not None:  # asking a server that is gone takes long, and a later run asks anyway
                source.check_unchanged()
    except SourceError:
        return False
    return True


# --- ranges of outputs that are streamed -----------------------------------------------------------------------------


_LONGEST = 2.0  # seconds after which ranges are recorded, however few bytes they have

Ranges = Sequence[tuple[int, int]]


class CompletedRanges:
    """Tracks which ranges of one output are written, and records them in the resume journal."""

    def __init__(self, journal: ResumeJournal, index: int, part: PartFile, sizes: Sizes) -> None:
        self._journal = journal
        self._index = index
        self._part = part
        self._step = min(sizes.range_step, journal.step)
        self._pause = sizes.range_pause
        self._lock = threading.Lock()
        self._starts: dict[int, int] = {}  # end -> start of what landed since the last note
        self._nbytes = 0
        self._recorded = time.monotonic()

    def on_written(self, offset: int, nbytes: int) -> None:
        """Bytes were written to the part file."""
        with self._lock:
            self._starts[offset + nbytes] = self._starts.pop(offset, offset)
            self._nbytes += nbytes

    def tick(self) -> None:
        """Record what was written, if it is time to."""
        if not self._nbytes:
            return
        waited = time.monotonic() - self._recorded
        if waited >= (self._pause if self._nbytes >= self._step else _LONGEST):
            self.record()

    def record(self, *, durable: bool = False) -> None:
        """Make durable what was written, then record it; with `durable` it is that already."""
        with self._lock:
            starts, self._starts, self._nbytes = self._starts, {}, 0
        if starts and not durable:
            sync_file(self._part.fd)
        self._journal.record_ranges(self._index, [(start, end) for end, start in starts.items()])
        self._recorded = time.monotonic()

    def record_quietly(self) -> None:
        """Record what was written before the run ends in an error; if that fails, a later run fetches it again."""
        with contextlib.suppress(OSError):
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
