"""Change a file in place, and recover its old bytes.

Change: write the undo journal, overwrite the changed ranges of the file, fsync, verify, unlink the journal. If that
fails, the old bytes are written back. If the process is killed, the journal stays: readers refuse the file, and
`gguftool edit FILE --recover` writes the old bytes back.

Undo journal: a file next to the target (see `sidecars`). It holds a magic line, the length of a JSON text (64 bits,
little endian), this text (the target's name and size, the changed ranges), then the old bytes of the ranges, one after
another. It is complete and durable before the target changes, and locked while it changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, FormatError, SourceError, command_line
from gguftool.record import record
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import check_sources, copy_all, copy_extent
from gguftool.storage.execute.fill import digests_of, verify_checksum
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import busy
from gguftool.storage.execute.preflight import check_change
from gguftool.storage.plan import Copy, OutputFile, Plan, Receipt
from gguftool.storage.sources.local import FileStamp, LocalSource, open_local_even_unfinished
from gguftool.storage.sources.sidecars import MODE, PART, helper_path, undo_path
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.fileio import close_quietly, sync_file, sync_folders, write_fully
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import open_file, unlink
from gguftool.storage.system.ownership import open_helper, require_owners


def change_in_place(plan: Plan, options: Options, write: Callable[[Plan, Options], object]) -> Receipt:
    """Write the undo journal, then the changes, then remove the journal; always durably, whatever `options` say.

    `write` carries out a plan that makes a new file. The journal is locked while the file changes, so that no other
    process mistakes a live run for an interrupted one.
    """
    (output,) = plan.outputs
    check_change(output)
    require_owners(
        helper_path(output.path, MODE), "a change in place cannot be undone safely; write a new file with -o"
    )
    journal = journal_file(output)
    write(Plan(outputs=(journal,), inputs=plan.inputs), Options(resume=False, private=True, progress=options.progress))
    with journal_lock(output.path) as lock_fd:
        try:
            _write_changes(output, options)
            verify_checksum(output.path, output)
            check_sources(tuple(source for source in plan.inputs if source != output.base))
            digests = digests_of(plan, options)
            options.publishing()
            unlink(journal.path)
        except BaseException:
            _undo(output.path, lock_fd)
            raise
    _sync_unlink(output.path)
    changed = sum(length for _, length in output.changed_ranges)
    return Receipt(paths=(output.path,), nbytes=changed, digests=digests)


def _write_changes(output: OutputFile, options: Options) -> None:
    with _open_to_change(output.path) as fd:
        if output.head:
            write_fully(fd, output.head, 0)
        copy_all(output.copies, fd, CopyState.of(options))


@contextlib.contextmanager
def _open_to_change(path: Path) -> Iterator[int]:
    """Open a file for writing in place, never through a symbolic link, and make it durable at the end."""
    fd = open_file(path, os.O_RDWR, follow=False)
    try:
        yield fd
        sync_file(fd)
    finally:
        close_quietly(fd)


def _sync_unlink(target: Path) -> None:
    try:
        sync_folders([target.parent])
    except OSError as error:
        raise ExecuteError(
            f"is complete, and its undo journal is removed, but not durably: {error.strerror}; after a power failure "
            f"the journal may be back, and {command_line('edit', str(target), '--recover')} restores the old file",
            source=str(target),
        ) from error


def recover(target: Path) -> Journal:
    """Restore the old bytes of `target` from its undo journal, and remove the journal.

    Raises `SourceError` if there is no journal, `FormatError` if it is damaged, `ExecuteError` if a live run holds it
    or the file cannot be written; then the journal stays, and recovery can be tried again.
    """
    with journal_lock(target) as fd:
        return _undo(target, fd)


def _undo(target: Path, journal_fd: int) -> Journal:
    journal = read_journal(target, journal_fd)
    try:
        with _open_to_change(target) as fd:
            for (offset, length), place in zip(journal.ranges, journal.old, strict=True):
                old = Extent(source=journal.source, offset=place, length=length)
                copy_extent(old, fd, offset)
        unlink(journal.source.path)
        sync_folders([target.parent])
    except OSError as error:
        raise ExecuteError(
            f"cannot get its old bytes back: {error.strerror}; they are safe in {journal.source.name}, and "
            f"{command_line('edit', str(target), '--recover')} tries again",
            source=str(target),
        ) from error
    return journal


# --- the undo journal ------------------------------------------------------------------------------------------------


_MAGIC = b"gguftool undo 1\n"
_MAX_HEAD = 16 << 20  # bytes; a range takes 40, and a model has at most thousands


@record
class Journal:
    """A journal read back: `ranges` (offset, length) of the file, and the offsets `old` of their bytes in it."""

    source: LocalSource
    target: Path
    size: int
    ranges: tuple[tuple[int, int], ...]
    old: tuple[int, ...]


def journal_file(output: OutputFile) -> OutputFile:
    """Make the journal for a change in place, as a file to write."""
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


def read_journal(target: Path, fd: int) -> Journal:
    """Read the journal of `target`, open as `fd`; raise `FormatError` if it is damaged or belongs to another file."""
    source = LocalSource(path=undo_path(target), file_stamp=FileStamp.of(os.fstat(fd)))
    start = len(_MAGIC) + 8
    first = source.read_at(0, min(start, source.size))
    length = struct.unpack("<Q", first[len(_MAGIC) :])[0] if len(first) == start else 0
    if not first.startswith(_MAGIC) or not 0 < length <= min(_MAX_HEAD, source.size - start):
        raise FormatError("is not an undo journal of gguftool", source=source.name)
    try:
        fields = json.loads(source.read_at(start, length))
        name, size = str(fields["target"]), int(fields["size"])
        ranges = tuple((int(offset), int(count)) for offset, count in fields["ranges"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise FormatError(f"is damaged: {error}", source=source.name) from None
    old = _old_offsets(start + length, ranges)
    inside = all(0 <= offset <= offset + count <= size for offset, count in ranges)
    # A change in place never alters the size, so a journal with another size belongs to another file.
    same_size = open_local_even_unfinished(target).size == size
    if name != target.name or not (ranges and inside and same_size) or old[-1] != source.size:
        raise FormatError(f"does not belong to {target.name}, or is damaged", source=source.name)
    return Journal(source=source, target=target, size=size, ranges=ranges, old=old[:-1])


def _old_offsets(start: int, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Offsets of each range's bytes in the journal, and the end of the last."""
    places = [start]
    for _, count in ranges:
        places.append(places[-1] + count)
    return tuple(places)


@contextlib.contextmanager
def journal_lock(target: Path) -> Iterator[int]:
    """Open and lock the journal of `target`: only one process at a time changes the file or restores its old bytes.

    Raises `SourceError` if there is no journal, `ExecuteError` if another run holds it.
    """
    path = undo_path(target)
    try:
        fd = open_helper(path, twin=helper_path(path, PART))
    except FileNotFoundError:
        raise SourceError("has no unfinished change in place", source=str(target)) from None
    try:
        if not lock(fd) or not os.path.lexists(path):
            raise busy(target)
        yield fd
    finally:
        close_quietly(fd)
