"""Changing a file where it is, and giving it its old bytes back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.execute.copying import check_sources, copy_all, copy_extent
from gguftool.storage.execute.fill import Options
from gguftool.storage.execute.following import digests_of
from gguftool.storage.execute.preflight import check_change
from gguftool.storage.execute.promised import refuse_other_bytes
from gguftool.storage.execute.receipt import Receipt
from gguftool.storage.execute.undo import Journal, journal_file, journal_lock, read_journal
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.durable import close_quietly, sync_file, sync_folders
from gguftool.storage.system.fileio import write_fully


def change_in_place(plan: Plan, options: Options, write: Callable[[Plan, Options], object]) -> Receipt:
    """Write the undo journal, then the changes, then remove the journal; always durable, whatever `options` say.

    `write` carries out a plan that makes a new file. The journal is locked while the file changes, so that nobody takes
    a living run for an interrupted one.
    """
    (output,) = plan.outputs
    check_change(output)
    journal = journal_file(output)
    write(Plan(outputs=(journal,), inputs=plan.inputs), Options(resume=False, progress=options.progress))
    with journal_lock(output.path):
        try:
            _patch(output, options)
            refuse_other_bytes(output.path, output)
            check_sources(tuple(source for source in plan.inputs if source != output.base))
            digests = digests_of(plan, options)
            options.publishing()
            os.unlink(journal.path)
        except BaseException:
            _undo(output.path)
            raise
    _forget_journal(output.path)
    changed = sum(length for _, length in output.changed_ranges)
    return Receipt(paths=(output.path,), nbytes=changed, digests=digests)


def _patch(output: OutputFile, options: Options) -> None:
    with _changing(output.path) as fd:
        if output.head:
            write_fully(fd, output.head, 0)
        copy_all(output.copies, fd, jobs=options.jobs, progress=options.progress)


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[int]:
    """Lend a file to be written in place, never through a symbolic link, and make it durable at the end."""
    fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        yield fd
        sync_file(fd)
    finally:
        close_quietly(fd)


def _forget_journal(target: Path) -> None:
    try:
        sync_folders([target.parent])
    except OSError as error:
        raise ExecuteError(
            f"is as wanted, and its undo journal is gone, but not durably: {error.strerror}; should the power fail, "
            "the journal may be back, and 'gguftool edit FILE --recover' gives the old file back",
            source=str(target),
        ) from error


def recover(target: Path) -> Journal:
    """Give `target` the bytes back that its undo journal kept, and remove the journal.

    Raises `SourceError` where there is no journal, `FormatError` where it is damaged, `ExecuteError` where a living run
    is at it, or the file cannot be written; then the journal stays, and it can be tried again.
    """
    with journal_lock(target):
        return _undo(target)


def _undo(target: Path) -> Journal:
    journal = read_journal(target)
    try:
        with _changing(target) as fd:
            for (offset, length), place in zip(journal.ranges, journal.old, strict=True):
                old = Extent(source=journal.source, offset=place, length=length)
                copy_extent(old, fd, offset, lambda nbytes: None)
        os.unlink(journal.source.path)
        sync_folders([target.parent])
    except OSError as error:
        raise ExecuteError(
            f"cannot be given back its old bytes: {error.strerror}; they are safe in {journal.source.name}, and "
            "'gguftool edit FILE --recover' tries again",
            source=str(target),
        ) from error
    return journal
