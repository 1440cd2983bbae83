"""The head of a safetensors file: a u64 length and a JSON object, then tensor data without gaps.

This module reads and writes only the head, and checks its numbers before it uses them. Shapes are row-major (the
slowest dimension first), the reverse of ggml's dims.

A raw ggml tensor is stored as dtype U8, with its type and dims in the file's metadata under ``gguftool.NAME``.
Source of the grammar: safetensors README (format), tensor.rs (limits).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gguftool.errors import FormatError, printable
from gguftool.format.ggml import TYPES, find_type, nbytes
from gguftool.format.header import MAX_DIMS
from gguftool.record import record

_MAX_LISTING = 100_000_000  # bytes; the reference implementation refuses more
RAW_PREFIX = "gguftool."

# dtype -> (name of the ggml type with the same bytes, bytes per element)
_DTYPES = {
    "F64": ("F64", 8),
    "F32": ("F32", 4),
    "F16": ("F16", 2),
    "BF16": ("BF16", 2),
    "I64": ("I64", 8),
    "I32": ("I32", 4),
    "I16": ("I16", 2),
    "I8": ("I8", 1),
}


@record
class SafeTensor:
    """One tensor: `dims` in ggml order, ggml `type_id` (None if ggml has no such type), bytes [begin, end) of the data.

    `big_endian` is set only for raw tensors from big-endian GGUF files.
    """

    name: str
    dims: tuple[int, ...]
    type_id: int | None
    dtype: str
    begin: int
    end: int
    big_endian: bool = False


def head_length(first: bytes, total_size: int) -> int:
    """Return the length of the complete head, from the first eight bytes of a file of `total_size` bytes."""
    if len(first) < 8:
        raise FormatError("too short for a safetensors file", offset=0)
    (size,) = struct.unpack("<Q", first[:8])
    if size > min(_MAX_LISTING, total_size - 8):
        raise FormatError(f"not a safetensors file: its head would have {size:,} bytes", offset=0)
    return 8 + int(size)


def parse_safetensors(head: bytes, total_size: int) -> tuple[SafeTensor, ...]:
    """Read the tensors of a complete head; raise `FormatError` if it is invalid or points outside the file."""
    try:
        listing = json.loads(head[8:])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a safetensors file: its head is not JSON ({error})", offset=8) from None
    if not isinstance(listing, dict):
        raise FormatError("not a safetensors file: its head is not a JSON object", offset=8)
    metadata = listing.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    data_size = total_size - len(head)
    return tuple(_parse_entry(name, entry, metadata, data_size) for name, entry in listing.items())


def _parse_entry(name: str, entry: Any, metadata: Mapping[str, Any], data_size: int) -> SafeTensor:
    where = f"tensor '{printable(name, 80)}'"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        raise FormatError("expected dtype, shape and data_offsets", where=where) from None
    if not whole or not begin <= end <= data_size or not isinstance(dtype, str):
        raise FormatError(f"its bytes {begin} to {end} are not inside the data of {data_size:,} bytes", where=where)
    raw = metadata.get(RAW_PREFIX + name)
    if dtype == "U8" and isinstance(raw, str):
        return _parse_raw(name, raw, begin, end, where)
    known = _DTYPES.get(dtype) if len(shape) <= MAX_DIMS else None
    if known is not None and math.prod(shape) * known[1] != end - begin:
        raise FormatError(f"{dtype} {shape} does not take {end - begin:,} bytes", where=where)
    traits = find_type(known[0]) if known else None
    return SafeTensor(
        name=name,
        dims=tuple(reversed(shape)),
        type_id=traits.id if traits else None,
        dtype=dtype,
        begin=begin,
        end=end,
    )


def _parse_raw(name: str, raw: str, begin: int, end: int, where: str) -> SafeTensor:
    """Read the ggml type and dims that `export --dtype raw` recorded."""
    try:
        data = json.loads(raw)
        type_id, dims, big = data["type"], tuple(data["dims"]), data.get("byte_order") == "big"
        whole = len(dims) <= MAX_DIMS and all(type(number) is int and 0 <= number < 1 << 63 for number in dims)
        whole = whole and type(type_id) is int and 0 <= type_id < 1 << 32
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise FormatError(f"its metadata {RAW_PREFIX}... does not give type and dims", where=where)
    expected = nbytes(type_id, dims)
    if expected is not None and expected != end - begin:
        raise FormatError(f"{TYPES[type_id].name} {dims} takes {expected:,} bytes, not {end - begin:,}", where=where)
    return SafeTensor(name=name, dims=dims, type_id=type_id, dtype="U8", begin=begin, end=end, big_endian=big)


def _raw_record(tensor: SafeTensor) -> dict[str, Any]:
    record: dict[str, Any] = {"type": tensor.type_id, "dims": tensor.dims}
    return {**record, "byte_order": "big"} if tensor.big_endian else record


def serialize_safetensors(tensors: Sequence[SafeTensor]) -> bytes:
    """Serialize a head for `tensors`, padded with blanks to 8 bytes; their bytes must be contiguous.

    Records type and dims of raw tensors (dtype U8).
    """
    listing: dict[str, Any] = {}
    metadata = {RAW_PREFIX + tensor.name: json.dumps(_raw_record(tensor)) for tensor in tensors if tensor.dtype == "U8"}
    if metadata:
        listing["__metadata__"] = metadata
    for tensor in tensors:
        shape = [tensor.end - tensor.begin] if tensor.dtype == "U8" else list(reversed(tensor.dims))
        listing[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [tensor.begin, tensor.end]}
    text = json.dumps(listing, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_LISTING:
        raise FormatError(f"{len(tensors):,} tensors make a head of {len(text):,} bytes; at most {_MAX_LISTING:,}")
    return struct.pack("<Q", len(text)) + text
