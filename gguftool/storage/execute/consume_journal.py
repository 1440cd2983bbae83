"""The journal of a run that removes its sources as it goes: the whole plan, then what of it is safe.

From the first removal on, part files and journal are the copy.  So the journal holds all that another process needs to
finish: heads, copies, sources with their identities, and the command that asked for it.  It gets its name complete and
durable before anything else is made, with a digest over the plan; lines are only appended, each durable before the file
that it speaks of goes:

    copied STEP SHA256    all bytes of this source are in the part files, durable, read back equal
    complete INODE...     all part files are done, and are about to get their names

A torn line says less, never more.  Names of outputs are relative to the journal's folder, paths of sources absolute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NoReturn

from gguftool.errors import ExecuteError, PlanError, SourceError
from gguftool.record import record
from gguftool.storage.plan import Consume, Copy, Mark, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import FileStamp, LocalSource
from gguftool.storage.sources.sidecars import consume_path
from gguftool.storage.sources.source import Extent, Source

_MAGIC = b"gguftool consume 1\n"
_DIGEST = 32  # bytes of sha256
_MAX_PLAN = 1 << 30  # bytes; a plan of 100,000 tensors takes some 10 million, and heads are in memory anyway
_MAX_JOURNAL = _MAX_PLAN + (64 << 20)  # a line takes 80
_OPEN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_COPIED = re.compile(rb"copied (\d{1,9}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSource(Source):
    """A source that was removed because its bytes are in the part files: an identity, and nothing to read."""

    path: Path
    file_stamp: FileStamp

    @property
    def name(self) -> str:
        """Where it was."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes that were in it."""
        return self.file_stamp.size

    @property
    def identity(self) -> str:
        """The identity of the removed file."""
        return "local:" + ":".join(map(str, self.file_stamp))

    def read_at(self, offset: int, length: int) -> NoReturn:  # noqa: ARG002 - of every source
        """Raise `SourceError`."""
        raise SourceError("was removed when its bytes were safe", source=self.name, offset=offset)


@record
class Unfinished:
    """A journal read back: the plan, the sha256 of each copied step, and the part files' inodes where all are done."""

    plan: Plan
    consume: Consume
    copied: dict[int, str]
    complete: tuple[int, ...] | None


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return `path` absolute and with the links of its folder resolved, its last part as it is."""
    folder, name = os.path.split(os.path.abspath(path))
    return Path(os.path.realpath(folder), name)


# --- writing ---------------------------------------------------------------------------------------------------------


def consume_file(plan: Plan, consume: Consume) -> OutputFile:
    """Return the journal for `plan` as a file to write; raise `PlanError` where a source is no local file."""
    numbers: dict[Source, int] = {step.source: number for number, step in enumerate(consume.steps)}
    said = {
        "models": consume.request.models,
        "options": consume.request.options,
        "sources": [_said_source(step) for step in consume.steps],
        "outputs": [[output.path.name, output.size, len(output.head)] for output in plan.outputs],
        "marks": [output.marks and [astuple(mark) for mark in output.marks] for output in plan.outputs],
        "sequence": plan.sequence,
        "copies": [[_said_copy(copy, numbers) for copy in output.copies] for output in plan.outputs],
    }
    text = json.dumps(said).encode()
    data = b"".join([_MAGIC, struct.pack("<Q", len(text)), text, *(output.head for output in plan.outputs)])
    data += hashlib.sha256(data).digest() + b"\n"
    if len(data) > _MAX_PLAN:
        raise PlanError(f"its journal would take {len(data):,} bytes, at most {_MAX_PLAN:,}: too many tensors or files")
    return OutputFile(path=consume_path(consume.anchor), head=data, copies=(), size=len(data))


def digest_in(head: bytes) -> str:
    """Return the digest at the end of a journal as `consume_file` makes it: by it, it is known from others."""
    return head[-_DIGEST - 1 : -1].hex()


def _said_source(step: Step) -> list[Any]:
    if not isinstance(step.source, LocalSource):
        raise PlanError("is not a local file; only those can make room", source=step.source.name)
    return [str(real_path(step.source.path)), step.source.file_stamp, step.frees]


def _said_copy(copy: Copy, numbers: dict[Source, int]) -> list[int]:
    return [numbers[copy.extent.source], copy.extent.offset, copy.extent.length, copy.offset]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_unfinished(anchor: Path) -> Unfinished | None:
    """Read the journal of `anchor`; None where there is none, `ExecuteError` where it is damaged or not ours.

    Sources that are still there are opened; those that are gone with their bytes safe are `FreedSource`.
    """
    path = consume_path(anchor)
    try:
        fd = os.open(path, _OPEN)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            data = file.read() if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_JOURNAL else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExecuteError(f"cannot read: {error.strerror}; nothing was removed", source=str(path)) from error
    try:
        return _parsed(data, anchor)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError, PlanError):
        raise ExecuteError(
            "is not a journal of merge --consume, or is damaged. The part files beside it (.gguftool-*.only-copy) may "
            "be the only copy of tensors: keep them, nothing was removed",
            source=str(path),
        ) from None


def _parsed(data: bytes, anchor: Path) -> Unfinished:
    start = len(_MAGIC) + 8
    (length,) = struct.unpack("<Q", data[len(_MAGIC) : start].ljust(8, b"\xff"))
    _require(data.startswith(_MAGIC) and length <= len(data))
    said = json.loads(data[start : start + length])
    end = start + length + sum(_counts([head for _, _, head in said["outputs"]]))
    digest = hashlib.sha256(data[:end]).digest()
    _require(data[end : end + _DIGEST + 1] == digest + b"\n")
    copied, complete = _lines(data[end + _DIGEST + 1 :], len(said["sources"]), len(said["outputs"]))
    steps = tuple(_step(entry, number in copied) for number, entry in enumerate(said["sources"]))
    outputs = tuple(_outputs(said, data, start + length, anchor, steps))
    request = Request(models=tuple(map(str, said["models"])), options=tuple(map(str, said["options"])))
    consume = Consume(anchor=anchor, steps=steps, request=request, begun=digest.hex())
    sequence = tuple(map(str, said["sequence"]))
    inputs = tuple(step.source for step in steps)
    plan = Plan(outputs=outputs, inputs=inputs, sequence=sequence, consume=consume)
    return Unfinished(plan=plan, consume=consume, copied=copied, complete=complete)


def _require(good: bool) -> None:
    if not good:
        raise ValueError


def _counts(numbers: Any) -> list[int]:
    """Return `numbers` where all are integers from 0 on."""
    _require(all(type(number) is int and number >= 0 for number in numbers))
    return list(numbers)


def _lines(data: bytes, n_steps: int, n_outputs: int) -> tuple[dict[int, str], tuple[int, ...] | None]:
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


def _step(entry: Any, is_copied: bool) -> Step:
    name, stamp, frees = entry
    path = Path(str(name))
    _require(len(stamp) == 5 and path.is_absolute() and isinstance(frees, bool))
    known = FileStamp(*_counts(stamp))
    return Step(source=_reopened(path, known, frees=frees, is_copied=is_copied), frees=frees)


def _reopened(path: Path, stamp: FileStamp, *, frees: bool, is_copied: bool) -> Source:
    now = stamp_if_same(path, stamp)
    if now is None and frees and is_copied:
        return FreedSource(path=path, file_stamp=stamp)
    return LocalSource(path=path, file_stamp=now or stamp)  # where it is another file now, reading it says so


def stamp_if_same(path: Path, stamp: FileStamp) -> FileStamp | None:
    """Return what identifies the file at `path` now, None where that is not the one that `stamp` was taken of.

    By inode, size and time of change. The device's number may be another after a reboot, and a file that is given
    another owner or a hard link has another ctime: with other sources gone, neither may stand in the way of going on.
    """
    try:
        now = FileStamp.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=str(path)) from error
    return now if now[1:4] == stamp[1:4] else None


def _outputs(said: Any, data: bytes, place: int, anchor: Path, steps: tuple[Step, ...]) -> Iterator[OutputFile]:
    entries = zip(said["outputs"], said["copies"], said["marks"], strict=True)
    for (name, size, head), copies, marks in entries:
        # No journal reaches further than the output that it lies beside.
        _require(name == anchor.name or (name.startswith(f"{anchor.name}-") and Path(name).name == name))
        yield OutputFile(
            path=anchor.parent / name,
            head=data[place : place + head],
            copies=tuple(_copy(_counts(copy), steps) for copy in copies),
            size=size,
            marks=None if marks is None else tuple(_mark(mark, size) for mark in marks),
        )
        place += head


def _mark(entry: Any, size: int) -> Mark:
    name, *numbers = entry
    offset, length = _counts(numbers)
    _require(offset + length <= size)
    return Mark(name=str(name), offset=offset, length=length)


def _copy(numbers: list[int], steps: tuple[Step, ...]) -> Copy:
    step, offset, length, place = numbers
    source = steps[step].source
    _require(offset + length <= source.size)
    return Copy(extent=Extent(source=source, offset=offset, length=length), offset=place)
