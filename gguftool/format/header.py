"""The head of a GGUF file: magic, version, counts, metadata KV, tensor infos.

Bring your own I/O: `parse` takes the first bytes of a file and returns a `Header`, raises `FormatError`, or raises
`NeedMoreData` if the buffer ends before the head does.  Parsing starts from scratch on the larger buffer; callers grow
it by a factor, so the repeated work is bounded by the final parse.

Values are not decoded: a KV keeps its bytes, and strings of an array are skipped by their lengths, so an unedited value
is never encoded again.  Version 1 wrote lengths as u32; `parse` widens its values and `serialize` narrows them again:
the rest of the program deals with one encoding.

Every number in the file is checked against the size of the file before it is used to loop or to allocate: this check
alone removes whole classes of attacks.

Source of the grammar: ggml docs/gguf.md; llama.cpp ggml/src/gguf.cpp (gguf_init_from_file_impl).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

from gguftool.errors import FormatError, LimitError, printable
from gguftool.format.cursor import MAX_HEAD, Cursor, NeedMoreData
from gguftool.format.kv import (
    INTEGERS,
    KV,
    VALUE_SIZES,
    ByteOrder,
    ValueType,
    change_width,
    encode_text,
    find_kv,
)
from gguftool.record import record

MAGIC: Final = b"GGUF"
VERSIONS: Final = (1, 2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20  # bytes; more only makes a file large, and hostile files ask for gigabytes of zeros
ALIGNMENT_KEY: Final = "general.alignment"
ARCHITECTURE_KEY: Final = "general.architecture"
GENERAL_TYPE: Final = "general.type"

# Limits, with reasons (and MAX_HEAD in `cursor`). All are far above what any published model holds.
MAX_TENSORS: Final = 1 << 20  # bounds the memory of parsed infos; the largest unmerged MoE models hold about 70,000
MAX_KVS: Final = 1 << 16  # engines write below 100
MAX_DIMS: Final = 32  # as in NumPy 1; files of video models have 5, though ggml takes 4 (GGML_MAX_DIMS)
MAX_NESTING: Final = 8  # arrays of arrays; engines refuse any, the specification sets no bound
MAX_ELEMENTS: Final = (1 << 63) - 1  # ggml counts elements in int64

_VALUE_TYPES: Final = {kind.value: kind for kind in ValueType}


@record
class TensorInfo:
    """One tensor of the head; `dims` in ggml order (dims[0] = row length), `offset` from the start of the data."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int

    @property
    def elements(self) -> int:
        """The number of elements (1 for a scalar without dims)."""
        return math.prod(self.dims)

    @property
    def width(self) -> int:
        """Elements of a row (1 for a scalar without dims)."""
        return self.dims[0] if self.dims else 1

    @property
    def rows(self) -> int:
        """Rows of all matrices."""
        return math.prod(self.dims[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """`dims` without trailing ones: writers differ in these."""
        end = len(self.dims)
        while end > 1 and self.dims[end - 1] == 1:
            end -= 1
        return self.dims[:end]


@record
class Header:
    """A complete head. Equal headers serialize to equal bytes."""

    version: int = 3
    byte_order: ByteOrder = ByteOrder.LITTLE
    kvs: tuple[KV, ...] = ()
    tensors: tuple[TensorInfo, ...] = ()

    def get(self, key: str) -> KV | None:
        """Return the first entry under `key` (ik_llama.cpp reads duplicates that way too), or None."""
        return find_kv(self.kvs, key)

    @property
    def alignment(self) -> int:
        """The file's alignment in bytes: `general.alignment`, or 32 if that is absent."""
        return alignment_of(self.kvs)

    @property
    def length(self) -> int:
        """Bytes from the magic to the end of the last tensor info."""
        if self.version == 1:
            return len(_serialize_infos(self))
        kvs = sum(12 + len(encode_text(kv.key)) + len(kv.raw) for kv in self.kvs)
        infos = sum(24 + len(encode_text(info.name)) + 8 * len(info.dims) for info in self.tensors)
        return 24 + kvs + infos

    @property
    def data_offset(self) -> int:
        """Where tensor data starts: the head's end rounded up to the alignment."""
        return round_up(self.length, self.alignment)

    def duplicate_keys(self) -> tuple[str, ...]:
        """Return the keys that occur more than once, in order of their second occurrence."""
        seen: set[str] = set()
        twice: dict[str, None] = {}
        for kv in self.kvs:
            if kv.key in seen:
                twice[kv.key] = None
            seen.add(kv.key)
        return tuple(twice)


def round_up(size: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is at least `size`."""
    return -(-size // alignment) * alignment


def alignment_of(kvs: Sequence[KV]) -> int:
    """Return the alignment that `kvs` set, in bytes; raise `FormatError` if it is not a power of two."""
    kv = find_kv(kvs, ALIGNMENT_KEY)
    if kv is None:
        return DEFAULT_ALIGNMENT
    value = kv.value() if kv.type in INTEGERS else None
    if value is None or value <= 0 or value & (value - 1):
        found = kv.type.name if value is None else str(value)
        raise FormatError(
            f"{ALIGNMENT_KEY} is {found}; expected a power of two (32 is what every engine accepts)",
            where="metadata KV",
        )
    return int(value)


# --- parsing ---------------------------------------------------------------------------------------------------------


def parse(buffer: bytes | bytearray | memoryview, total_size: int) -> Header:
    """Parse the head of a GGUF file of `total_size` bytes from its first bytes.

    Raises `NeedMoreData` if the buffer is too short, `FormatError` if the file cannot be a GGUF.
    """
    cursor = Cursor(buffer, total_size)
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        raise FormatError(
            f"not a GGUF file: the first bytes are '{printable(magic.decode('latin-1'))}', expected 'GGUF'",
            where="magic",
            offset=0,
        )
    version = _parse_version(cursor)
    n_tensors = cursor.count("number of tensors", MAX_TENSORS)
    n_kvs = cursor.count("number of metadata KV", MAX_KVS)
    # The minimum for these counts: an empty key and a one-byte value, an empty name and no dims.
    cursor.claim(n_kvs * (cursor.width + 5) + n_tensors * (cursor.width + 16), "counts")
    cursor.infos_left = n_tensors
    try:
        kvs = _parse_kvs(cursor, n_kvs)
        infos = _parse_tensor_infos(cursor, n_tensors)
    except NeedMoreData as signal:
        raise NeedMoreData(signal.needed, cursor.extrapolate(signal.needed)) from None
    return Header(version=version, byte_order=cursor.order, kvs=kvs, tensors=infos)


def _parse_version(cursor: Cursor) -> int:
    raw = cursor.take(4, "version")
    version = struct.unpack("<I", raw)[0]
    # A small version in the other byte order has its two low bytes zero (llama.cpp uses the same test).
    if version & 0xFFFF == 0 and version != 0:
        cursor.set_order(ByteOrder.BIG)
        version = struct.unpack(">I", raw)[0]
    if version not in VERSIONS:
        raise FormatError(
            f"GGUF version {version} is not known; versions 1, 2 and 3 are", where="version", offset=cursor.pos - 4
        )
    cursor.width = 4 if version == 1 else 8
    return int(version)


def _parse_kvs(cursor: Cursor, count: int) -> tuple[KV, ...]:
    kvs: list[KV] = []
    alignment = None  # the first entry counts
    for index in range(count):
        start = cursor.pos
        kvs.append(_parse_kv(cursor, index))
        if alignment is None and kvs[-1].key == ALIGNMENT_KEY:
            alignment = kvs[-1]
            try:
                alignment_of((alignment,))
            except FormatError as error:
                error.where, error.offset = f"metadata KV {index}", start
                raise
    return tuple(kvs)


def _parse_kv(cursor: Cursor, index: int) -> KV:
    where = f"metadata KV {index}"
    key = cursor.text(where)
    try:
        kind = _value_type(cursor, where)
        start = cursor.pos
        _skip_value(cursor, kind, where)
    except FormatError as error:
        error.where = f"{where}, '{printable(key, 80)}'"  # on the way up: formatting names costs time
        raise
    raw = bytes(cursor.buffer[start : cursor.pos])
    if cursor.width == 4:
        raw = change_width(raw, kind, cursor.order, 4, 8)
    return KV(key=key, type=kind, raw=raw, byte_order=cursor.order)


def _value_type(cursor: Cursor, where: str) -> ValueType:
    number = cursor.number("I", where)
    kind = _VALUE_TYPES.get(number)
    if kind is None:
        raise FormatError(
            f"value type {number} is not one of the 13 known ones, so the value's size is unknown",
            where=where,
            offset=cursor.pos - 4,
        )
    return kind


def _skip_value(cursor: Cursor, kind: ValueType, where: str) -> None:
    """Skip one value without decoding it; nested arrays iteratively, so that depth costs no stack."""
    open_arrays = [(kind, 1, 0)]  # element type, elements left and depth of each open array
    while open_arrays:
        kind, left, depth = open_arrays.pop()
        if kind is ValueType.STRING:
            _skip_strings(cursor, left, where)
        elif kind is not ValueType.ARRAY:
            cursor.elements = left
            cursor.need(VALUE_SIZES[kind] * left, where)
            cursor.pos += VALUE_SIZES[kind] * left
        elif left:
            open_arrays.append((kind, left - 1, depth))
            element = _value_type(cursor, where)
            count = cursor.length(where)
            if depth >= MAX_NESTING:
                raise LimitError(
                    f"arrays are nested deeper than {MAX_NESTING}, a limit of gguftool; llama.cpp accepts no nesting",
                    where=where,
                    offset=cursor.pos,
                )
            smallest = {ValueType.STRING: cursor.width, ValueType.ARRAY: 4 + cursor.width}.get(element)
            cursor.claim(count * (VALUE_SIZES[element] if smallest is None else smallest), where)
            open_arrays.append((element, count, depth + 1))


def _skip_strings(cursor: Cursor, count: int, where: str) -> None:
    """Skip `count` strings. This loop is the cost of opening a model with a large vocabulary."""
    cursor.claim(count * cursor.width, where)
    length_at = struct.Struct(cursor.order.value + ("Q" if cursor.width == 8 else "I")).unpack_from
    buffer, pos, width = cursor.buffer, cursor.pos, cursor.width
    stepped = 0
    try:
        for stepped in range(count):  # noqa: B007  (used below)
            pos += width + length_at(buffer, pos)[0]
    except (struct.error, OverflowError):
        pos += width  # the length itself is beyond the buffer
    if pos <= len(buffer):
        cursor.pos = pos
        return
    if pos <= min(cursor.total, MAX_HEAD):
        left = count - stepped - 1
        cursor.elements, cursor.array_rest = count, left * (pos - cursor.pos) // (stepped + 1)
        raise NeedMoreData(pos)
    for _ in range(count):  # the file ends inside: walk again, checking each string, to find where
        size = cursor.length(where)
        cursor.need(size, where)
        cursor.pos += size


def _parse_tensor_infos(cursor: Cursor, count: int) -> tuple[TensorInfo, ...]:
    infos: list[TensorInfo] = []
    cursor.elements = 0
    seen: dict[str, int] = {}
    for index in range(count):
        start = cursor.pos
        info = _parse_tensor_info(cursor, index)
        first = seen.setdefault(info.name, index)
        if first != index:
            raise FormatError(
                f"tensor name '{printable(info.name)}' is used twice (first as tensor info {first}); names must differ",
                where=f"tensor info {index}",
                offset=start,
            )
        infos.append(info)
        cursor.infos_left -= 1
    return tuple(infos)


def _parse_tensor_info(cursor: Cursor, index: int) -> TensorInfo:
    where = f"tensor info {index}"
    name = cursor.text(where)
    try:
        return _parse_placing(cursor, name, where)
    except FormatError as error:
        error.where = f"{where}, '{printable(name, 80)}'"
        raise


def _parse_placing(cursor: Cursor, name: str, where: str) -> TensorInfo:
    """Read the part after the name of a tensor: dims, type, offset."""
    n_dims = cursor.number("I", where)
    if n_dims > MAX_DIMS:
        raise LimitError(
            f"{n_dims:,} dimensions; gguftool reads at most {MAX_DIMS}, ggml 4", where=where, offset=cursor.pos - 4
        )
    start = cursor.pos
    dims = tuple(cursor.length(where) for _ in range(n_dims))
    if math.prod(dims) > MAX_ELEMENTS or any(dim > MAX_ELEMENTS for dim in dims):
        shape = " x ".join(f"{dim}" for dim in dims)
        raise FormatError(f"{shape} elements are more than 2^63 - 1", where=where, offset=start)
    kind = cursor.number("I", where)
    return TensorInfo(name=name, dims=dims, type=kind, offset=cursor.number("Q", where))


# --- serializing -----------------------------------------------------------------------------------------------------


def serialize(header: Header) -> bytes:
    """Serialize the head, zero-padded to `header.data_offset`."""
    head = _serialize_infos(header)
    return head.ljust(round_up(len(head), header.alignment), b"\0")


def _serialize_infos(header: Header) -> bytes:
    order = header.byte_order.value
    width, code = (4, "I") if header.version == 1 else (8, "Q")
    parts = [MAGIC, struct.pack(f"{order}I2{code}", header.version, len(header.tensors), len(header.kvs))]
    for kv in header.kvs:
        key = encode_text(kv.key)
        raw = kv.raw if width == 8 else change_width(kv.raw, kv.type, header.byte_order, 8, 4)
        parts += [struct.pack(order + code, len(key)), key, struct.pack(order + "I", kv.type), raw]
    for info in header.tensors:
        name = encode_text(info.name)
        n_dims = len(info.dims)
        parts += [
            struct.pack(order + code, len(name)),
            name,
            struct.pack(f"{order}I{n_dims}{code}IQ", n_dims, *info.dims, info.type, info.offset),
        ]
    return b"".join(parts)


def is_imatrix(kvs: Sequence[KV]) -> bool:
    """Whether a GGUF with these metadata is an imatrix."""
    return any(kv.key == GENERAL_TYPE and kv.type is ValueType.STRING and kv.value() == "imatrix" for kv in kvs)
