"""Where bytes come from: a `Source` is read at offsets, an `Extent` is a range of one.

Positional reads only: no shared file position, so any number of threads may read one source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import ClassVar

from gguftool.errors import SourceError
from gguftool.record import record

FIRST_READ = 1 << 20  # bytes of a remote file; holds the head of most shards, and a good part of any vocabulary


class AbsentError(SourceError):
    """The file does not exist."""


class ChangedError(SourceError):
    """The file changed since it was opened."""


class Source(ABC):
    """Bytes that can be read at any offset.

    A kind of source has a name, a size, an identity and `read_at`. Everything else has a default that holds for bytes
    in memory: no file, no descriptor, one reader at a time, nothing that can change.
    """

    __slots__ = ()
    stream_step: ClassVar[int] = 1 << 20  # bytes of one `read_at` in `stream`

    @property
    @abstractmethod
    def name(self) -> str:
        """The user's name for it: a path or a URL without secrets."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes in all."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Changes when the bytes may have changed; covers place, size and time or ETag."""

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise `SourceError` if they cannot be read."""

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Yield exactly `length` bytes from `offset` in order, in pieces as they arrive; raise as `read_at` does.

        A piece is valid until the next one is taken.
        """
        for done in range(0, length, self.stream_step):
            yield self.read_at(offset + done, min(self.stream_step, length - done))

    def descriptor(self) -> AbstractContextManager[int] | None:
        """Lend an open read-only file descriptor for the kernel's copy calls, or None if there is no file."""
        return None

    def check_unchanged(self) -> None:  # noqa: B027 - a default, not a gap
        """Raise `SourceError` if the source is no longer what it was when it was opened."""

    @property
    def file_id(self) -> tuple[int, int] | None:
        """(device, inode) of a local file, or None; two names with one `file_id` are one file."""
        return None

    @property
    def file_key(self) -> object:
        """The same for all names of one file: device and inode of a local file, the identity of anything else."""
        return self.file_id or self.identity

    @property
    def parallelism(self) -> int:
        """The number of threads that reading at the same time is worth."""
        return 1

    @property
    def preferred_chunk(self) -> int | None:
        """Bytes that make a thread worthwhile, for sources that compute; None leaves the choice to the copier."""
        return None

    @property
    def sha256(self) -> str | None:
        """The sha256 of all bytes in hex, as the file's host recorded it, or None."""
        return None

    @property
    def is_remote(self) -> bool:
        """Whether bytes come over a network, including the inputs of a source that computes."""
        return False


class RemoteSource(Source):
    """A source behind a network: a request costs more there than bytes do."""

    __slots__ = ()

    @property
    @abstractmethod
    def first_read(self) -> int:
        """Bytes of the head that opening has fetched already: ask for these in the first read."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """How the server answered at opening (status, type, size, host), for errors about what it sent."""

    @abstractmethod
    def keep_head(self, head: bytes) -> None:
        """Cache the first bytes for later, if the user wants that and versions can be told apart."""

    @property
    def is_remote(self) -> bool:
        """Always."""
        return True


def byte_reader(stream: Iterable[bytes | memoryview]) -> Callable[[int], bytes]:
    """A function that takes the next `length` bytes of `stream`, fewer only at its end."""
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
            taken.append(bytes(rest[:length]))  # a piece is valid only until the next one is taken
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
        """The offset after the last byte."""
        return self.offset + self.length

    def read(self) -> bytes:
        """Return all of its bytes: for small extents only."""
        return self.source.read_at(self.offset, self.length)


def whole(source: Source) -> Extent:
    """All of a source as one extent."""
    return Extent(source=source, offset=0, length=source.size)
