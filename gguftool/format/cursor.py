"""Read numbers and texts in order from the first bytes of a file, within bounds.

If the buffer ends too early, `NeedMoreData` asks for more, with an estimate of the head's end.  Every count and length
is checked against the size of the file before it is used.
"""

from __future__ import annotations

import struct
from typing import Final

from gguftool.errors import FormatError, LimitError
from gguftool.format.kv import ByteOrder

MAX_HEAD: Final = 256 << 20  # bytes; a 262k-token vocabulary with merges takes 15 MiB

# Lengths, counts and ids: (bytes, unpack function) by byte order and struct code.
_NUMBERS: Final = {
    order: {code: (struct.calcsize("=" + code), struct.Struct(order.value + code).unpack_from) for code in "IQ"}
    for order in ByteOrder
}
_INFO_BYTES: Final = 72  # a tensor info with a name of common length; for estimates only
_VOCABULARY: Final = 1000  # arrays with this many elements count as those of a vocabulary, which has several


class NeedMoreData(Exception):
    """A signal, not an error: the head continues past the buffer; at least the first `needed` bytes are needed.

    `likely` estimates the head's end from the part parsed so far, at least `needed`: for readers with costly requests.
    """

    def __init__(self, needed: int, likely: int = 0) -> None:
        super().__init__(needed)
        self.needed = needed
        self.likely: int = max(needed, likely)


class Cursor:
    """A position in the buffer that knows the size of the whole file."""

    def __init__(self, buffer: bytes | bytearray | memoryview, total_size: int) -> None:
        self.buffer = buffer
        self.total = total_size
        self.pos: int = 0
        self.width = 8  # bytes of a length or count: 4 in version 1
        self.set_order(ByteOrder.LITTLE)
        self.ready: int = min(len(buffer), total_size, MAX_HEAD)  # up to here no check is needed
        # For estimates: tensor infos left; elements and bytes left of the array at the buffer's end.
        self.infos_left = 0
        self.elements = 0
        self.array_rest = 0

    def set_order(self, order: ByteOrder) -> None:
        """Read numbers in this byte order from now on."""
        self.order = order
        self._numbers = _NUMBERS[order]

    def extrapolate(self, needed: int) -> int:
        """Estimate where the head ends, given that it continues at least up to `needed`.

        Later entries of a vocabulary tend to be longer than earlier ones, and other arrays of the same length follow
        (scores, types, merges).  So this adds a fifth, and an array with eight bytes per element, but at most two
        fifths of the whole, because these bytes may be fetched in vain.
        """
        core = needed + self.array_rest + self.infos_left * _INFO_BYTES
        more = self.array_rest // 5 + (self.elements * 8 if self.elements >= _VOCABULARY else 0)
        return min(core + min(more, core * 2 // 5), self.total, MAX_HEAD)

    def claim(self, size: int, where: str) -> None:
        """Check that the file can have `size` more bytes, without requesting them yet."""
        if self.pos + size > min(self.total, MAX_HEAD):
            raise self.too_short(size, where)

    def too_short(self, size: int, where: str) -> FormatError:
        """Build the error for `size` bytes that the file cannot have here."""
        if self.pos + size > self.total:
            message = f"{size:,} bytes expected here, but the file ends at {self.total:,}: truncated or damaged"
            return FormatError(message, where=where, offset=self.pos)
        message = f"{size:,} bytes expected here, but heads are limited to {MAX_HEAD:,}: a limit of gguftool"
        return LimitError(message, where=where, offset=self.pos)

    def need(self, size: int, where: str) -> None:
        """Check that the next `size` bytes are in the buffer."""
        self.claim(size, where)
        if self.pos + size > len(self.buffer):
            raise NeedMoreData(self.pos + size)

    def take(self, size: int, where: str) -> bytes:
        """Return the next `size` bytes."""
        if self.pos + size > self.ready:
            self.need(size, where)
        start, self.pos = self.pos, self.pos + size
        return bytes(self.buffer[start : self.pos])

    def number(self, code: str, where: str) -> int:
        """Read a number: u32 by the struct code I, u64 by Q."""
        size, read = self._numbers[code]
        if self.pos + size > self.ready:
            self.need(size, where)
        value: int = read(self.buffer, self.pos)[0]
        self.pos += size
        return value

    def length(self, where: str) -> int:
        """Read a length or count in the width of this version."""
        return self.number("Q" if self.width == 8 else "I", where)

    def count(self, where: str, limit: int) -> int:
        """Read a count; raise `LimitError` if it is above `limit`."""
        start = self.pos
        value = self.length(where)
        if value > limit:
            raise LimitError(f"the {where} is {value:,}; gguftool reads at most {limit:,}", where=where, offset=start)
        return value

    def text(self, where: str) -> str:
        """Read a length and a text of that many bytes; surrogateescape keeps bytes that are not UTF-8."""
        return self.take(self.length(where), where).decode("utf-8", "surrogateescape")
