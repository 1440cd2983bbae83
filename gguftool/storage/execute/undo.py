"""The undo journal of a change in place: the old bytes of every range that will be overwritten.

The journal lies beside the file, complete and durable before the first byte of the file changes, and goes when the
change is durable.  So a crash at any moment leaves the old file, the new file, or a journal that gives the old one
back; a file with a journal is refused by readers until that is done.

The journal is itself an output file (a head and copies of extents), so the executor writes it like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, FormatError, SourceError
from gguftool.record import record
from gguftool.storage.execute.part import REOPEN, busy, lock
from gguftool.storage.plan import Copy, OutputFile
from gguftool.storage.sources.local import LocalSource, open_local_even_unfinished, undo_path
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.durable import close_quietly

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
