"""A source that computes: a tensor quantized while it is read. It turns rows of floats into blocks of the new type.

Every type here is row-wise, so a range of bytes is a range of rows: any part of a tensor can be computed by itself, in
any thread, and an interrupted run resumes in the middle. Memory use is a chunk of rows for each thread, whatever the
tensor's size. The input floats are those that llama-quantize uses: F16, BF16 and quantized types widened to F32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gguftool.errors import FormatError, printable
from gguftool.format.dequantize import Decoder, decoder_of, to_f32
from gguftool.format.ggml import TypeTraits, type_name
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import ByteOrder
from gguftool.format.quantizers import Encode
from gguftool.model.model import Tensor
from gguftool.model.scales import Factor
from gguftool.storage.sources.source import Source, byte_reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 256 << 10  # elements computed at once: 1 MiB of F32, which stays in the processor's cache
_LOCAL_CHUNK = 512 << 10  # elements worth a thread's while: a second of the slowest types, 5 ms of the fastest
_REMOTE_CHUNK = 8 << 20  # elements, if the rows come over a network: 16 MiB of BF16 a request
MAX_ROW = 4 << 20  # elements; a row is the smallest unit of work, and real ones have up to 100,000
# Up to this, half-precision scales cannot overflow, whatever the type; above it, the output is checked.
_LARGEST_SAFE = 65504.0
# Quantizers add up weights times squares in F32, which ends at 3e38. Above that, libgguf writes NaN or aborts.
_LARGEST_WEIGHED_SQUARE = 1e30
_ANY_RANGE = frozenset({"float", "fp4"})  # kinds of types for which nothing is added up


@lru_cache(maxsize=4)
def _weights(entry: ImatrixEntry, dims: tuple[int, ...]) -> NDArray[Any]:
    """The weights of all matrices, cached: for a few hundred experts they take 10 MB, and time."""
    return entry.weights_for(dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedSource(Source):
    """The elements of `tensor` in the type `traits`, row after row.

    `maker` names the back end and its version; `weighed` is the imatrix' digest, with `entry` the tensor's own weights.
    `decoder` reads the input, `encode` writes the new type; `factor` is multiplied in before.
    """

    tensor: Tensor
    traits: TypeTraits
    maker: str
    weighed: str
    decoder: Decoder = field(compare=False, repr=False)
    encode: Encode = field(compare=False, repr=False)
    entry: ImatrixEntry | None = field(compare=False, repr=False)
    factor: Factor | None = None

    @property
    def name(self) -> str:
        """The file that the tensor is in."""
        return self.tensor.padded_extent.source.name

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.tensor.info.rows * self.row_size

    @property
    def row_size(self) -> int:
        """Bytes of a row in the new type."""
        return self.tensor.info.width // self.traits.block_size * self.traits.type_size

    @property
    def identity(self) -> str:
        """The identity of the input, of the computation, and of the back end."""
        info, extent = self.tensor.info, self.tensor.extent
        return (
            f"{extent.source.identity} {extent.offset}+{extent.length} {type_name(info.type)} "
            f"{info.dims} to {self.traits.name} by {self.maker} imatrix {self.weighed or 'none'}"
            f"{'' if self.factor is None else f' {self.factor.identity}'}"
        )

    @property
    def parallelism(self) -> int:
        """One thread a processor core (back ends compute without the interpreter's lock), or more connections."""
        return max(os.cpu_count() or 1, self.tensor.padded_extent.source.parallelism)

    @property
    def preferred_chunk(self) -> int:
        """Bytes that make a thread worthwhile: fewer than for a file, because types differ a thousandfold in speed."""
        elements = _REMOTE_CHUNK if self.is_remote else _LOCAL_CHUNK
        return max(elements // self.traits.block_size * self.traits.type_size, 32 * self.row_size)

    @property
    def is_remote(self) -> bool:
        """Whether the input is."""
        return self.tensor.padded_extent.source.is_remote

    def check_unchanged(self) -> None:
        """Raise `SourceError` if the input changed."""
        self.tensor.padded_extent.source.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Compute the rows that the range touches, and cut its bytes out."""
        return b"".join(self.stream(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Compute `length` bytes from `offset`, a chunk of rows at a time.

        Raises `FormatError` that names the row, if there is a NaN or an infinity, or the type cannot hold a value.
        """
        end = offset + length
        weights = None if self.entry is None else _weights(self.entry, self.tensor.info.dims)
        begin, behind = offset // self.row_size, -(-end // self.row_size)
        read = self._reader(begin, behind)
        for first, last in self._chunks(begin, behind):
            data = memoryview(self._quantize(first, self._floats(read(first, last), first, last), weights))
            start = first * self.row_size
            yield data[max(offset - start, 0) : end - start]

    def _chunks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Cut rows into chunks; with weights, a chunk is within one matrix, because each matrix has its own weights."""
        step = max(1, _CHUNK // self.tensor.info.width)
        dims = self.tensor.info.dims
        matrix = dims[1] if self.entry is not None and len(dims) > 1 else self.tensor.info.rows
        while first < last:
            end = min(last, first + step, (first // matrix + 1) * matrix)
            yield first, end
            first = end

    def _reader(self, begin: int, behind: int) -> Callable[[int, int], bytes]:
        """A function that reads the input of rows `first` to `last`; in one request, if rows are whole units."""
        extent, decoder = self.tensor.extent, self.decoder
        if self.tensor.info.width % decoder.unit:  # rows that are interleaved: a chunk may begin within a group of them
            return lambda first, last: extent.source.read_at(*self._units(first, last))
        row = self.tensor.info.width // decoder.unit * decoder.unit_bytes
        rows = byte_reader(extent.source.stream(extent.offset + begin * row, (behind - begin) * row))
        return lambda first, last: rows((last - first) * row)

    def _units(self, first: int, last: int) -> tuple[int, int]:
        """Offset and length of the whole units that hold rows `first` to `last`."""
        width = self.tensor.info.width
        offset, length, _ = self.decoder.span(first * width, last * width)
        return self.tensor.extent.offset + offset, length

    def _quantize(self, first: int, rows: NDArray[Any], weights: NDArray[Any] | None) -> bytes | bytearray:
        low, high = float(rows.min()), float(rows.max())
        safe = low >= -_LARGEST_SAFE and high <= _LARGEST_SAFE  # NaN compares as false
        if not safe:
            self._refuse_not_finite(rows, first)
        own = None
        if weights is not None:
            own = weights[first // self.tensor.info.dims[1] % len(weights)] if len(weights) > 1 else weights[0]
        self._refuse_abort(rows, max(-low, high), own, first)
        data = self.encode(rows, own)
        if not safe:
            self._refuse_overflow(data, first)
        return data

    def _floats(self, data: bytes, first: int, last: int) -> NDArray[Any]:
        """Decode rows `first` to `last`; `data` may begin earlier, at a unit."""
        import numpy as np

        width = self.tensor.info.width
        _, _, skipped = self.decoder.span(first * width, last * width)
        numbers = self.decoder.decode(data)[skipped : skipped + (last - first) * width]
        rows = to_f32(numbers).reshape(last - first, width)
        if self.factor is None:
            return rows
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # values that F32 cannot hold become infinities, and are refused
            return self.factor.times(rows, first * width)

    def _refuse_not_finite(self, rows: NDArray[Any], first: int) -> None:
        import numpy as np

        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            row, column = (int(index) for index in bad[0])
            found = "NaN" if np.isnan(rows[row, column]) else "an infinity"
            raise FormatError(
                f"{found} in column {column:,}: only finite numbers can be quantized; the source is damaged",
                source=self.name,
                where=self._row(first + row),
            )

    def _refuse_abort(self, rows: NDArray[Any], peak: float, weights: NDArray[Any] | None, first: int) -> None:
        """Refuse values that crash a quantizer; `peak` is the largest magnitude in `rows`, from row `first` on."""
        heaviest = 1.0 if weights is None else float(weights.max())
        if self.traits.kind in _ANY_RANGE or heaviest * max(peak, 1.0) ** 2 <= _LARGEST_WEIGHED_SQUARE:
            return
        weighed = "" if weights is None else f" with weights of up to {heaviest:.3g} in the imatrix"
        raise FormatError(
            f"values of up to {peak:.3g}{weighed} are too large for {self.traits.name}: sums of their squares "
            "overflow; the source or the imatrix is damaged",
            source=self.name,
            where=self._row(first + int((abs(rows) == peak).any(axis=1).argmax())),
        )

    def _refuse_overflow(self, data: bytes | bytearray, first: int) -> None:
        """Check the output for overflow: most scales have half precision, which ends at 65,504."""
        import numpy as np

        made = decoder_of(self.traits.id, ByteOrder.LITTLE, self.tensor.info.dims)
        if made is None:
            return
        finite = np.isfinite(made.decode(bytes(data)).reshape(-1, self.tensor.info.width)).all(axis=1)
        if not finite.all():
            raise FormatError(
                f"values are too large for {self.traits.name}: they would become infinities or NaN",
                source=self.name,
                where=self._row(first + int(np.argmin(finite))),
            )

    def _row(self, row: int) -> str:
        return f"tensor '{printable(self.tensor.info.name, 80)}', row {row:,}"
