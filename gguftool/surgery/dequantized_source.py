"""A source that computes: a quantized tensor read as floats.

It reads whole units (a block, a row, or the rows that a type interleaves). So any range can be read, and memory use
depends on the range, not on the tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum

from gguftool.errors import PlanError, printable
from gguftool.format.dequantize import Decoder, decoded_by, decoder_of, encode_floats
from gguftool.format.ggml import TYPES, type_name
from gguftool.format.kv import ByteOrder
from gguftool.model.model import Tensor
from gguftool.model.scales import Factor
from gguftool.record import record
from gguftool.storage.sources.source import Source, byte_reader

_STEP = 128 << 10  # bytes of the input that are computed at once


class FloatType(Enum):
    """The float types that can be computed."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def nbytes(self) -> int:
        """Bytes of an element."""
        return 4 if self is FloatType.F32 else 2


@record
class DequantizedSource(Source):
    """The elements of `tensor` as `dtype`, little-endian, in order, multiplied by `factor` if it has one."""

    tensor: Tensor
    dtype: FloatType
    decoder: Decoder
    factor: Factor | None = None

    @property
    def name(self) -> str:
        """The file that the tensor is in."""
        return self.tensor.padded_extent.source.name

    @property
    def size(self) -> int:
        """Bytes of all elements."""
        return self.tensor.info.elements * self.dtype.nbytes

    @property
    def identity(self) -> str:
        """The identity of the input, and the computation."""
        place = f"{self.tensor.extent.offset}+{self.tensor.nbytes}"
        scaled = "" if self.factor is None else f" {self.factor.identity}"
        kind = type_name(self.tensor.info.type)
        return f"{self.tensor.extent.source.identity} {place} {kind} as {self.dtype.name}{scaled}"

    @property
    def parallelism(self) -> int:
        """One thread a processor core (numpy computes without the interpreter's lock), or more connections."""
        return max(os.cpu_count() or 1, self.tensor.padded_extent.source.parallelism)

    @property
    def is_remote(self) -> bool:
        """Whether the input is."""
        return self.tensor.padded_extent.source.is_remote

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Compute `length` bytes from `offset` as the input arrives: in one request if it is remote."""
        extent, block = self.tensor.extent, self.decoder.unit * self.dtype.nbytes
        first, last = offset // block, -(-(offset + length) // block)
        place, size = extent.offset + first * self.decoder.unit_bytes, (last - first) * self.decoder.unit_bytes
        skip = offset - first * block
        step = max(_STEP // self.decoder.unit_bytes, 1) * self.decoder.unit_bytes
        take = byte_reader(extent.source.stream(place, size))
        for done in range(0, size, step):
            units = take(min(step, size - done))
            data = memoryview(self._encoded(units, first + done // self.decoder.unit_bytes))[skip:]
            data, skip = data[:length], 0
            length -= len(data)
            yield data

    def check_unchanged(self) -> None:
        """Raise `SourceError` if the input changed."""
        self.tensor.padded_extent.source.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Compute the elements that the range touches, and cut its bytes out."""
        width, unit = self.dtype.nbytes, self.decoder.unit
        first = offset // width // unit
        last = min(-(-(offset + length) // (width * unit)), self.tensor.info.elements // unit)
        extent = self.tensor.extent
        place, size = extent.offset + first * self.decoder.unit_bytes, (last - first) * self.decoder.unit_bytes
        data = self._encoded(extent.source.read_at(place, size), first)
        start = offset - first * unit * width
        return data[start : start + length]

    def _encoded(self, units: bytes, first: int) -> bytes:
        """Compute whole `units`, the tensor's from number `first` on."""
        numbers = self.decoder.decode(units)
        if self.factor is not None:
            numbers = self.factor.times(numbers, first * self.decoder.unit)
        return encode_floats(numbers, self.dtype.value)


def dequantized(
    tensor: Tensor, dtype: FloatType, byte_order: ByteOrder, factor: Factor | None = None
) -> DequantizedSource:
    """`tensor` as floats, times `factor`; raise `PlanError` for a type that cannot be computed here."""
    name, kind = printable(tensor.info.name), type_name(tensor.info.type)
    if tensor.type_nbytes is None and decoded_by(tensor.info.type):
        raise PlanError(f"'{name}' is {kind}, but its rows are not whole blocks")
    traits = TYPES.get(tensor.info.type)
    is_integer = traits is not None and traits.kind == "integer"  # not weights: floats would round them
    decoder = None if is_integer else decoder_of(tensor.info.type, byte_order, tensor.info.dims)
    if decoder is None:
        if decoded_by(tensor.info.type) == "gguftool" and byte_order is ByteOrder.LITTLE:
            raise PlanError(f"'{name}' is {kind}, and its rows cannot be dequantized in the shape {tensor.info.dims}")
        order = "" if byte_order is ByteOrder.LITTLE else " in a big-endian file"
        raise PlanError(f"'{name}' is {kind}{order}, which cannot be dequantized here; --dtype raw exports its bytes")
    return DequantizedSource(tensor=tensor, dtype=dtype, decoder=decoder, factor=factor)
