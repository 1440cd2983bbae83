"""The numbers of a tensor at another type: made as llama-quantize would make them, or found in a ready-made quant.

All types are row-wise, so any range of rows can be examined by itself, even in a remote model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguftool.errors import Notes, PlanError, printable
from gguftool.format.dequantize import decoder_of, to_f32
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ggml import TYPES, type_alias, type_name
from gguftool.format.imatrix import ImatrixEntry
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.record import record, replace
from gguftool.surgery.quantize.options import QuantizeOptions, Weights
from gguftool.surgery.quantize.quantized_source import MAX_ROW, QuantizedSource
from gguftool.surgery.quantize.quantizer import TensorQuantizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1 << 20  # elements at once: 4 MiB of F32, and three arrays of it for each thread


@record
class TypedTensor:
    """`tensor` of a model and the same tensor at another type, `typed`; `entry` has its weights in the imatrix.

    Both have the same dims; with unchecked widths, these are not the dims of the model's tensor. `maker` is the model
    that `typed` is taken from, None if it is computed.
    """

    tensor: Tensor
    typed: Tensor
    entry: ImatrixEntry | None
    maker: Model | None = None

    @property
    def type(self) -> str:
        """The type's name, as recipes spell it."""
        return type_alias(self.typed.info.type)


@dataclass(slots=True, kw_only=True)
class TypeMaker:
    """Makes tensors of `model` at other types.

    `weights`: the imatrix; `quants`: ready-made models; the first one that has a tensor at the wanted type gives it;
    `any_width`: if a type's blocks do not fit the rows, treat several rows as one, which no file can do.
    """

    model: Model
    weights: Weights | None = None
    quants: Sequence[Model] = ()
    engine: str = LLAMA_CPP
    any_width: bool = False
    _merged: dict[tuple[str, int], Weights] = field(default_factory=dict, init=False)

    def make(self, name: str, type_id: int) -> TypedTensor:
        """The tensor `name` at a type; raises a `PlanError` with the reason if that is impossible."""
        tensor = self.model.tensors[name]
        quant = self.quant_of(name, type_id)
        if quant is not None:
            return self._ready_made(tensor, quant.tensors[name], quant)
        wanted = TYPES[type_id]
        weights = self.weights
        if tensor.info.dims[0] % wanted.block_size:
            tensor, weights = self._with_wide_rows(tensor, wanted.block_size, type_alias(type_id))
        typed, entry = self._quantized(tensor, type_id, weights)
        return TypedTensor(tensor=tensor, typed=typed, entry=entry)

    def quant_of(self, name: str, type_id: int) -> Model | None:
        """The ready-made model that has the tensor `name` at a type, or None."""
        found = (quant for quant in self.quants if name in quant.tensors and quant.tensors[name].info.type == type_id)
        return next(found, None)

    def carried(self, typed: TypedTensor) -> QuantizedSource | None:
        """The values of `typed` in the type of the model's tensor; None if they already have that type."""
        own = self.model.tensors[typed.tensor.name].info.type
        if own == typed.typed.info.type:
            return None
        made, _ = self._quantized(typed.typed, own, None)
        source = made.padded_extent.source
        if not isinstance(source, QuantizedSource):
            raise PlanError(
                f"{typed.type} and {type_alias(own)} hold the same numbers in another order: nothing to measure",
                source=self.model.name,
                where=_named(typed.tensor),
            )
        return source

    def _ready_made(self, tensor: Tensor, found: Tensor, quant: Model) -> TypedTensor:
        if found.info.shape != tensor.info.shape:
            raise PlanError(
                f"'{printable(tensor.name)}' is {found.shape} there, but {tensor.shape} in {self.model.name}: this is "
                "a quant of another model",
                source=quant.name,
            )
        same = replace(found, info=replace(found.info, dims=tensor.info.dims))
        return TypedTensor(tensor=tensor, typed=same, entry=self._entry(tensor), maker=quant)

    def _entry(self, tensor: Tensor) -> ImatrixEntry | None:
        entry = None if self.weights is None else self.weights.imatrix.entries.get(tensor.name)
        return entry if entry is not None and entry.fits(tensor.info.dims) else None

    def _quantized(self, tensor: Tensor, type_id: int, weights: Weights | None) -> tuple[Tensor, ImatrixEntry | None]:
        notes = Notes()
        options = QuantizeOptions(engine=self.engine, requantize=True, weights=weights)
        way = f"--quants MODEL measures {type_alias(type_id)} in a quant that has it"
        typed, entry = TensorQuantizer(self.model, options, notes, way).quantize(tensor, type_id)
        if notes.problems:
            raise PlanError("; ".join(notes.problems), source=self.model.name, where=_named(tensor))
        return typed, entry

    def _with_wide_rows(self, tensor: Tensor, block: int, alias: str) -> tuple[Tensor, Weights | None]:
        """`tensor` with several rows joined into one, so that rows are whole blocks, and the weights for it."""
        width, *others = tensor.info.dims
        count = math.lcm(width, block) // width if width else 1
        rows = others[0] if others else 1
        if not self.any_width or rows % count or width * count > MAX_ROW:
            raise PlanError(
                f"rows of {width:,} are not whole blocks of {alias}; choose a type that fits",
                source=self.model.name,
                where=_named(tensor),
            )
        dims = (width * count, rows // count, *others[1:])
        wide = replace(tensor, info=replace(tensor.info, dims=dims))
        entry = self._entry(tensor)
        if self.weights is None or entry is None:
            return wide, None
        key = (tensor.name, count)
        if key not in self._merged:
            self._merged[key] = _repeated(self.weights, entry, tensor.info.dims, count)
        return wide, self._merged[key]


def _named(tensor: Tensor) -> str:
    return f"tensor '{printable(tensor.name, 80)}'"


def _repeated(weights: Weights, entry: ImatrixEntry, dims: tuple[int, ...], count: int) -> Weights:
    """The weights of one tensor, with those of each row repeated `count` times."""
    import numpy as np

    sums = np.tile(entry.weights_for(dims), (1, count))
    wide = ImatrixEntry(name=entry.name, sums=sums, counts=np.ones(len(sums), dtype=np.float32))
    from dataclasses import replace as replaced

    return replace(weights, imatrix=replaced(weights.imatrix, entries={entry.name: wide}))


# --- errors ----------------------------------------------------------------------------------------------------------


@record
class Sums:
    """Sums over elements: squares, squared errors, both weighted, and squared errors of the carrier."""

    squares: float = 0.0
    errors: float = 0.0
    weighted_squares: float = 0.0
    weighted_errors: float = 0.0
    carrier_errors: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        """Add up two parts."""
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in _SUMS})

    @property
    def error(self) -> float:
        """The relative squared error; 0 for a tensor of zeros that stays zero."""
        return _ratio(self.errors, self.squares)

    @property
    def weighted_error(self) -> float:
        """The same with the weights of the imatrix."""
        return _ratio(self.weighted_errors, self.weighted_squares)

    @property
    def carrier_error(self) -> float:
        """The carrier's own relative squared error."""
        return _ratio(self.carrier_errors, self.squares)


_SUMS = ("squares", "errors", "weighted_squares", "weighted_errors", "carrier_errors")


def _ratio(errors: float, squares: float) -> float:
    return float(f"{errors / squares:.6g}") if squares else 0.0


def row_chunks(typed: TypedTensor, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut ranges of rows into chunks that fit in memory; each is within one matrix."""
    step = max(1, _CHUNK // typed.tensor.info.width)
    dims = typed.tensor.info.dims
    matrix = dims[1] if len(dims) > 1 else typed.tensor.info.rows
    # Rows that a type interleaves are decoded together.
    step = max(step // 16, 1) * 16
    for first, last in ranges:
        start = first
        while start < last:
            end = min(last, start + step, (start // matrix + 1) * matrix)
            yield start, end
            start = end


def measure_rows(
    typed: TypedTensor,
    ranges: Iterable[tuple[int, int]],
    *,
    threads: int | None = None,
    carry: Callable[[int, NDArray[Any]], NDArray[Any]] | None = None,
) -> Sums:
    """Add up the errors of ranges of rows; `carry` takes the first row of a chunk and its values at the type.

    It returns the values as the carrier holds them. Raises `SourceError` if rows cannot be read, `FormatError` for NaN
    and infinities.
    """
    from concurrent.futures import ThreadPoolExecutor

    weights = None if typed.entry is None else typed.entry.weights_for(typed.tensor.info.dims)

    def one(chunk: tuple[int, int]) -> Sums:
        return _chunk_sums(typed, chunk, weights, carry)

    chunks = list(row_chunks(typed, ranges))
    count = threads or max(os.cpu_count() or 1, typed.tensor.padded_extent.source.parallelism)
    if count == 1 or len(chunks) == 1:
        return sum(map(one, chunks), Sums())
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(one, chunks), Sums())


def _chunk_sums(
    typed: TypedTensor,
    chunk: tuple[int, int],
    weights: NDArray[Any] | None,
    carry: Callable[[int, NDArray[Any]], NDArray[Any]] | None,
) -> Sums:
    import numpy as np

    first, last = chunk
    exact = _rows(typed.tensor, first, last).astype(np.float64)
    values = _rows(typed.typed, first, last)
    squares, errors = exact * exact, np.square(exact - values)
    sums = Sums(squares=float(squares.sum()), errors=float(errors.sum()))
    if not (math.isfinite(sums.squares) and math.isfinite(sums.errors)):
        raise PlanError(
            f"rows {first:,} to {last:,} hold NaN or infinities, or become them as {typed.type}",
            source=typed.tensor.padded_extent.source.name,
            where=_named(typed.tensor),
        )
    if weights is not None:
        dims = typed.tensor.info.dims
        own = weights[first // dims[1] % len(weights) if len(dims) > 1 else 0].astype(np.float64)
        sums = replace(
            sums,
            weighted_squares=float((squares.sum(0) * own).sum()),
            weighted_errors=float((errors.sum(0) * own).sum()),
        )
    if carry is not None:
        carried = carry(first, values)
        sums = replace(sums, carrier_errors=float(np.square(carried.astype(np.float64) - values).sum()))
    return sums


def _rows(tensor: Tensor, first: int, last: int) -> NDArray[Any]:
    """Rows `first` to `last` as F32; raises `PlanError` for a type that cannot be decoded here."""
    width = tensor.info.width
    decoder = decoder_of(tensor.info.type, tensor.byte_order, tensor.info.dims)
    if decoder is None or tensor.type_nbytes is None or tensor.sizing is Sizing.CONFLICT:
        raise PlanError(
            f"is {type_name(tensor.info.type)}, which cannot be dequantized here",
            source=tensor.padded_extent.source.name,
            where=_named(tensor),
        )
    offset, length, skipped = decoder.span(first * width, last * width)
    extent = tensor.extent
    numbers = decoder.decode(extent.source.read_at(extent.offset + offset, length))[
        skipped : skipped + (last - first) * width
    ]
    return to_f32(numbers).reshape(last - first, width)
