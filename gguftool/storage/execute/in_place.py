"""Changing a file where it is, and giving it its old bytes back."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, FormatError, SourceError
from gguftool.record import record
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import check_sources, copy_all, copy_extent
from gguftool.storage.execute.fill import verify_checksum
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.output_digests import digests_of
from gguftool.storage.execute.part import REOPEN, busy, lock
from gguftool.storage.execute.preflight import check_change
from gguftool.storage.plan import Copy, OutputFile, Plan, Receipt
from gguftool.storage.sources.local import LocalSource, open_local_even_unfinished
from gguftool.storage.sources.sidecars import undo_path
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.fileio import close_quietly, sync_file, sync_folders, write_fully


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
            verify_checksum(output.path, output)
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
        copy_all(output.copies, fd, CopyState.of(options))


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
                copy_extent(old, fd, offset)
        os.unlink(journal.source.path)
        sync_folders([target.parent])
    except OSError as error:
        raise ExecuteError(
            f"cannot be given back its old bytes: {error.strerror}; they are safe in {journal.source.name}, and "
            "'gguftool edit FILE --recover' tries again",
            source=str(target),
        ) from error
    return journal


# --- the undo journal ------------------------------------------------------------------------------------------------


_MAGIC = b"gguftool undo 1\n"
_MAX_HEAD = 16 << 20  # bytes; a range takes 40, and a model has thousands at most


@record
class Journal:
    """A journal read back: `ranges` (offset, length) of the file, `old` where their old bytes are in the journal."""

    source: LocalSource
    target: Path
    size: int
    ranges: tuple[tuple[int, int], ...]
    old: tuple[int, ...]


def journal_file(output: OutputFile) -> OutputFile:
    """Return the journal for a change in place, as a file to write."""
    if output.base is None:
        raise ExecuteError("has no base to go back to", source=str(output.path))
    ranges = output.changed_ranges
    text = json.dumps({"target": output.path.name, "size": output.base.size, "ranges": ranges}).encode()
    head = _MAGIC + struct.pack("<Q", len(text)) + text
    copies, offset = [], len(head)
    for start, length in ranges:
        copies.append(Copy(extent=Extent(source=output.base, offset=start, length=length), offset=offset))
        offset += length
    return OutputFile(path=undo_path(output.path), head=head, copies=tuple(copies), size=offset)


def read_journal(target: Path) -> Journal:
    """Read the journal of `target`; raise `FormatError` where it is none or not of this file."""
    source = open_local_even_unfinished(undo_path(target))
    start = len(_MAGIC) + 8
    first = source.read_at(0, min(start, source.size))
    length = struct.unpack("<Q", first[len(_MAGIC) :])[0] if len(first) == start else 0
    if not first.startswith(_MAGIC) or not 0 < length <= min(_MAX_HEAD, source.size - start):
        raise FormatError("is not an undo journal of gguftool", source=source.name)
    try:
        said = json.loads(source.read_at(start, length))
        name, size = str(said["target"]), int(said["size"])
        ranges = tuple((int(offset), int(count)) for offset, count in said["ranges"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise FormatError(f"is damaged: {error}", source=source.name) from None
    old = _places(start + length, ranges)
    inside = all(0 <= offset <= offset + count <= size for offset, count in ranges)
    # A change in place never alters the size, so a journal that would is not ours.
    same_size = open_local_even_unfinished(target).size == size
    if name != target.name or not (ranges and inside and same_size) or old[-1] != source.size:
        raise FormatError(f"does not belong to {target.name}, or is damaged", source=source.name)
    return Journal(source=source, target=target, size=size, ranges=ranges, old=old[:-1])


def _places(start: int, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return where each range's bytes start in the journal, and where the last ends."""
    places = [start]
    for _, count in ranges:
        places.append(places[-1] + count)
    return tuple(places)


@contextlib.contextmanager
def journal_lock(target: Path) -> Iterator[None]:
    """Hold the journal of `target`: who changes the file, or gives it back its old bytes, has it alone.

    Raises `SourceError` where there is no journal, `ExecuteError` where another run holds it.
    """
    path = undo_path(target)
    try:
        fd = os.open(path, REOPEN)
    except FileNotFoundError:
        raise SourceError("there is no unfinished change in place of this file", source=str(target)) from None
    try:
        if not lock(fd) or not os.path.lexists(path):
            raise busy(target)
        yield
    finally:
        close_quietly(fd)
