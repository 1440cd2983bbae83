"""Metadata KV: the 13 types of values, one entry, and conversion of values from and to bytes.

A KV keeps its value's bytes as on disk and decodes them on demand: an unedited value is never encoded again.
Bytes are in the layout of GGUF versions 2 and 3; `change_width` converts to and from that of version 1.

Source of the grammar: ggml docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import Enum, IntEnum
from typing import Any, Final

from gguftool.errors import FormatError, printable
from gguftool.record import record


class ByteOrder(Enum):
    """Byte order of every number of a file; the value is the prefix that `struct` uses."""

    LITTLE = "<"
    BIG = ">"


class ValueType(IntEnum):
    """The 13 kinds of metadata values, by their number on disk."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_CODES: Final = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
VALUE_SIZES: Final = {int(kind): struct.calcsize("<" + code) for kind, code in _CODES.items()}
INTEGERS: Final = frozenset(kind for kind, code in _CODES.items() if code in "BbHhIiQq" and kind is not ValueType.BOOL)


def fixed_size(kind: ValueType) -> int | None:
    """Return the size in bytes of a value of `kind`; None for strings and arrays, which differ in length."""
    return VALUE_SIZES.get(kind)


@record
class KV:
    """One metadata entry; `raw` is the value as version 2 and 3 store it, in the file's byte order.

    Keys that are not UTF-8 keep their bytes through surrogateescape.
    """

    key: str
    type: ValueType
    raw: bytes
    byte_order: ByteOrder = ByteOrder.LITTLE

    @property
    def element_type(self) -> ValueType:
        """The type of an array's elements; of any other value its own type."""
        if self.type is not ValueType.ARRAY:
            return self.type
        return ValueType(unpack_number(self.byte_order, "I", self.raw, 0))

    @property
    def count(self) -> int:
        """The number of an array's elements; 1 for any other value."""
        return unpack_number(self.byte_order, "Q", self.raw, 4) if self.type is ValueType.ARRAY else 1

    def value(self, limit: int | None = None) -> Any:
        """Decode the value: int, float, bool, str (surrogateescape), or list; at most `limit` elements of an array."""
        return _decode(self.raw, 0, self.type, self.byte_order, limit)[0]


def find_kv(kvs: Sequence[KV], key: str) -> KV | None:
    """Return the first of `kvs` under `key`, or None."""
    for kv in kvs:
        if kv.key == key:
            return kv
    return None


# --- values ----------------------------------------------------------------------------------------------------------


def unpack_number(order: ByteOrder, code: str, buffer: bytes | bytearray | memoryview, pos: int) -> int:
    """Return the number of struct code `code` at `pos`."""
    value: int = struct.unpack_from(order.value + code, buffer, pos)[0]
    return value


def _decode(raw: bytes, pos: int, kind: ValueType, order: ByteOrder, limit: int | None) -> tuple[Any, int]:
    """Decode a value of `kind` at `pos`; return it and the position after it, or after the last decoded element."""
    if kind is ValueType.STRING:
        size = unpack_number(order, "Q", raw, pos)
        end = pos + 8 + size
        return raw[pos + 8 : end].decode("utf-8", "surrogateescape"), end
    if kind is not ValueType.ARRAY:
        value = struct.unpack_from(order.value + _CODES[kind], raw, pos)[0]
        return (bool(value) if kind is ValueType.BOOL else value), pos + VALUE_SIZES[kind]
    element = ValueType(unpack_number(order, "I", raw, pos))
    count = unpack_number(order, "Q", raw, pos + 4)
    return _decode_elements(raw, pos + 12, element, count if limit is None else min(count, limit), order)


def _decode_elements(raw: bytes, pos: int, element: ValueType, count: int, order: ByteOrder) -> tuple[list[Any], int]:
    if element in _CODES:
        values = list(struct.unpack_from(f"{order.value}{count}{_CODES[element]}", raw, pos))
        if element is ValueType.BOOL:
            values = [bool(value) for value in values]
        return values, pos + count * VALUE_SIZES[element]
    values = []
    for _ in range(count):
        value, pos = _decode(raw, pos, element, order, None)
        values.append(value)
    return values, pos


def make_kv(
    key: str,
    kind: ValueType,
    value: Any,
    *,
    element: ValueType | None = None,
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> KV:
    """Encode `value` as metadata; an ARRAY takes its `element` type. Raises `FormatError` if it does not fit."""
    try:
        raw = _encode(value, kind, element, byte_order)
    except (struct.error, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
        raise FormatError(f"{value!r} is not a {kind.name} value: {error}", where=f"'{printable(key)}'") from None
    return KV(key=key, type=kind, raw=raw, byte_order=byte_order)


def _encode(value: Any, kind: ValueType, element: ValueType | None, order: ByteOrder) -> bytes:
    if kind is ValueType.STRING:
        data = encode_text(value)
        return struct.pack(order.value + "Q", len(data)) + data
    if kind is not ValueType.ARRAY:
        return struct.pack(order.value + _CODES[kind], value)
    if element is None or element is ValueType.ARRAY:
        raise TypeError("an array needs the type of its elements, and nested arrays cannot be written")
    body = b"".join(_encode(item, element, None, order) for item in value)
    return struct.pack(order.value + "IQ", element, len(value)) + body


def encode_text(text: str) -> bytes:
    """Encode a key, name or string to its bytes on disk, UTF-8 or not."""
    return text.encode("utf-8", "surrogateescape")


def change_width(raw: bytes, kind: ValueType, order: ByteOrder, old: int, new: int) -> bytes:
    """Re-encode the lengths inside a value with another width: 4 bytes in version 1, 8 in later versions."""
    return b"".join(_pieces_of_width(raw, kind, order, old, new))


def _pieces_of_width(raw: bytes, kind: ValueType, order: ByteOrder, old: int, new: int) -> Iterator[bytes]:
    old_code, new_code = ("I" if old == 4 else "Q"), ("I" if new == 4 else "Q")
    pos = 0
    open_arrays = [(kind, 1)]
    while open_arrays:
        kind, left = open_arrays.pop()
        if kind is ValueType.STRING:
            for _ in range(left):
                size = unpack_number(order, old_code, raw, pos)
                yield struct.pack(order.value + new_code, size) + raw[pos + old : pos + old + size]
                pos += old + size
        elif kind is not ValueType.ARRAY:
            yield raw[pos : pos + VALUE_SIZES[kind] * left]
            pos += VALUE_SIZES[kind] * left
        elif left:
            open_arrays.append((kind, left - 1))
            element = ValueType(unpack_number(order, "I", raw, pos))
            count = unpack_number(order, old_code, raw, pos + 4)
            yield struct.pack(order.value + "I" + new_code, element, count)
            pos += 4 + old
            open_arrays.append((element, count))
