"""The one executor: it carries out any plan, whoever made it.

Order of events, for each output file: part file, bytes, sources checked again, data made durable, published under its
final name, folder made durable.  Of several outputs all are complete and durable before the first is published, and
the first output (shard 1 of a set, from which engines start) is published last.  So: after exit 0 the named outputs
are complete; otherwise they do not exist, or are the old ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from gguftool.errors import ExecuteError
from gguftool.record import record, replace
from gguftool.storage.execute.copying import check_sources
from gguftool.storage.execute.fill import (
    Follower,
    Options,
    digests_of,
    fill,
    follower_of,
    refuse_other_bytes,
    sync_parts,
)
from gguftool.storage.execute.part import (
    PartFile,
    create_part,
    refuse_busy,
    refuse_only_copies,
    remove_left_over,
    remove_quietly,
    take_over,
)
from gguftool.storage.execute.preflight import check_space, check_targets, folders, said_plainly
from gguftool.storage.execute.publish import HalfwayError, finish_set, publish_one, publish_set
from gguftool.storage.execute.resume import (
    Landing,
    ResumeLog,
    agrees,
    believable,
    is_streamed,
    read_resume,
    remove_resume,
    resume_path,
    without,
    worth_keeping,
)
from gguftool.storage.plan import Digests, OutputFile, Plan, Receipt, bytes_below, pieces
from gguftool.storage.system.fileio import bulk_sync

__all__ = ["Options", "execute"]

# Above this number of outputs on one file system, one checked syncfs costs less than an fsync for each.
_SYNCFS_FROM = 8


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Write every output of `plan`.

    Raises `ExecuteError` where an output may not or cannot be written and `SourceError` where an input fails or
    changes; then no output exists under its final name that was not there before.
    """
    options = options or Options()
    receipt = Receipt(
        paths=tuple(output.path for output in plan.outputs), nbytes=sum(output.size for output in plan.outputs)
    )
    with said_plainly(plan):
        if plan.consume is not None:
            from gguftool.storage.execute.consume import write_consuming

            freed, digests = write_consuming(plan, plan.consume, options, _write_one)
            return replace(receipt, freed=freed, digests=digests)
        refuse_only_copies(output.path for output in plan.outputs)
        if _finished_before(plan, options):
            return replace(receipt, digests=digests_of(plan, options))
        check_targets(plan, force=options.force)
        with folders(plan, sync=options.sync):
            if plan.outputs[0].base is not None:  # needs room for its journal alone, which is a plan of its own
                from gguftool.storage.execute.in_place import change_in_place

                return change_in_place(plan, options, execute)
            check_space(plan)
            digests = _write_anew(plan, options)
    return replace(receipt, digests=digests)


def _write_one(output: OutputFile) -> None:
    execute(Plan(outputs=(output,), inputs=()), Options(resume=False))


def _finished_before(plan: Plan, options: Options) -> bool:
    """Finish what an interrupted run left half-published; return whether it was this very plan."""
    finished = finish_set(plan.gate_path)
    if finished is None:
        return False
    options.note(f"finished publishing the set of {plan.gate_path.name}, in which an earlier run was interrupted")
    if finished.fingerprint != plan.fingerprint:
        return False
    remove_quietly(resume_path(plan))
    return True


def _write_anew(plan: Plan, options: Options) -> Digests | None:
    """Write all parts, hash them where asked, publish them; on failure remove them, or keep them for a later run.

    The first output's part stays open and locked to the end: it is what keeps a second run on the same set away.
    """
    if options.resume:
        refuse_busy(plan.outputs[0].path)
        read_resume(plan)  # refuses what another plan left while nothing is touched
    with contextlib.ExitStack() as cleanup:
        parts = Parts(plan)
        first, found = parts.open(0)
        cleanup.callback(first.close)
        follower = follower_of(plan, options)
        cleanup.callback(follower.close)
        log: ResumeLog | None = None
        try:
            log = _begin_log(plan, options, cleanup)
            write_parts(parts, options, log, follower, found=found)
            for index, part in zip(plan.publishing_order, parts.in_order(), strict=True):
                refuse_other_bytes(part.path, plan.outputs[index])
            digests = follower.finish()
            check_sources(plan.inputs)
            _publish_all(plan, parts, log, options)
        except HalfwayError:
            raise
        except BaseException as error:
            if log is not None or not found:  # before the journal is read, what was there is not this run's to remove
                _give_up(plan, parts, log, error, options)
            raise
        return digests


def _give_up(plan: Plan, parts: Parts, log: ResumeLog | None, error: BaseException, options: Options) -> None:
    if log is not None and log.is_kept and worth_keeping(error, plan.inputs):
        options.note("what is done is kept: the same command goes on from there, --no-resume starts anew")
        return
    parts.remove()
    if log is not None:
        log.remove()


def _begin_log(plan: Plan, options: Options, cleanup: contextlib.ExitStack) -> ResumeLog:
    """Find out, with the first part's lock held, what an interrupted run left to go on from."""
    if not options.resume:
        remove_resume(plan)
    done = read_resume(plan)
    in_bulk = options.sync and len(plan.outputs) > _SYNCFS_FROM
    log = ResumeLog(
        plan,
        done,
        step=options.checkpoint if options.sync else sys.maxsize,
        sync_data=bulk_sync([output.path.parent for output in plan.outputs], cleanup) if in_bulk else None,
    )
    cleanup.callback(log.close)
    if done.ends or done.ranges:
        log.go_on()
    else:
        remove_quietly(resume_path(plan))
    return log


def _publish_all(plan: Plan, parts: Parts, log: ResumeLog, options: Options) -> None:
    """Give the finished parts their names; the resume journal goes first, or its run is over when it would be read."""
    options.publishing()
    replacing = options.force or any(output.replaces is not None for output in plan.outputs)
    if len(plan.outputs) == 1:
        log.remove()
        publish_one(parts.in_order()[0], replace=replacing, sync=options.sync)
    else:
        publish_set(plan, parts.in_order(), resume_path(plan), replace=replacing, sync=options.sync)
        log.close()


# --- batches -------------------------------------------------------------------------------------------------------


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
