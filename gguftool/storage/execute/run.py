"""One run of a plan that makes new files: part files, bytes, resume journal, digests, publishing.

A `Run` holds the state that all of these share, so that no function passes it on. Parts are written in publishing
order. The first output's part is created first and stays open and locked to the end: its lock keeps out a second run on
the same outputs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from gguftool.errors import ExecuteError
from gguftool.record import record, replace
from gguftool.storage.execute.copy_state import CopyState, ProgressListener
from gguftool.storage.execute.fill import NullDigests, check_sizes, digests_for, sync_parts, write_outputs
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import PartFile, create_part, remove_left_over, remove_quietly, take_over
from gguftool.storage.execute.publishing.one_file import publish_one
from gguftool.storage.execute.publishing.sets import publish_set
from gguftool.storage.execute.resume import (
    CompletedRanges,
    ResumeJournal,
    agrees,
    believable,
    is_streamed,
    read_resume,
    remove_resume,
    resume_path,
    without,
    worth_keeping,
)
from gguftool.storage.plan import Digests, OutputFile, Plan, bytes_below, chunks
from gguftool.storage.system.fileio import WriteBack, bulk_sync, set_size
from gguftool.storage.system.reflink import KernelCopies

# With more outputs than this on one file system, one checked syncfs is faster than an fsync for each.
_SYNCFS_FROM = 8

# Outputs of up to `_SMALL` bytes are written in batches of up to `_BATCH`: a single one has too few bytes for several
# threads, and threads that write to one file wait for each other.
_SMALL = 8 << 20
_BATCH = 8


class Run:
    """A plan in execution. Use it as a context manager, which closes all files at the end.

    `is_begun`: the part files and the journal belong to this run, to keep or remove.
    """

    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan = plan
        self.options = options
        self.is_begun: bool = False
        self._parts: dict[int, PartFile] = {}
        self._cleanup = contextlib.ExitStack()
        self._write_back = WriteBack(options.sizes.write_back)
        self._kernel = KernelCopies()
        self._first_is_old = False
        self._begun_journal: ResumeJournal | None = None

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as cleanup:
            part, self._first_is_old = self._open_part(0)
            cleanup.callback(part.close)
            self._digests: NullDigests = digests_for(self.plan, self.options)
            cleanup.callback(self._digests.close)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    # --- the order of events ---

    def begin(self) -> None:
        """Read the journal that an interrupted run left; raise `ExecuteError` if it belongs to another plan."""
        self.is_begun = not self._first_is_old  # until the journal is read, this run must not remove an old part
        if not self.options.resume:
            remove_resume(self.plan)
        done = read_resume(self.plan)
        in_bulk = self.options.sync and len(self.plan.outputs) > _SYNCFS_FROM
        folders = [output.path.parent for output in self.plan.outputs]
        journal = ResumeJournal(
            self.plan,
            done,
            step=self.options.checkpoint if self.options.sync else sys.maxsize,
            sync_data=bulk_sync(folders, self._cleanup) if in_bulk else None,
            guard=self._parts[0].require_place,
        )
        self._cleanup.callback(journal.close)
        if done.ends or done.ranges:
            journal.reopen()
        else:
            remove_quietly(resume_path(self.plan))
        self._begun_journal = journal
        self.is_begun = True
        if not self._first_is_old:
            journal.forget(0)
            set_size(self._parts[0].fd, self.plan.outputs[0].size)

    def write(self) -> None:
        """Write the missing bytes of every output into its part file, durably with `Options.sync`."""
        done = sum(self._write_batch(batch) for batch in self._batches())
        if self._journal.sync_data is not None:
            self._journal.sync_data()
        if done:
            self.options.note(f"resumed after {done:,} bytes that an interrupted run had written")

    def finish_digests(self) -> Digests | None:
        """Finish the requested digests; None if there are none."""
        return self._digests.finish()

    def publish(self) -> None:
        """Give the parts their final names.

        For one output the resume journal is removed first: otherwise a later run would trust it. For several,
        `publish_set` removes it.
        """
        self.options.publishing()
        plan, sync = self.plan, self.options.sync
        replacing = self.options.force or any(output.replaces is not None for output in plan.outputs)
        if len(plan.outputs) == 1:
            self.parts[0].require()
            self._journal.remove()
            publish_one(self.parts[0], replace=replacing, sync=sync, private=self.options.private)
        else:
            publish_set(plan, self.parts, resume_path(plan), replace=replacing, sync=sync)
            self._journal.close()

    def abandon(self, error: BaseException) -> None:
        """After `error`: keep part files and journal if a later run can use them, otherwise remove them."""
        journal = self._begun_journal
        if journal is not None and journal.is_kept and worth_keeping(error, self.plan.inputs):
            self.options.note(
                "finished work is kept: run the same command again to resume, or with --no-resume to start over"
            )
            return
        if not isinstance(error, Exception):  # a signal
            self.options.note(f"nothing to resume: {self._why_not_kept()}; the same command starts over")
        self._remove_parts()
        if journal is not None:
            journal.remove()

    def _why_not_kept(self) -> str:
        if not self.options.sync:
            return "without waiting for the disk, nobody knows what is on it"
        return f"progress is saved after {self.options.checkpoint >> 20:,} MiB, and less was written"

    @property
    def _journal(self) -> ResumeJournal:
        if self._begun_journal is None:
            raise RuntimeError("begin() comes first")
        return self._begun_journal

    # --- part files ---

    @property
    def parts(self) -> list[PartFile]:
        """The part files in publishing order: the first output's last."""
        return [self._parts[index] for index in self.plan.publishing_order]

    def _open_part(self, index: int) -> tuple[PartFile, bool]:
        """Open or create the part file of output `index`; the flag is true if an earlier run left it.

        If the journal knows an earlier part, it records first that the new one is empty: otherwise a kill in between
        would leave zeros that the journal calls complete. The first part's lock is needed to read the journal: until
        then the first part has no size.
        """
        output = self.plan.outputs[index]
        part = take_over(output.path, output.size)
        is_old = part is not None
        if part is None:
            if index:
                self._journal.forget(index)
            part = create_part(output.path, output.size, is_sized=index > 0)
        self._parts[index] = part
        return part, is_old

    def _close_part(self, index: int) -> None:
        self._parts[index] = self._parts[index].closed()

    def _remove_parts(self) -> None:
        """Remove unpublished parts, and parts that an earlier run left, as far as possible."""
        for part in self._parts.values():
            part.remove_quietly()
        for index, output in enumerate(self.plan.outputs):
            if index not in self._parts:
                with contextlib.suppress(OSError, ExecuteError):
                    remove_left_over(output.path)

    # --- bytes ---

    @property
    def _step(self) -> int:
        """Bytes of one output to write before the next checkpoint or digest update."""
        return min(self._journal.step, self._digests.step)

    def _batches(self) -> Iterator[tuple[int, ...]]:
        """Yield batches of output indices in publishing order: several small ones at once, with one thread for each."""
        batch: tuple[int, ...] = ()
        for index in self.plan.publishing_order:
            output = self.plan.outputs[index]
            if index and output.size <= min(_SMALL, self._step) and not is_streamed(output):
                batch = (*batch, index)
                if len(batch) == _BATCH:
                    yield batch
                    batch = ()
                continue
            if batch:
                yield batch
                batch = ()
            yield (index,)

    def _write_batch(self, batch: Sequence[int]) -> int:
        """Write the outputs of `batch`; return the number of bytes that an earlier run had written."""
        with contextlib.ExitStack() as cleanup:
            opened = []
            for index in batch:
                part, is_old = self._open_part(index) if index else (self._parts[0], self._first_is_old)
                if index:
                    cleanup.callback(self._close_part, index)
                opened.append(_Target(index=index, part=part, output=self.plan.outputs[index], is_old=is_old))
            if is_streamed(opened[0].output):
                return self._write_streamed(opened[0])
            return self._write_in_chunks(opened)

    def _write_in_chunks(self, targets: Sequence[_Target]) -> int:
        """Write one output, or several small ones, each from its watermark on; return the same as `_write_batch`."""
        starts = [self._begin_chunks(target) for target in targets]
        skipped = sum(bytes_below(target.output, start) for target, start in zip(targets, starts, strict=True))
        self.options.progress(skipped)
        steps = [_chunks(target, start, self._step) for target, start in zip(targets, starts, strict=True)]
        for ready in zip_longest(*steps):  # a small output is one chunk
            self._write_chunks([chunk for chunk in ready if chunk is not None])
        return skipped

    def _begin_chunks(self, target: _Target) -> int:
        """Find the offset at which to start `target`: an earlier run's watermark, if its last bytes are as planned."""
        start = 0
        if target.is_old:
            mark = self._journal.done.ends.get(target.index, 0)
            start = mark if mark and agrees(target.part, target.output, mark) else 0
        if not start:
            self._journal.forget(target.index)
        if target.is_old:
            set_size(target.part.fd, start)  # bytes above the watermark may be anything
            set_size(target.part.fd, target.output.size)
        self._digests.update(target.index, target.part.path, start)
        return start

    def _write_chunks(self, ready: Sequence[_Chunk]) -> None:
        parts = [(chunk.target.part, chunk.output) for chunk in ready]
        written = write_outputs(parts, self._copy_state())
        check_sizes(parts)
        due = self._journal.gather({chunk.target.index: chunk.end for chunk in ready}, written)
        if self.options.sync and self._journal.sync_data is None:
            done = (chunk.end == chunk.output.size for chunk in ready)
            sync_parts([part for part, is_done in zip(parts, done, strict=True) if due or is_done])
        if due:
            self._journal.checkpoint()
        for chunk in ready:
            self._digests.update(chunk.target.index, chunk.target.part.path, chunk.end)

    def _write_streamed(self, target: _Target) -> int:
        """Write the missing bytes of `target`, record ranges as they are written; return the same as `_write_batch`."""
        index, part, output = target.index, target.part, target.output
        there = believable(part, output, self._journal.done.ranges.get(index, ())) if target.is_old else ()
        if not there:
            self._journal.forget(index)
        if target.is_old and not there:
            set_size(part.fd, 0)  # bytes of another plan would stay in the padding
            set_size(part.fd, output.size)
        rest = replace(output, copies=without(output.copies, there))
        skipped = sum(copy.extent.length for copy in output.copies) - sum(copy.extent.length for copy in rest.copies)
        self.options.progress(skipped)
        ranges = CompletedRanges(self._journal, index, part, self.options.sizes) if self.options.sync else None
        try:
            self._fill(part, rest, ranges, fresh=not there)
        except BaseException as error:
            if ranges is not None and worth_keeping(error, self.plan.inputs):
                ranges.record_quietly()
            raise
        if ranges is not None:
            ranges.record(durable=self._journal.sync_data is None)
        self._digests.update(index, part.path, output.size)
        return skipped

    def _fill(self, part: PartFile, output: OutputFile, ranges: CompletedRanges | None, *, fresh: bool) -> None:
        write_outputs([(part, output)], self._copy_state(ranges), fresh=fresh)
        if self.options.sync and self._journal.sync_data is None:
            sync_parts([(part, output)])
        check_sizes([(part, output)])

    def _copy_state(self, listener: ProgressListener | None = None) -> CopyState:
        return CopyState.of(self.options, self._write_back, self._kernel, listener)


@record
class _Target:
    """Output `index` and its part file; `is_old`: an earlier run left the part file."""

    index: int
    part: PartFile
    output: OutputFile
    is_old: bool


@record
class _Chunk:
    """A piece of an output; once it is written, the part file is complete below `end`."""

    target: _Target
    output: OutputFile
    end: int


def _chunks(target: _Target, start: int, size: int) -> Iterator[_Chunk]:
    for output, end in chunks(target.output, start, size):
        yield _Chunk(target=target, output=output, end=end)
