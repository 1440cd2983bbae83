"""A tensor as a source of quantized bytes, which are computed when they are read.

Every type here is row-wise, so a range of bytes is a range of rows: any part of a tensor can be computed by itself, in
any thread, and an interrupted run resumes in the middle of a tensor.  Memory is one chunk of rows for each thread,
whatever the tensor's size.  Quantizers get the same floats as in llama-quantize: F16, BF16 and quantized types widened
to F32.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gguftool.errors import FormatError, printable
from gguftool.format.dequantize import Decoder, decoder_of
from gguftool.format.ggml import TypeTraits, type_name
from gguftool.format.imatrix import ImatrixEntry
from gguftool.format.kv import ByteOrder
from gguftool.format.quantizers import PLAIN_TYPES, Encode
from gguftool.model.model import Tensor
from gguftool.storage.sources.source import pieces_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 256 << 10  # elements computed at once: 1 MiB of F32, which stays in the processor's cache
_PREFERRED_ELEMENTS = 512 << 10  # one chunk of a thread: a second for the slowest types, 5 ms for the fastest
_PREFERRED_REMOTE_ELEMENTS = 8 << 20  # rows that come over a network: 16 MiB of BF16 in a request
MAX_ROW = 4 << 20  # elements; no less than a row can be computed, and real ones have up to 100,000
# Up to this magnitude no scale of half precision can overflow, whatever the type; beyond it, the result is checked.
_LARGEST_SAFE = 65504.0
# Quantizers sum weights times squares in F32, which ends at 3e38. Beyond that, libgguf writes NaN or aborts.
_LARGEST_WEIGHED_SQUARE = 1e30
_ANY_RANGE = frozenset({*PLAIN_TYPES, "MXFP4", "NVFP4"})  # these sum nothing


@lru_cache(maxsize=4)
def _weights(entry: ImatrixEntry, dims: tuple[int, ...]) -> NDArray[Any]:
    """The weights of all matrices, cached: those of a few hundred experts take 10 MB and time."""
    return entry.weights_for(dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedSource:
    """The elements of `tensor` in the type `traits`, row after row.

    `maker` names the back end and its version; `weighed` is the digest of the imatrix or empty, `entry` the tensor's
    entry in it. `decoder` reads the source, `encode` writes the type.
    """

    tensor: Tensor
    traits: TypeTraits
    maker: str
    weighed: str
    decoder: Decoder = field(compare=False, repr=False)
    encode: Encode = field(compare=False, repr=False)
    entry: ImatrixEntry | None = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the file that holds the tensor."""
        return self.tensor.padded_extent.source.name

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_size

    @property
    def width(self) -> int:
        """Elements in a row."""
        return self.tensor.info.dims[0]

    @property
    def rows(self) -> int:
        """Rows of all matrices."""
        return self.tensor.info.elements // self.width

    @property
    def row_size(self) -> int:
        """Bytes of a row in the target type."""
        return self.width // self.traits.block_size * self.traits.type_size

    @property
    def identity(self) -> str:
        """The input's identity, what is computed from it, and by which back end."""
        info, extent = self.tensor.info, self.tensor.extent
        return (
            f"{extent.source.identity} {extent.offset}+{extent.length} {type_name(info.type)} "
            f"{info.dims} to {self.traits.name} by {self.maker} imatrix {self.weighed or 'none'}"
        )

    @property
    def file_id(self) -> None:
        """None: computed bytes are not a file."""
        return

    @property
    def parallelism(self) -> int:
        """One thread for each processor core (back ends release the interpreter's lock), or more for connections."""
        return max(os.cpu_count() or 1, self.tensor.padded_extent.source.parallelism)

    @property
    def grain(self) -> int:
        """Bytes that one thread takes at once: fewer than from a file, as types differ a thousandfold in speed."""
        is_file = self.tensor.padded_extent.source.file_id is not None
        elements = _PREFERRED_ELEMENTS if is_file else _PREFERRED_REMOTE_ELEMENTS
        return max(elements // self.traits.block_size * self.traits.type_size, 32 * self.row_size)

    def descriptor(self) -> AbstractContextManager[int] | None:
        """None: the kernel cannot copy computed bytes."""
        return None

    def check_unchanged(self) -> None:
        """Raise `SourceError` if the input changed."""
        self.tensor.padded_extent.source.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Compute the bytes of the range, from the rows that it touches."""
        return b"".join(self.stream(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Compute `length` bytes from `offset`, a chunk of rows at a time.

        Raises `FormatError` with the row if it holds a NaN, an infinity, or a value that the type cannot hold.
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
        """Cut rows into chunks; with an imatrix a chunk stays within one matrix, as each has its own weights."""
        step = max(1, _CHUNK // self.width)
        dims = self.tensor.info.dims
        matrix = dims[1] if self.entry is not None and len(dims) > 1 else self.rows
        while first < last:
            end = min(last, first + step, (first // matrix + 1) * matrix)
            yield first, end
            first = end

    def _reader(self, begin: int, behind: int) -> Callable[[int, int], bytes]:
        """A function (first, last) -> bytes that reads the next rows; one request for all if rows are whole units."""
        extent, decoder = self.tensor.extent, self.decoder
        if self.width % decoder.unit:  # interleaved rows: a chunk may begin within a group of them
            return lambda first, last: extent.source.read_at(*self._units(first, last))
        row = self.width // decoder.unit * decoder.unit_bytes
        rows = pieces_of(extent.source.stream(extent.offset + begin * row, (behind - begin) * row))
        return lambda first, last: rows((last - first) * row)

    def _units(self, first: int, last: int) -> tuple[int, int]:
        """Offset and length of the whole units that hold rows `first` to `last`."""
        decoder = self.decoder
        start, end = first * self.width // decoder.unit, -(-last * self.width // decoder.unit)
        return self.tensor.extent.offset + start * decoder.unit_bytes, (end - start) * decoder.unit_bytes

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
        """Decode rows `first` to `last` from `data`, which may begin earlier, at the start of a unit."""
        import numpy as np

        width = self.width
        skipped = first * width % self.decoder.unit
        numbers = self.decoder.decode(data)[skipped : skipped + (last - first) * width].reshape(last - first, width)
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond F32 become infinities, which are refused
            return np.ascontiguousarray(numbers, dtype=np.float32)

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
        """Refuse values that abort a quantizer; `peak`: the largest magnitude in `rows`, which begin at `first`."""
        heaviest = 1.0 if weights is None else float(weights.max())
        if self.traits.name in _ANY_RANGE or heaviest * max(peak, 1.0) ** 2 <= _LARGEST_WEIGHED_SQUARE:
            return
        weighed = "" if weights is None else f" with weights of up to {heaviest:.3g} in the imatrix"
        raise FormatError(
            f"values of up to {peak:.3g}{weighed} are too large for {self.traits.name}: sums of their squares "
            "overflow; the source or the imatrix is damaged",
            source=self.name,
            where=self._row(first + int((abs(rows) == peak).any(axis=1).argmax())),
        )

    def _refuse_overflow(self, data: bytes | bytearray, first: int) -> None:
        """Check the result of large values: scales mostly have half precision, which ends at 65,504."""
        import numpy as np

        made = decoder_of(self.traits.id, ByteOrder.LITTLE, self.tensor.info.dims)
        if made is None:
            return
        finite = np.isfinite(made.decode(bytes(data)).reshape(-1, self.width)).all(axis=1)
        if not finite.all():
            raise FormatError(
                f"values are too large for {self.traits.name}: they would become infinities or NaN",
                source=self.name,
                where=self._row(first + int(np.argmin(finite))),
            )

    def _row(self, row: int) -> str:
        return f"tensor '{printable(self.tensor.info.name, 80)}', row {row:,}"
