"""Compare metadata values as bytes, and parse them from text.

A vocabulary is an array of hundreds of thousands of strings. Arrays are compared by their bytes, and element by element
only if these differ; only entries that differ are decoded. This also makes NaN equal to itself.

Users write a value as one literal, an array as a JSON list.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from gguftool.errors import FormatError, printable
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType, fixed_size, make_kv
from gguftool.record import replace

SHORT_NAMES = {
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32,
    "f64": ValueType.FLOAT64,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
ANY_WIDTH = {  # spellings of llama.cpp's --override-kv -> the types that they may stand for
    "int": INTEGERS,
    "float": frozenset({ValueType.FLOAT32, ValueType.FLOAT64}),
}
_SPELLINGS = {kind: name for name, kind in SHORT_NAMES.items()}
_FLOATS = ANY_WIDTH["float"]

_ARRAY_HEAD = 12  # bytes before an array's first element: u32 element type, u64 count
_CHUNK = 64 << 10  # bytes of numbers that are compared at once


# --- comparing bytes -------------------------------------------------------------------------------------------------


def in_little_endian(kv: KV) -> KV:
    """Convert the bytes of `kv` to little-endian, so that values from files of both orders can be compared."""
    if kv.byte_order is ByteOrder.LITTLE:
        return kv
    return replace(kv, raw=b"".join(_swapped(kv.raw, kv.type)), byte_order=ByteOrder.LITTLE)


def _swapped(raw: bytes, kind: ValueType) -> Iterator[bytes]:
    pos = 0
    open_arrays = [(kind, 1)]  # element type and elements left of each open array
    while open_arrays:
        kind, left = open_arrays.pop()
        size = fixed_size(kind)
        if size is not None:
            yield _words_reversed(raw[pos : pos + size * left], size)
            pos += size * left
        elif kind is ValueType.STRING:
            for _ in range(left):
                length = struct.unpack_from(">Q", raw, pos)[0]
                yield struct.pack("<Q", length) + raw[pos + 8 : pos + 8 + length]
                pos += 8 + length
        elif left:
            open_arrays.append((kind, left - 1))
            element, count = struct.unpack_from(">IQ", raw, pos)
            yield struct.pack("<IQ", element, count)
            pos += _ARRAY_HEAD
            open_arrays.append((ValueType(element), count))


def _words_reversed(data: bytes, size: int) -> bytes:
    out = bytearray(len(data))
    for index in range(size):
        out[index::size] = data[size - 1 - index :: size]
    return bytes(out)


def differing_entries(old: KV, new: KV) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield index and both byte strings of entries that differ in two arrays, up to the length of the shorter.

    Both must be arrays of one element type in one byte order; `entry_value` decodes the byte strings.
    """
    size = fixed_size(old.element_type)
    if size is not None:
        yield from _differing_numbers(old.raw, new.raw, size, min(old.count, new.count))
        return
    for index, (left, right) in enumerate(zip(_entries(old), _entries(new), strict=False)):
        if left != right:
            yield index, left, right


def entry_value(array: KV, raw: bytes) -> object:
    """Decode the bytes of one entry of `array`."""
    return KV(key=array.key, type=array.element_type, raw=raw, byte_order=array.byte_order).value()


def _differing_numbers(old: bytes, new: bytes, size: int, count: int) -> Iterator[tuple[int, bytes, bytes]]:
    end = _ARRAY_HEAD + size * count
    for start in range(_ARRAY_HEAD, end, _CHUNK):  # every size divides the chunk
        stop = min(start + _CHUNK, end)
        if old[start:stop] == new[start:stop]:
            continue
        for pos in range(start, stop, size):
            left, right = old[pos : pos + size], new[pos : pos + size]
            if left != right:
                yield (pos - _ARRAY_HEAD) // size, left, right


def _entries(array: KV) -> Iterator[bytes]:
    raw, kind, order = array.raw, array.element_type, array.byte_order.value
    pos = _ARRAY_HEAD
    for _ in range(array.count):
        end = _end_of(raw, pos, kind, order)
        yield raw[pos:end]
        pos = end


def _end_of(raw: bytes, pos: int, kind: ValueType, order: str) -> int:
    """Return the position after the value at `pos`; arrays nest no deeper than the parser allows."""
    if kind is ValueType.STRING:
        return pos + 8 + int(struct.unpack_from(order + "Q", raw, pos)[0])
    size = fixed_size(kind)
    if size is not None:
        return pos + size
    number, count = struct.unpack_from(order + "IQ", raw, pos)
    element, pos = ValueType(number), pos + _ARRAY_HEAD
    size = fixed_size(element)
    if size is not None:
        return pos + size * int(count)
    for _ in range(count):
        pos = _end_of(raw, pos, element, order)
    return pos


# --- one element of an array ------------------------------------------------------------------------------------------


def with_elements(array: KV, elements: Mapping[int, bytes]) -> KV:
    """Replace elements of `array` (index from 0 -> bytes), in one pass however many there are."""
    raw, kind, order = array.raw, array.element_type, array.byte_order.value
    size = fixed_size(kind)
    if size is not None:
        out = bytearray(raw)
        for index, element in elements.items():
            out[_ARRAY_HEAD + size * index : _ARRAY_HEAD + size * (index + 1)] = element
        return replace(array, raw=bytes(out))
    pieces, kept, pos = [], 0, _ARRAY_HEAD
    for index in range(max(elements) + 1):
        end = _end_of(raw, pos, kind, order)
        if index in elements:
            pieces += [raw[kept:pos], elements[index]]
            kept = end
        pos = end
    return replace(array, raw=b"".join([*pieces, raw[kept:]]))


def indices_of(array: KV, text: str) -> list[int]:
    """Find every element of an array of strings that equals `text`."""
    wanted = make_kv("", ValueType.STRING, text, byte_order=array.byte_order).raw
    return [index for index, raw in enumerate(_entries(array)) if raw == wanted]


# --- parsing text ----------------------------------------------------------------------------------------------------


def split_type(text: str) -> tuple[str | None, str]:
    """Split ``TYPE:VALUE``. Text without a type in front, such as ``https://...``, is a value as a whole."""
    name, colon, rest = text.partition(":")
    known = name in ANY_WIDTH or name.removesuffix("[]") in SHORT_NAMES
    return (name, rest) if colon and known else (None, text)


def type_spelling(kv: KV) -> str:
    """Spell the type of `kv` as users do: ``u32``, ``str[]``."""
    if kv.element_type is ValueType.ARRAY:
        return "an array of arrays"
    return _SPELLINGS[kv.element_type] + ("[]" if kv.type is ValueType.ARRAY else "")


def parse_kv(key: str, spelling: str, text: str, byte_order: ByteOrder) -> KV:
    """Make metadata from `text`, a value of the type `spelling`; raise `ValueError` with the reason."""
    is_array = spelling.endswith("[]")
    kind = SHORT_NAMES[spelling.removesuffix("[]")]
    value = parse_value(text, kind, is_array=is_array)
    try:
        if is_array:
            return make_kv(key, ValueType.ARRAY, value, element=kind, byte_order=byte_order)
        return make_kv(key, kind, value, byte_order=byte_order)
    except FormatError:  # half a surrogate pair, which JSON can contain
        raise ValueError("the text cannot be stored as UTF-8") from None


def parse_value(text: str, kind: ValueType, *, is_array: bool) -> Any:
    """Parse `text`, a JSON list for an array, else one literal; raise `ValueError` with the reason."""
    if not is_array:
        return _parse_literal(text, kind)
    try:
        values = json.loads(text.removeprefix("\ufeff"), parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an array is written as a JSON list ({error})") from None
    if not isinstance(values, list):
        raise ValueError("an array is written as a JSON list")
    return [_check_item(value, kind) for value in values]


def _parse_literal(text: str, kind: ValueType) -> Any:
    if kind is ValueType.STRING:
        return text
    if kind is ValueType.BOOL:
        if text.strip().lower() not in {"true", "false"}:
            raise ValueError(f"'{printable(text, 40)}' is not true or false")
        return text.strip().lower() == "true"
    try:
        value = int(text, 0) if kind in INTEGERS else _parse_float(text)
    except ValueError:
        wanted = "a whole number" if kind in INTEGERS else "a number"
        raise ValueError(f"'{printable(text, 40)}' is not {wanted} of type {_SPELLINGS[kind]}") from None
    return _in_range(value, kind)


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value) and "inf" not in text.lower():
        raise ValueError(f"{printable(text, 40)} is larger than any f64")
    return value


def _check_item(value: object, kind: ValueType) -> Any:
    expected = str if kind is ValueType.STRING else bool if kind is ValueType.BOOL else int
    is_float = kind in _FLOATS and type(value) in {int, float}
    if not is_float and type(value) is not expected:
        raise ValueError(f"{printable(json.dumps(value), 40)} in the list is not of type {_SPELLINGS[kind]}")
    return _in_range(value, kind)


def _in_range(value: Any, kind: ValueType) -> Any:
    if kind in INTEGERS:
        bits = 8 * (fixed_size(kind) or 0)
        signed = _SPELLINGS[kind].startswith("i")
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        if not low <= value <= high:
            shown = value if abs(value) < 1 << 128 else "the number"
            raise ValueError(f"{shown} does not fit {_SPELLINGS[kind]}, which goes from {low} to {high}")
    if kind in _FLOATS:
        try:
            struct.pack("<f" if kind is ValueType.FLOAT32 else "<d", value)
        except OverflowError:
            raise ValueError(f"the number is too large for {_SPELLINGS[kind]}") from None
    return value
