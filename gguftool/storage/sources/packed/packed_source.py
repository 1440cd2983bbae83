"""A compressed file, read decompressed.

Compressed bytes cannot be read at an offset without decompressing everything before it. Plans are read from front to
back, so one decoder serves them; a read that goes back starts over. bzip2 does not state the size of its content: such
a file is decompressed once when it is opened.
"""

from __future__ import annotations

import io
import threading
from typing import IO

from gguftool.errors import LimitError, SourceError
from gguftool.storage.sources.packed.decoders import HEAD, Packing, find_packing
from gguftool.storage.sources.source import Source

_STEP = 1 << 20
# Tensors shrink to half at best, and runs of zeros are short: a file that grows by more is a trap.
_MOST_GROWTH = 64
_SPARE = 64 << 20  # bytes


class PackedSource(Source):
    """The content of `packed`; raises `SourceError` if that is neither zstd nor bzip2, or damaged.

    Raises `LimitError` for content of more than 64 times the file's size plus 64 MiB.
    """

    __slots__ = ("_at", "_lock", "_packed", "_packing", "_reader", "_size")

    def __init__(self, packed: Source) -> None:
        self._packed = packed
        self._packing: Packing = find_packing(packed.read_at(0, min(HEAD, packed.size)), packed.name)
        self._lock = threading.Lock()
        self._reader: IO[bytes] | None = None
        self._at = 0
        self._size = self._packing.size if self._packing.size is not None else self._counted()
        self._refuse_growth(self._size)

    @property
    def name(self) -> str:
        """The name of the compressed file."""
        return self._packed.name

    @property
    def size(self) -> int:
        """Bytes when unpacked."""
        return self._size

    @property
    def identity(self) -> str:
        """That of the packed file."""
        return f"unpacked {self._packed.identity}"

    @property
    def is_remote(self) -> bool:
        """Whether the packed file is."""
        return self._packed.is_remote

    def check_unchanged(self) -> None:
        """Raise `SourceError` if the compressed file changed."""
        self._packed.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise `SourceError` if the file is damaged or shorter."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise SourceError(
                f"{length:,} bytes requested from {offset:,}, but it unpacks to {self.size:,}", source=self.name
            )
        with self._lock:
            reader = self._reader_at(offset)
            data = self._taken(reader, length)
            if self._at == self.size and self._taken(reader, 1):
                raise SourceError(
                    f"holds more than the {self.size:,} bytes that its first frame states; unpack it by hand: zstd -d",
                    source=self.name,
                )
        if len(data) != length:
            raise SourceError(
                f"unpacks to {offset + len(data):,} bytes, but {self.size:,} were expected: it is damaged",
                source=self.name,
            )
        return data

    def _reader_at(self, offset: int) -> IO[bytes]:
        """A decoder positioned at `offset`."""
        if self._reader is None or self._at > offset:
            self._reader, self._at = self._opened(), 0
        while self._at < offset:
            if not self._taken(self._reader, min(_STEP, offset - self._at)):
                break
        return self._reader

    def _opened(self) -> IO[bytes]:
        return self._packing.open(io.BufferedReader(_PackedBytes(self._packed), _STEP))

    def _taken(self, reader: IO[bytes], length: int) -> bytes:
        """The next `length` bytes, fewer only at the end."""
        pieces, left = [], length
        try:
            while left:
                piece = reader.read(min(left, _STEP))
                if not piece:
                    break
                pieces.append(piece)
                left -= len(piece)
        except self._packing.errors as error:
            self._reader = None
            raise SourceError(f"its {self._packing.name} data are damaged: {error}", source=self.name) from error
        self._at += length - left
        return b"".join(pieces)

    def _counted(self) -> int:
        """Unpack everything to know the size."""
        reader = self._opened()
        while self._taken(reader, _STEP):
            self._refuse_growth(self._at)
        size, self._at = self._at, 0
        return size

    def _refuse_growth(self, size: int) -> None:
        most = _MOST_GROWTH * self._packed.size + _SPARE
        if size > most:
            raise LimitError(
                f"has {self._packed.size:,} bytes that unpack to {size:,} or more; gguftool unpacks up to "
                f"{_MOST_GROWTH} times the size: unpack it by hand if you trust it",
                source=self.name,
            )


class _PackedBytes(io.RawIOBase):
    """A source as a file to read from front to back."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read what follows into `buffer`."""
        data = self._source.read_at(self._at, min(len(buffer), self._source.size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
