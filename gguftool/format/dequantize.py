"""Decode tensor bytes to numbers.

The type table says which package decodes a type (`decoded_by` in `format/ggml.py`). numpy decodes plain numbers. The
types of llama.cpp are decoded by `libgguf` if it is installed (it is several times as fast as `gguf.quants` and gives
the same floats), else by `gguf.quants`. The tables in `format/quants/` decode the others.

Decoding works in whole units.  For plain runs of blocks a unit is a block, so a range of blocks is a range of bytes
whatever the row length.  If rows have their own scale or are interleaved, a unit is a row or a group of rows.  Memory
use depends on the number of units, not on the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from gguftool.format.ggml import TYPES, TypeTraits, find_type
from gguftool.format.kv import ByteOrder
from gguftool.format.quants.packing import Repack
from gguftool.format.quants.repacks import REPACKS
from gguftool.format.quants.types import LOOKUPS
from gguftool.record import record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Decode = Callable[[bytes], NDArray[Any]]

# Elements of the longest unit to decode, 16 rows of 262,144: a file may claim endless rows.
MAX_UNIT = 1 << 22


@record
class Decoder:
    """Decode bytes in order: `unit` elements take `unit_bytes` bytes; `decode` takes whole units."""

    unit: int
    unit_bytes: int
    decode: Callable[[bytes], NDArray[Any]]

    def span(self, first: int, last: int) -> tuple[int, int, int]:
        """Offset and length in bytes of the units that hold elements `first` to `last`; how many they hold before."""
        begin, end = first // self.unit, -(-last // self.unit)
        return begin * self.unit_bytes, (end - begin) * self.unit_bytes, first - begin * self.unit


@lru_cache(maxsize=256)
def decoder_of(type_id: int, byte_order: ByteOrder, dims: tuple[int, ...]) -> Decoder | None:
    """Return the decoder of tensors of a type and of `dims` (in ggml order).

    None if the type has no decoder.  For types with rows as units, also None if rows are not whole blocks or are longer
    than `MAX_UNIT`, or if their number does not divide by the interleave.
    """
    traits = TYPES.get(type_id)
    if traits is None or not traits.decoded_by:
        return None
    if traits.decoded_by == "numpy":
        return _by_blocks(traits, _plain(traits, byte_order))
    if byte_order is not ByteOrder.LITTLE:
        return None
    if traits.decoded_by == "repack" or traits.row_meta_size:
        fits = (dims[1] if len(dims) > 1 else 1) % traits.interleaved_rows == 0
        return _by_rows(traits, dims[0]) if dims and fits else None
    decode = _decode_blocks(traits)
    return None if decode is None else _by_blocks(traits, _or_nothing(decode))


def decoded_by(type_id: int) -> str:
    """Return the package that decodes a type: ``numpy``, ``gguf``, ``gguftool``, or empty if none does.

    ``gguf`` stands for libgguf, too: it changes the time, not the floats.
    """
    traits = TYPES.get(type_id)
    if traits is None:
        return ""
    return "gguftool" if traits.decoded_by in ("lookup", "repack") else traits.decoded_by


def item_size(type_id: int) -> int | None:
    """Return the bytes per number of a plain type, to change its byte order; None for blocks."""
    traits = TYPES.get(type_id)
    return traits.type_size if traits and traits.dtype else None


# --- units -----------------------------------------------------------------------------------------------------------


def _by_blocks(traits: TypeTraits, decode: Decode) -> Decoder:
    return Decoder(unit=traits.block_size, unit_bytes=traits.type_size, decode=decode)


def _by_rows(traits: TypeTraits, row_length: int) -> Decoder | None:
    """Return the decoder of a type with a group of rows as unit: their scales, then their blocks."""
    rows, repack = traits.interleaved_rows, REPACKS.get(traits.name)
    unit = rows * row_length
    if not 0 < unit <= MAX_UNIT or row_length % traits.block_size or (repack is None and rows > 1):
        return None
    row_bytes = row_length // traits.block_size * traits.type_size
    block_bytes = repack.base_bytes if repack else traits.type_size
    decode = _row_blocks(repack.base if repack else traits.name)
    if decode is None or row_bytes % block_bytes:  # BF16_R16 interleaves numbers by twos
        return None
    units = _RowUnits(
        rows=rows, meta_bytes=traits.row_meta_size, row_bytes=row_bytes, block_bytes=block_bytes, repack=repack
    )
    return Decoder(unit=unit, unit_bytes=units.nbytes, decode=_or_nothing(lambda data: decode(*units.split(data))))


@record
class _RowUnits:
    """Groups of `rows` rows: first `meta_bytes` of each row, then the blocks of all, interleaved by `repack` if any."""

    rows: int
    meta_bytes: int
    row_bytes: int
    block_bytes: int
    repack: Repack | None

    @property
    def nbytes(self) -> int:
        """Bytes of one group."""
        return self.rows * (self.meta_bytes + self.row_bytes)

    def split(self, data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
        """Split whole groups into the rows' metadata (rows x bytes) and the plain blocks in order (blocks x bytes)."""
        import numpy as np

        units = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.nbytes)
        meta = self.rows * self.meta_bytes
        blocks = units[:, meta:].reshape(-1, self.rows * self.block_bytes)
        if self.repack:
            plain = self.repack.unpack(blocks).reshape(len(units), -1, self.rows, self.block_bytes)
            blocks = np.ascontiguousarray(plain.swapaxes(1, 2))
        return units[:, :meta].reshape(len(units) * self.rows, -1), blocks.reshape(-1, self.block_bytes)


def _row_blocks(name: str) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None:
    """Return the function that decodes row metadata and blocks of the plain type `name`."""
    lookup, traits = LOOKUPS.get(name), find_type(name)
    if lookup is None:
        plain = None if traits is None else _decode_blocks(traits) or _plain_of(traits)
        return None if plain is None else lambda _, blocks: plain(blocks.tobytes())

    def decode(metas: NDArray[Any], blocks: NDArray[Any]) -> NDArray[Any]:
        import numpy as np

        with np.errstate(all="ignore"):  # scales from arbitrary bytes may be NaN or overflow: counted later
            scales = lookup.row_scales(metas).repeat(len(blocks) // len(metas)) if metas.size else None
            return lookup.decode(blocks, scales).reshape(-1)

    return decode


def _or_nothing(decode: Decode) -> Decode:
    """Wrap `decode` to return no numbers for no bytes: the packages raise an error."""
    import numpy as np

    return lambda data: decode(data) if data else np.empty(0, dtype=np.float32)


# --- blocks ----------------------------------------------------------------------------------------------------------


def _plain_of(traits: TypeTraits) -> Decode | None:
    return _plain(traits, ByteOrder.LITTLE) if traits.dtype else None


def _plain(traits: TypeTraits, byte_order: ByteOrder) -> Decode:
    dtype, is_bf16 = byte_order.value + traits.dtype, traits.name == "BF16"

    def decode(data: bytes) -> NDArray[Any]:
        import numpy as np

        numbers = np.frombuffer(data, dtype=dtype)
        # BF16 is the upper half of an F32.
        return (numbers.astype("u4") << 16).view("f4") if is_bf16 else numbers

    return decode


def _decode_blocks(traits: TypeTraits) -> Decode | None:
    """Return the fastest decoder of a type that is a plain run of blocks."""
    if traits.decoded_by == "gguf":
        return _by_libgguf(traits) or _by_gguf(traits)
    return _by_lookup(traits)


@cache
def _by_libgguf(traits: TypeTraits) -> Decode | None:
    """Wrap `libgguf.dequantize_rows`; None if libgguf is not installed or does not know the type."""
    import numpy as np

    try:
        from libgguf import GGML_QUANT_SIZES, dequantize_rows
    except ImportError:
        return None
    if {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}.get(traits.id) != _sizes(traits):
        return None

    def decode(data: bytes) -> NDArray[Any]:
        row = np.frombuffer(data, dtype=np.uint8)
        numbers: NDArray[Any] = dequantize_rows(row, traits.id)
        return numbers

    return decode if _works(decode, traits, ValueError) else None


@cache
def _by_gguf(traits: TypeTraits) -> Decode | None:
    """Wrap `gguf.quants.dequantize`; None if gguf lacks the type or gives it another size."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType.__members__.get(traits.name)
    if kind is None or GGML_QUANT_SIZES.get(kind) != _sizes(traits):
        return None

    def decode(data: bytes) -> NDArray[Any]:
        row = np.frombuffer(data, dtype=np.uint8)  # one long row: gguf processes 16 rows at a time
        with np.errstate(all="ignore"):  # scales from arbitrary bytes may be NaN or overflow: counted later
            numbers: NDArray[Any] = dequantize(row, kind)
        return numbers

    return decode if _works(decode, traits, NotImplementedError) else None


def _by_lookup(traits: TypeTraits) -> Decode | None:
    import numpy as np

    lookup = LOOKUPS.get(traits.name)
    if lookup is None:
        return None

    def decode(data: bytes) -> NDArray[Any]:
        blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, traits.type_size)
        with np.errstate(all="ignore"):  # as above
            return lookup.decode(blocks, None).reshape(-1)

    return decode


def _sizes(traits: TypeTraits) -> tuple[int, int]:
    return traits.block_size, traits.type_size


def _works(decode: Decode, traits: TypeTraits, refusal: type[Exception]) -> bool:
    """Whether a package really decodes a type of which it knows the size: neither package has a list."""
    try:
        decode(bytes(traits.type_size))
    except refusal:
        return False
    return True


def to_f32(numbers: NDArray[Any]) -> NDArray[Any]:
    """Convert numbers of any float type to a contiguous array of F32; values too large for F32 become infinities.

    F16 is widened by shifts and one product, which is exact and takes a fifth of the time of NumPy's own conversion.
    """
    import numpy as np

    if numbers.dtype == np.dtype("<f2"):
        bits = numbers.view("<i2").astype("<i4")
        bits <<= 13
        bits &= np.int32(-0x70002000)  # the sign, exponent and fraction, without the copies of the sign between them
        wide: NDArray[Any] = bits.view("<f4")
        wide *= np.float32(2.0**112)  # the exponent's bias is 127 instead of 15
        if numbers.size == 0 or (
            wide.max() < 65536 and wide.min() > -65536
        ):  # infinities and NaN have the exponent after the last one
            return wide
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(numbers, dtype=np.float32)


def encode_floats(values: NDArray[Any], dtype: str) -> bytes:
    """Encode `values` as little-endian ``f32``, ``f16`` or ``bf16``, rounded to nearest, ties to even.

    Values beyond the range of f16 become infinities and NaN stays NaN, as in ggml (ggml/src/ggml-impl.h).
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
