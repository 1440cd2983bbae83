"""Where bytes come from: a `Source` is read at offsets, an `Extent` is a range of one.

Positional reads only: no shared file position, so any number of threads may read one source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from gguftool.errors import SourceError
from gguftool.record import record


class AbsentError(SourceError):
    """There is no such file."""


class ChangedError(SourceError):
    """The file is another one now."""


class Source(Protocol):
    """Bytes that can be read at any offset."""

    @property
    def name(self) -> str:
        """How the user knows it: a path or a URL without secrets."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    @property
    def identity(self) -> str:
        """Changes when the bytes may have changed; covers place, size and time or ETag."""

    @property
    def file_id(self) -> tuple[int, int] | None:
        """(device, inode) of a local file, by which two names are known to be one file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise `SourceError` where they cannot be had."""

    @property
    def parallelism(self) -> int:
        """How many threads that read at once pay: for a disk, a computation, a number of connections."""

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Yield exactly `length` bytes from `offset` in order, in pieces as they come; raise `SourceError` as above.

        A piece is good until the next is asked for.
        """

    def descriptor(self) -> AbstractContextManager[int] | None:
        """Lend an open read-only file descriptor for the kernel's copy calls, or None where there is none."""

    def check_unchanged(self) -> None:
        """Raise `SourceError` where the source is no longer what it was when it was opened."""


@runtime_checkable
class RemoteSource(Protocol):
    """What a source behind a network has beside the rest: asking costs more there than bytes do."""

    @property
    def first_read(self) -> int:
        """Bytes of the head that opening has fetched already: what the first read should ask for."""

    @property
    def answer(self) -> str:
        """How the server answered at opening (status, type, size, host), for errors about what it sent."""

    def keep_head(self, head: bytes) -> None:
        """Keep the first bytes for a later look, where the user asks for that and versions can be told apart."""


def stream_in_steps(source: Source, offset: int, length: int, step: int) -> Iterator[bytes]:
    """Yield `length` bytes of `source` from `offset` by reads of `step` bytes: the `stream` of a simple source."""
    for done in range(0, length, step):
        yield source.read_at(offset + done, min(step, length - done))


def is_remote(source: Source) -> bool:
    """Whether the bytes of `source` come over a network; its name is a URL then."""
    return source.file_id is None and "://" in source.name


def as_remote(source: Source) -> RemoteSource | None:
    """Return `source` as one behind a network, None where it is none."""
    # Files are told first: whether an object has a protocol's attributes takes ten times as long, for each of a set.
    return source if source.file_id is None and isinstance(source, RemoteSource) else None


def place_of(source: Source) -> object:
    """Return what two names of one file have in common: device and inode of a local one, the identity of others."""
    return source.file_id or source.identity


def pieces_of(stream: Iterable[bytes | memoryview]) -> Callable[[int], bytes]:
    """Return what takes the next so many bytes of `stream`, fewer only at its end."""
    pieces = iter(stream)
    rest = memoryview(b"")

    def take(length: int) -> bytes:
        nonlocal rest
        taken: list[bytes] = []
        while length:
            if not rest:
                piece = next(pieces, b"")
                if not piece:
                    break
                if len(piece) == length and isinstance(piece, bytes):
                    taken.append(piece)  # the usual case: steps agree, and nothing is copied
                    break
                rest = memoryview(piece)
            taken.append(bytes(rest[:length]))  # a piece is good only until the next is asked for
            rest, length = rest[length:], length - len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)

    return take


@record
class Extent:
    """`length` bytes of `source` from `offset`."""

    source: Source
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length

    def read(self) -> bytes:
        """Return all of its bytes: for small extents only."""
        return self.source.read_at(self.offset, self.length)


def whole(source: Source) -> Extent:
    """Return all of a source as one extent."""
    return Extent(source=source, offset=0, length=source.size)


_SHA256 = re.compile("[0-9a-f]{64}")


def recorded_sha256(source: Source) -> str | None:
    """Return the sha256 that the keeper of `source` recorded of all of it, in hex; None where none is known."""
    found = getattr(source, "sha256", None)  # sources of the Hub have it
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None
