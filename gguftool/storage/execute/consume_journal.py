"""The journal of a run that removes its sources: the format, its writer and its reader.

It holds the whole plan, then a record of what is safe. After the first removal, part files and journal together are the
only copy. So the journal holds all that another process needs to finish: heads, copies, sources with their identities,
and the command that was run, with a digest over the plan. It gets its name when it is complete and durable, before any
other file is created. After that, lines are only appended, and each is durable before its source is removed:

    copied STEP SHA256    all bytes of this source are in the part files, durable, and read back equal
    complete INODE...     all part files are complete, and are about to get their names

A torn line claims less, never more. Names of outputs are relative to the journal's folder, paths of sources absolute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, NoReturn

from gguftool.errors import ExecuteError, PlanError, SourceError
from gguftool.record import record
from gguftool.storage.plan import Consume, Copy, Mark, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import FileStamp, LocalSource
from gguftool.storage.sources.sidecars import PART, consume_path, helper_path
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.system.ownership import open_helper

_MAGIC = b"gguftool consume 1\n"
_DIGEST = 32  # bytes of sha256
_MAX_PLAN = 1 << 30  # bytes; a plan of 100,000 tensors takes some 10 million, and heads are in memory anyway
_MAX_JOURNAL = _MAX_PLAN + (64 << 20)  # a line takes 80 bytes
_COPIED = re.compile(rb"copied (\d{1,9}) ([0-9a-f]{64})")


@record
class FreedSource(Source):
    """A source that was removed because its bytes are in the part files: it has an identity, but no data."""

    path: Path
    file_stamp: FileStamp

    @property
    def name(self) -> str:
        """Path of the removed file."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Size of the removed file in bytes."""
        return self.file_stamp.size

    @property
    def identity(self) -> str:
        """The identity of the removed file."""
        return "local:" + ":".join(map(str, self.file_stamp))

    def read_at(self, offset: int, length: int) -> NoReturn:  # noqa: ARG002 - the interface of all sources
        """Raise `SourceError`: the file is gone."""
        raise SourceError("was removed after its bytes were copied", source=self.name, offset=offset)


@record
class Unfinished:
    """A journal read back: the plan, the sha256 of each copied step, and the part files' inodes if all are complete."""

    plan: Plan
    consume: Consume
    copied: dict[int, str]
    complete: tuple[int, ...] | None


def real_path(path: str | os.PathLike[str]) -> Path:
    """Make `path` absolute and resolve links in its folder, but not in its last component."""
    folder, name = os.path.split(os.path.abspath(path))
    return Path(os.path.realpath(folder), name)


# --- writing ---------------------------------------------------------------------------------------------------------


def consume_file(plan: Plan, consume: Consume) -> OutputFile:
    """Make the journal for `plan`, as a file to write.

    Raises `PlanError` if a source is not a local file, or if the journal would be too large.
    """
    numbers: dict[Source, int] = {step.source: number for number, step in enumerate(consume.steps)}
    content = {
        "models": consume.request.models,
        "options": consume.request.options,
        "sources": [_source_entry(step) for step in consume.steps],
        "outputs": [[output.path.name, output.size, len(output.head)] for output in plan.outputs],
        "marks": [output.marks and [astuple(mark) for mark in output.marks] for output in plan.outputs],
        "sequence": plan.sequence,
        "copies": [[_copy_entry(copy, numbers) for copy in output.copies] for output in plan.outputs],
    }
    text = json.dumps(content).encode()
    data = b"".join([_MAGIC, struct.pack("<Q", len(text)), text, *(output.head for output in plan.outputs)])
    data += hashlib.sha256(data).digest() + b"\n"
    if len(data) > _MAX_PLAN:
        raise PlanError(f"its journal would take {len(data):,} bytes, over {_MAX_PLAN:,}: too many tensors or files")
    return OutputFile(path=consume_path(consume.anchor), head=data, copies=(), size=len(data))


def digest_in(head: bytes) -> str:
    """The digest at the end of a journal made by `consume_file`, in hex: it identifies the journal."""
    return head[-_DIGEST - 1 : -1].hex()


def _source_entry(step: Step) -> list[Any]:
    if not isinstance(step.source, LocalSource):
        raise PlanError("is not a local file; --consume removes only local files", source=step.source.name)
    return [str(real_path(step.source.path)), step.source.file_stamp, step.frees]


def _copy_entry(copy: Copy, numbers: dict[Source, int]) -> list[int]:
    return [numbers[copy.extent.source], copy.extent.offset, copy.extent.length, copy.offset]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_unfinished(anchor: Path) -> Unfinished | None:
    """Read the journal of `anchor`, or None if there is none; raise `ExecuteError` if it is damaged or foreign.

    Sources that still exist are opened; removed sources with safe bytes become `FreedSource`.
    """
    path = consume_path(anchor)
    try:
        with open(open_helper(path, writable=False, twin=helper_path(path, PART)), "rb") as file:
            data = file.read() if os.fstat(file.fileno()).st_size <= _MAX_JOURNAL else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExecuteError(f"cannot read: {error.strerror}; nothing was removed", source=str(path)) from error
    try:
        return _parse(data, anchor)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError, PlanError):
        raise ExecuteError(
            "is not a journal of merge --consume, or is damaged. The part files next to it (.gguftool-*.only-copy) may "
            "be the only copy of tensors: keep them; nothing was removed",
            source=str(path),
        ) from None


def _parse(data: bytes, anchor: Path) -> Unfinished:
    start = len(_MAGIC) + 8
    (length,) = struct.unpack("<Q", data[len(_MAGIC) : start].ljust(8, b"\xff"))
    _require(data.startswith(_MAGIC) and length <= len(data))
    content = json.loads(data[start : start + length])
    end = start + length + sum(_non_negative([head for _, _, head in content["outputs"]]))
    digest = hashlib.sha256(data[:end]).digest()
    _require(data[end : end + _DIGEST + 1] == digest + b"\n")
    copied, complete = _parse_lines(data[end + _DIGEST + 1 :], len(content["sources"]), len(content["outputs"]))
    steps = tuple(_parse_step(entry, number in copied) for number, entry in enumerate(content["sources"]))
    outputs = tuple(_parse_outputs(content, data, start + length, anchor, steps))
    _require(_differ(output.path for output in outputs) and _differ(step.source.name for step in steps))
    request = Request(models=tuple(map(str, content["models"])), options=tuple(map(str, content["options"])))
    consume = Consume(anchor=anchor, steps=steps, request=request, begun=digest.hex())
    sequence = tuple(map(str, content["sequence"]))
    inputs = tuple(step.source for step in steps)
    plan = Plan(outputs=outputs, inputs=inputs, sequence=sequence, consume=consume)
    return Unfinished(plan=plan, consume=consume, copied=copied, complete=complete)


def _differ(items: Iterable[object]) -> bool:
    """Whether no two `items` are equal."""
    listed = list(items)
    return len(set(listed)) == len(listed)


def _require(good: bool) -> None:
    if not good:
        raise ValueError


def _non_negative(numbers: Any) -> list[int]:
    """Convert `numbers` to a list; raise `ValueError` unless all are integers from 0 on."""
    _require(all(type(number) is int and number >= 0 for number in numbers))
    return list(numbers)


def _parse_lines(data: bytes, n_steps: int, n_outputs: int) -> tuple[dict[int, str], tuple[int, ...] | None]:
    copied: dict[int, str] = {}
    complete = None
    *lines, _torn = data.split(b"\n")
    for line in lines:
        match = _COPIED.fullmatch(line)
        if match is not None and int(match[1]) < n_steps:
            copied[int(match[1])] = match[2].decode()
        elif line.startswith(b"complete "):
            with contextlib.suppress(ValueError):
                inodes = tuple(int(word) for word in line.split()[1:])
                complete = inodes if len(inodes) == n_outputs else complete
    return copied, complete


def _parse_step(entry: Any, is_copied: bool) -> Step:
    name, stamp, frees = entry
    path = Path(str(name))
    _require(len(stamp) == 5 and path.is_absolute() and isinstance(frees, bool))
    known = FileStamp(*_non_negative(stamp))
    return Step(source=_reopened(path, known, frees=frees, is_copied=is_copied), frees=frees)


def _reopened(path: Path, stamp: FileStamp, *, frees: bool, is_copied: bool) -> Source:
    now = stamp_if_same(path, stamp)
    if now is None and frees and is_copied:
        return FreedSource(path=path, file_stamp=stamp)
    return LocalSource(path=path, file_stamp=now or stamp)  # if it is another file now, reading it raises an error


def stamp_if_same(path: Path, stamp: FileStamp) -> FileStamp | None:
    """The current stamp of the file at `path`, or None if it is not the file that `stamp` identifies.

    Compares inode, size and mtime. A reboot may change the device number, and a new owner or hard link changes the
    ctime: once other sources are removed, neither must prevent resuming. Raises `SourceError` if `path` cannot be read.
    """
    try:
        now = FileStamp.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=str(path)) from error
    return now if now[1:4] == stamp[1:4] else None


def _parse_outputs(
    content: Any, data: bytes, place: int, anchor: Path, steps: tuple[Step, ...]
) -> Iterator[OutputFile]:
    entries = zip(content["outputs"], content["copies"], content["marks"], strict=True)
    for (name, size, head), copies, marks in entries:
        # A journal must not name any output but the one that it lies next to.
        _require(name == anchor.name or (name.startswith(f"{anchor.name}-") and Path(name).name == name))
        yield OutputFile(
            path=anchor.parent / name,
            head=data[place : place + head],
            copies=tuple(_parse_copy(_non_negative(copy), steps) for copy in copies),
            size=size,
            marks=None if marks is None else tuple(_parse_mark(mark, size) for mark in marks),
        )
        place += head


def _parse_mark(entry: Any, size: int) -> Mark:
    name, *numbers = entry
    offset, length = _non_negative(numbers)
    _require(offset + length <= size)
    return Mark(name=str(name), offset=offset, length=length)


def _parse_copy(numbers: list[int], steps: tuple[Step, ...]) -> Copy:
    step, offset, length, place = numbers
    source = steps[step].source
    _require(offset + length <= source.size)
    return Copy(extent=Extent(source=source, offset=offset, length=length), offset=place)
