"""Sources without a file of their own: bytes in memory, and extents of other sources read as one.

A plan never needs a `JoinedSource`: `parts_of` gives its extents, so that the kernel still copies files, and remote
bytes are still read by ranges. It is for callers that read a tensor's data as one run of bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

from gguftool.errors import SourceError
from gguftool.record import record
from gguftool.storage.sources.source import Extent, Source


@record
class BytesSource(Source):
    """`data` in memory, such as a computed list of numbers; `label` names it in messages and plans."""

    label: str
    data: bytes

    @property
    def name(self) -> str:
        """The label of the bytes."""
        return self.label

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data)

    @property
    def identity(self) -> str:
        """The label and a digest: the same bytes are the same source, even for a run that resumes."""
        from hashlib import sha256  # loads OpenSSL, which most commands do not need

        return f"{self.label} {sha256(self.data).hexdigest()}"

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise `SourceError` if there are fewer."""
        _refuse_beyond(self, offset, length)
        return self.data[offset : offset + length]


@record
class JoinedSource(Source):
    """`pieces` one after another; `starts` are their offsets in this source."""

    pieces: tuple[Extent, ...]
    starts: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file of the first piece, and the number of other files."""
        names = tuple(dict.fromkeys(source.name for source in self.sources))
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the pieces, each once, in the order of first use."""
        return tuple(dict.fromkeys(piece.source for piece in self.pieces))

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return self.starts[-1] + self.pieces[-1].length

    @property
    def identity(self) -> str:
        """The identities of the sources, and a digest of the positions of the pieces."""
        from hashlib import sha256

        numbers = {source: number for number, source in enumerate(self.sources)}
        places = (f"{numbers[piece.source]} {piece.offset} {piece.length}" for piece in self.pieces)
        digest = sha256("\n".join(places).encode()).hexdigest()
        return f"{' + '.join(source.identity for source in numbers)} pieces {digest}"

    @property
    def parallelism(self) -> int:
        """The largest number of threads that any of the sources wants."""
        return max(source.parallelism for source in self.sources)

    @property
    def is_remote(self) -> bool:
        """Whether any piece is."""
        return any(source.is_remote for source in self.sources)

    def check_unchanged(self) -> None:
        """Raise `SourceError` if a source changed."""
        for source in self.sources:
            source.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Read the parts of the pieces in the range; raise `SourceError` as their sources do."""
        _refuse_beyond(self, offset, length)
        return b"".join(part.read() for part in self.parts(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Stream one part after another, each as its own source does."""
        _refuse_beyond(self, offset, length)
        for part in self.parts(offset, length):
            yield from part.source.stream(part.offset, part.length)

    def parts(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents that hold `length` bytes from `offset`, in order."""
        index, end = max(bisect_right(self.starts, offset) - 1, 0), offset + length
        while offset < end:
            piece, start = self.pieces[index], self.starts[index]
            size = min(start + piece.length, end) - offset
            yield piece if size == piece.length else cut(piece, offset - start, size)
            offset, index = offset + size, index + 1


def _refuse_beyond(source: Source, offset: int, length: int) -> None:
    if offset + length > source.size:
        raise SourceError(
            f"has {source.size:,} bytes, but {length:,} were requested from {offset:,}", source=source.name
        )


def cut(extent: Extent, start: int, length: int) -> Extent:
    """`length` bytes of `extent` from its byte `start` on."""
    return Extent(source=extent.source, offset=extent.offset + start, length=length)


def parts_of(extent: Extent) -> tuple[Extent, ...]:
    """The extents of real sources that `extent` is made of: itself, or those of its pieces."""
    source = extent.source
    if not isinstance(source, JoinedSource):
        return (extent,)
    return tuple(source.parts(extent.offset, extent.length))


def joined(extents: Iterable[Extent]) -> Extent:
    """One extent of all bytes of `extents`, at least one; adjacent ones of a source are joined."""
    pieces: list[Extent] = []
    for part in (part for extent in extents for part in parts_of(extent)):
        last = pieces[-1] if pieces else None
        if last is not None and not last.length:
            pieces[-1] = part
        elif last is not None and last.end == part.offset and last.source == part.source:
            pieces[-1] = Extent(source=last.source, offset=last.offset, length=last.length + part.length)
        elif last is None or part.length:
            pieces.append(part)
    if len(pieces) == 1:
        return pieces[0]
    starts = (0, *accumulate(piece.length for piece in pieces[:-1]))
    source = JoinedSource(pieces=tuple(pieces), starts=starts)
    return Extent(source=source, offset=0, length=source.size)
