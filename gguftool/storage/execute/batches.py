"""Bytes into part files: what is missing of each output, and small outputs several at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from gguftool.errors import ExecuteError
from gguftool.record import record, replace
from gguftool.storage.execute.fill import Options, fill, sync_parts
from gguftool.storage.execute.following import Follower
from gguftool.storage.execute.landing import Landing, believable, is_streamed, without
from gguftool.storage.execute.part import PartFile, create_part, remove_left_over, remove_quietly, take_over
from gguftool.storage.execute.pieces import bytes_below, pieces
from gguftool.storage.execute.resume import ResumeLog, agrees, worth_keeping
from gguftool.storage.plan import OutputFile, Plan

# Outputs up to so many bytes are written so many at once: one alone is too little for several threads, and threads
# that write to one file wait for each other.
_SMALL = 8 << 20
_AT_ONCE = 8


class Parts:
    """The part files that this run has made or taken over and not yet published; those are its own to remove."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts: dict[int, PartFile] = {}

    def open(self, index: int) -> tuple[PartFile, bool]:
        """Open the part file of output `index`, and say whether it is one that an earlier run left."""
        output = self._plan.outputs[index]
        old = take_over(output.path, output.size)
        self._parts[index] = part = old or create_part(output.path, output.size)
        return part, old is not None

    def in_order(self) -> list[PartFile]:
        """Return the part files in the order of publishing: the first output's last."""
        return [self._parts[index] for index in self._plan.publishing_order]

    def remove(self) -> None:
        """Remove those without a final name, and what an earlier run left; one that cannot be removed stays."""
        for part in self._parts.values():
            remove_quietly(part.path)
        for index, output in enumerate(self._plan.outputs):
            if index not in self._parts:
                with contextlib.suppress(OSError, ExecuteError):
                    remove_left_over(output.path)


def write_parts(parts: Parts, options: Options, log: ResumeLog, follower: Follower, *, found: bool) -> None:
    """Write what is missing of every output into its part file, durable where asked."""
    done = 0
    for batch in _batches(log.plan, min(log.step, follower.piece)):
        with contextlib.ExitStack() as cleanup:
            opened = []
            for index in batch:
                part, is_old = (parts.in_order()[-1], found) if index == 0 else parts.open(index)
                if index:
                    cleanup.callback(part.close)
                opened.append((index, part, is_old))
            done += _write_batch(opened, options, log, follower)
    if log.sync_data is not None:
        log.sync_data()
    if done:
        options.note(f"went on from {done:,} bytes that an interrupted run had written")


def _batches(plan: Plan, step: int) -> Iterator[tuple[int, ...]]:
    """Yield the outputs in their order: small ones several at a time, so that each has a thread of its own."""
    batch: tuple[int, ...] = ()
    for index in plan.publishing_order:
        output = plan.outputs[index]
        if index and output.size <= min(_SMALL, step) and not is_streamed(output):
            batch = (*batch, index)
            if len(batch) == _AT_ONCE:
                yield batch
                batch = ()
            continue
        if batch:
            yield batch
            batch = ()
        yield (index,)


def _write_batch(
    opened: Sequence[tuple[int, PartFile, bool]], options: Options, log: ResumeLog, follower: Follower
) -> int:
    """Write outputs, of which several are small, each from its watermark on; return the bytes of an earlier run.

    `opened` are index and part file of each, and whether an earlier run left it.
    """
    index, part, is_old = opened[0]
    if is_streamed(log.plan.outputs[index]):
        return _write_streamed(part, index, options, log, follower, is_old=is_old)
    skipped = 0
    steps = []
    for index, part, is_old in opened:
        output = log.plan.outputs[index]
        start = _begin_part(part, output, log.done.ends.get(index, 0)) if is_old else 0
        if not start:
            log.forget(index)
        skipped += bytes_below(output, start)
        follower.reached(index, part.path, start)
        steps.append(_steps(index, part, output, start, min(log.step, follower.piece)))
    options.progress(skipped)
    for ready in zip_longest(*steps):  # a small output is one step
        now = [step for step in ready if step is not None]
        written = fill([(step.part, step.piece) for step in now], options, sync=False)
        due = log.gather({step.index: step.end for step in now}, written)
        if options.sync and log.sync_data is None:
            sync_parts([(step.part, step.piece) for step in now if due or step.end == step.piece.size])
        if due:
            log.checkpoint()
        for step in now:
            follower.reached(step.index, step.part.path, step.end)
    return skipped


@record
class _Step:
    """A piece of output `index`: with it the part file is complete up to `end`."""

    index: int
    part: PartFile
    piece: OutputFile
    end: int


def _steps(index: int, part: PartFile, output: OutputFile, start: int, size: int) -> Iterator[_Step]:
    for piece, end in pieces(output, start, size):
        yield _Step(index=index, part=part, piece=piece, end=end)


def _begin_part(part: PartFile, output: OutputFile, mark: int) -> int:
    """Return the offset from which a part file is written that an earlier run left, by its watermark."""
    start = mark if mark and agrees(part, output, mark) else 0
    os.ftruncate(part.fd, start)  # what is above the watermark may be anything
    os.ftruncate(part.fd, output.size)
    return start


def _write_streamed(
    part: PartFile, index: int, options: Options, log: ResumeLog, follower: Follower, *, is_old: bool
) -> int:
    """Write what output `index` lacks, noting ranges as they land; return how many bytes an earlier run had copied."""
    output = log.plan.outputs[index]
    there = believable(part, output, log.done.ranges.get(index, ())) if is_old else ()
    if not there:
        log.forget(index)
    if is_old and not there:
        os.ftruncate(part.fd, 0)  # what another plan left would show in the padding
        os.ftruncate(part.fd, output.size)
    rest = replace(output, copies=without(output.copies, there))
    skipped = sum(copy.extent.length for copy in output.copies) - sum(copy.extent.length for copy in rest.copies)
    options.progress(skipped)
    landing = Landing(log, index, part) if options.sync else None
    try:
        fill([(part, rest)], options, sync=log.sync_data is None, watch=landing, fresh=not there)
    except BaseException as error:
        if landing is not None and worth_keeping(error, log.plan.inputs):
            landing.note_quietly()
        raise
    if landing is not None:
        landing.note(durable=log.sync_data is None)
    follower.reached(index, part.path, output.size)
    return skipped
