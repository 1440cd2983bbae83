"""Tensor bytes to numbers, for the types whose meaning is known here: plain ones, and those of `gguf.quants`.

Numbers are taken in whole blocks. All types known here are plain runs of blocks (no row meta, no interleaved rows), so
a range of blocks is a range of bytes whatever the row length, and memory stays bounded however long a row is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from gguftool.format.ggml import TYPES
from gguftool.format.kv import ByteOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Type name to numpy's dtype without byte order.
_PLAIN = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "BF16": "u2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Turns bytes into numbers: `block_size` elements are `block_bytes` bytes; `decode` takes whole blocks."""

    block_size: int
    block_bytes: int
    decode: Callable[[bytes], NDArray[Any]]


@cache
def decoder_of(type_id: int, byte_order: ByteOrder) -> Decoder | None:
    """Return the decoder of a tensor type, None where nobody here knows what its bytes mean."""
    traits = TYPES.get(type_id)
    if traits is None:
        return None
    if traits.name in _PLAIN:
        decode = _plain(traits.name, byte_order)
    elif byte_order is ByteOrder.LITTLE and traits.row_meta_size == 0 and traits.interleaved_rows == 1:
        found = _quantized(traits.name, traits.block_size, traits.type_size)
        if found is None:
            return None
        decode = found
    else:
        return None
    return Decoder(block_size=traits.block_size, block_bytes=traits.type_size, decode=decode)


def item_size(type_id: int) -> int | None:
    """Return the bytes of one number of a plain type, by which its byte order can be changed; None for blocks."""
    traits = TYPES.get(type_id)
    return traits.type_size if traits and traits.name in _PLAIN else None


def _plain(name: str, byte_order: ByteOrder) -> Callable[[bytes], NDArray[Any]]:
    dtype = byte_order.value + _PLAIN[name]

    def decode(data: bytes) -> NDArray[Any]:
        import numpy as np

        numbers = np.frombuffer(data, dtype=dtype)
        # BF16 is the upper half of an F32.
        return (numbers.astype("u4") << 16).view("f4") if name == "BF16" else numbers

    return decode


def _quantized(name: str, block_size: int, type_size: int) -> Callable[[bytes], NDArray[Any]] | None:
    """Return a function around `gguf.quants.dequantize`, None where gguf lacks the type or sizes it otherwise."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType.__members__.get(name)
    if kind is None or GGML_QUANT_SIZES.get(kind) != (block_size, type_size):
        return None

    def decode(data: bytes) -> NDArray[Any]:
        row = np.frombuffer(data, dtype=np.uint8)  # one long row: gguf works on 16 rows at a time
        with np.errstate(all="ignore"):  # scales of any bytes at all may be NaN or overflow: counted later
            numbers: NDArray[Any] = dequantize(row, kind)
        return numbers

    try:
        decode(bytes(type_size))
    except NotImplementedError:
        return None
    return decode


def encode_floats(values: NDArray[Any], dtype: str) -> bytes:
    """Return `values` as little-endian ``f32``, ``f16`` or ``bf16``, rounded to nearest, ties to even.

    Beyond the range of f16 is an infinity and NaN stays NaN, as in ggml (ggml/src/ggml-impl.h).
    """
    import numpy as np

    if dtype == "f32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = values.astype("<f4", copy=False).view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet = (bits >> 16) | 64
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype("<u2").tobytes()
