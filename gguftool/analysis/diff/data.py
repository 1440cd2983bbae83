"""Tensor data of two models side by side: the same bytes, or how far apart.

Data is streamed, one chunk of each side at a time, whatever the tensor's size. A few threads share the tensors, because
reading and numpy both release the interpreter lock. Bytes are compared until they differ; only then are both sides
dequantized, from the start, because an error is relative to the whole tensor. A weight with a scale
(`model/scales.py`) is multiplied by it, as in llama.cpp.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from gguftool.analysis.diff.figures import Errors, ErrorSums, errors_between, errors_of, total
from gguftool.analysis.imatrix import check_imatrix
from gguftool.format.dequantize import Decoder, decoder_of, item_size
from gguftool.format.ggml import type_name
from gguftool.format.header import DEFAULT_ALIGNMENT
from gguftool.format.imatrix import Imatrix, ImatrixEntry
from gguftool.model.model import Model, Tensor
from gguftool.model.roles import tensor_place
from gguftool.model.scales import Factor, factor_of
from gguftool.record import record
from gguftool.storage.system.threads import Background, CancelledError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class By(Enum):
    """How errors are added up."""

    TENSOR = "tensor"
    ROLE = "role"
    LAYER = "layer"


class DataVerdict(Enum):
    """The result of comparing the data of one tensor."""

    SAME = "same"
    DIFFERENT = "same type, different bytes"
    OTHER_TYPE = "other type"
    NOT_COMPARED = "not compared"


@record
class TensorData:
    """One tensor of both models, with `errors` if numbers were compared, else with the reason in `note`.

    `weighted` says whether the imatrix has weights for it, None without an imatrix.
    """

    name: str
    verdict: DataVerdict
    old_type: str
    new_type: str
    old_nbytes: int
    new_nbytes: int
    errors: Errors | None
    note: str
    weighted: bool | None


@record
class DataTotal:
    """The tensors of one role or layer (`name`): counts by verdict, and the errors of all that differ.

    `measured` counts those that differ and are part of `errors`; `notes` give the reasons for the others. `weighted`
    counts those that have weights in the imatrix, None without an imatrix.
    """

    name: str
    tensors: int
    same: int
    different: int
    other_type: int
    not_compared: int
    measured: int
    errors: Errors | None
    notes: tuple[str, ...]
    weighted: int | None


@record
class DataDiff:
    """The tensors that both models have, in A's order; `totals` are grouped by `by`, `whole` is over all.

    `imatrix` is the file that the weights come from, or None.
    """

    by: By
    tensors: tuple[TensorData, ...]
    totals: tuple[DataTotal, ...]
    whole: DataTotal
    imatrix: str | None

    @property
    def differs(self) -> bool:
        """Whether any tensor's data differs, or could not be compared."""
        return self.whole.same != self.whole.tensors


@record
class DataOptions:
    """How to compare data: `jobs` threads; `progress` gets the bytes of A compared since its last call.

    An `imatrix`, called `imatrix_name`, adds weighted errors. Bytes are compared `chunk_bytes` at a time, numbers
    `chunk_elements` at a time: 131,072 take about 4 MiB per thread with gguf's intermediate arrays.
    """

    by: By = By.TENSOR
    jobs: int = 0
    imatrix: Imatrix | None = None
    imatrix_name: str = "imatrix"
    progress: Callable[[int], object] = lambda nbytes: None
    chunk_bytes: int = 1 << 20
    chunk_elements: int = 1 << 17


@record
class _Side:
    tensor: Tensor
    factor: Factor | None

    @property
    def decoder(self) -> Decoder | None:
        if self.tensor.type_nbytes is None:
            return None
        return decoder_of(self.tensor.info.type, self.tensor.byte_order, self.tensor.info.dims)

    def read(self, offset: int, length: int) -> bytes:
        extent = self.tensor.extent
        return extent.source.read_at(extent.offset + offset, length)


@record
class _Measured:
    """A tensor's report, and the sums behind its errors."""

    report: TensorData
    sums: ErrorSums | None


class _Progress:
    """Progress on one tensor: the furthest position that either pass over it reached."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report = report
        self.done = 0

    def reach(self, position: int) -> None:
        """Report that the tensor's bytes up to `position` are compared; raises `_Stopped` to end the thread."""
        self.report(max(0, position - self.done))
        self.done = max(position, self.done)


def data_size(a: Model, b: Model, wanted: Callable[[str], bool]) -> int:
    """Count the bytes of A that `diff_data` compares, for progress."""
    return sum(tensor.nbytes for name, tensor in a.tensors.items() if name in b.tensors and wanted(name))


def diff_data(a: Model, b: Model, wanted: Callable[[str], bool], options: DataOptions) -> DataDiff:
    """Compare the data of all `wanted` tensors that both models have.

    Raises `SourceError` if a file cannot be read or changed during the run, `PlanError` if the imatrix belongs to
    another model.
    """
    names = [name for name in a.tensors if name in b.tensors and wanted(name)]
    if options.imatrix is not None:
        check_imatrix(options.imatrix, a, options.imatrix_name, frozenset(names).__contains__)
    pairs = [(name, _side(a, name), _side(b, name)) for name in names]
    measured = _in_threads(pairs, options)
    return DataDiff(
        by=options.by,
        tensors=tuple(one.report for one in measured),
        totals=tuple(_totals(measured, options.by)),
        whole=_total("all", measured),
        imatrix=options.imatrix_name if options.imatrix else None,
    )


def _side(model: Model, name: str) -> _Side:
    return _Side(tensor=model.tensors[name], factor=factor_of(model.tensors, name))


def _in_threads(pairs: Sequence[tuple[str, _Side, _Side]], options: DataOptions) -> list[_Measured]:
    stop, lock = threading.Event(), threading.Lock()

    def progress(nbytes: int) -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            options.progress(nbytes)

    def measure(pair: tuple[str, _Side, _Side]) -> _Measured:
        return _compare(*pair, progress=_Progress(progress), options=options)

    jobs = options.jobs or min(4, os.cpu_count() or 1)
    running = Background([partial(measure, pair) for pair in pairs], jobs, stop)
    try:
        return running.wait()
    finally:
        running.cancel()


# --- one tensor ------------------------------------------------------------------------------------------------------


def _compare(name: str, old: _Side, new: _Side, progress: _Progress, options: DataOptions) -> _Measured:
    imatrix = options.imatrix
    verdict, note = _verdict(old, new, progress, options.chunk_bytes)
    sums, entry = None, _entry_of(old.tensor, imatrix)
    if verdict in {DataVerdict.DIFFERENT, DataVerdict.OTHER_TYPE}:
        decoders = old.decoder, new.decoder
        unknown = {
            type_name(side.tensor.info.type): None
            for side, decoder in zip((old, new), decoders, strict=True)
            if decoder is None
        }
        if unknown:
            note = note or f"no dequantizer for {' and '.join(unknown)}"
        else:
            sums = total(_error_chunks(old, new, progress, entry, options.chunk_elements))
    progress.reach(old.tensor.nbytes)
    report = TensorData(
        name=name,
        verdict=verdict,
        old_type=type_name(old.tensor.info.type),
        new_type=type_name(new.tensor.info.type),
        old_nbytes=old.tensor.nbytes,
        new_nbytes=new.tensor.nbytes,
        errors=errors_of(sums) if sums else None,
        note=note,
        weighted=None if imatrix is None else entry is not None,
    )
    return _Measured(report=report, sums=sums)


def _verdict(old: _Side, new: _Side, progress: _Progress, chunk: int) -> tuple[DataVerdict, str]:
    x, y = old.tensor.info, new.tensor.info
    if x.shape != y.shape:
        return DataVerdict.NOT_COMPARED, "shapes differ"
    if x.type != y.type:
        return DataVerdict.OTHER_TYPE, ""
    word = item_size(x.type) if old.tensor.byte_order is not new.tensor.byte_order else 1
    if word is None:
        return (
            DataVerdict.NOT_COMPARED,
            "byte orders differ, and the layout of the blocks is not known well enough to swap bytes",
        )
    same = _same_bytes(old, new, word, progress, chunk) and _same_factor(old.factor, new.factor)
    return (DataVerdict.SAME if same else DataVerdict.DIFFERENT), ""


def _same_factor(old: Factor | None, new: Factor | None) -> bool:
    """Whether the engine multiplies both weights by the same scale: with another, equal bytes mean other numbers."""
    if old is None or new is None:
        return old is new
    return bool((old.tensor.numpy().reshape(-1) == new.tensor.numpy().reshape(-1)).all())


def _same_bytes(old: _Side, new: _Side, word: int, progress: _Progress, chunk: int) -> bool:
    """Whether both hold the same bytes; if `word` is more than 1, words of that size are byte-swapped on one side."""
    length = min(old.tensor.nbytes, new.tensor.nbytes)
    for offset in range(0, length, chunk):
        size = min(chunk, length - offset)
        left, right = old.read(offset, size), new.read(offset, size)
        if left != (_words_reversed(right, word) if word > 1 else right):
            return False
        progress.reach(offset + size)
    return _only_padding_behind(old, new, length)


def _words_reversed(data: bytes, size: int) -> bytes:
    import numpy as np

    return np.frombuffer(data, dtype=f"u{size}").byteswap().tobytes()


def _only_padding_behind(old: _Side, new: _Side, length: int) -> bool:
    """Whether the extra bytes of the longer side are padding, which the size of an unknown type includes."""
    longer = max((old, new), key=lambda side: side.tensor.nbytes)
    rest = longer.tensor.nbytes - length
    if rest >= max(old.tensor.alignment, new.tensor.alignment, DEFAULT_ALIGNMENT):
        return False
    return not any(longer.read(length, rest)) if rest else True


def _entry_of(tensor: Tensor, imatrix: Imatrix | None) -> ImatrixEntry | None:
    """Find the tensor's entry; None if it is missing or has another size, as only an embedding's may."""
    entry = imatrix.entries.get(tensor.info.name) if imatrix else None
    return entry if entry and entry.fits(tensor.info.dims) else None


def _error_chunks(
    old: _Side, new: _Side, progress: _Progress, entry: ImatrixEntry | None, chunk: int
) -> Iterator[ErrorSums]:
    """Yield the error sums chunk by chunk, in whole units of both types."""
    left, right = old.decoder, new.decoder
    if left is None or right is None:
        return
    both = math.lcm(left.unit, right.unit)  # at most the rows that one side interleaves, because rows are whole blocks
    step = max(1, chunk // both) * both
    dims, elements = old.tensor.info.dims, old.tensor.info.elements
    weights = entry.weights_for(dims) if entry else None
    for start in range(0, elements, step):
        count = min(step, elements - start)
        part = None if weights is None else spread_weights(weights, dims, start, count)
        yield errors_between(_numbers(old, left, start, count), _numbers(new, right, start, count), part)
        progress.reach((start + count) // left.unit * left.unit_bytes)


def spread_weights(weights: NDArray[np.float32], dims: Sequence[int], start: int, count: int) -> NDArray[np.float32]:
    """Spread `weights` over `count` elements from `start` of a tensor with `dims`.

    `weights` has the shape (matrices, dims[0]): an element has the weight of its column in its matrix. Memory grows
    with `count`, even if rows are longer.
    """
    import numpy as np

    width, rows = weights.shape[1], dims[1] if len(dims) > 1 else 1
    first, column = divmod(start, width)
    if column + count <= width:
        return weights[first // rows % len(weights), column : column + count]
    numbers = np.arange(first, (start + count - 1) // width + 1)
    spread: NDArray[np.float32] = weights[numbers // rows % len(weights)].ravel()
    return spread[column : column + count]


def _numbers(side: _Side, decoder: Decoder, start: int, count: int) -> NDArray[Any]:
    offset = start // decoder.unit * decoder.unit_bytes
    numbers = decoder.decode(side.read(offset, count // decoder.unit * decoder.unit_bytes))
    return numbers if side.factor is None else side.factor.times(numbers, start)


# --- totals ----------------------------------------------------------------------------------------------------------


def _totals(measured: Sequence[_Measured], by: By) -> Iterator[DataTotal]:
    if by is By.TENSOR:
        return
    groups: dict[tuple[int, str], list[_Measured]] = {}
    for one in measured:
        groups.setdefault(_role(one) if by is By.ROLE else _layer(one), []).append(one)
    ordered = groups.items() if by is By.ROLE else sorted(groups.items(), key=lambda item: item[0])
    for (_, name), members in ordered:
        yield _total(name, members)


def _role(one: _Measured) -> tuple[int, str]:
    return 0, tensor_place(one.report.name).role.value


def _layer(one: _Measured) -> tuple[int, str]:
    """Give the sort key and the name of a tensor's layer; tensors outside layers come first."""
    layer = tensor_place(one.report.name).layer
    return (-1, "no layer") if layer is None else (layer, str(layer))


def _total(name: str, measured: Iterable[_Measured]) -> DataTotal:
    members = list(measured)
    counts = {verdict: sum(one.report.verdict is verdict for one in members) for verdict in DataVerdict}
    sums = [one.sums for one in members if one.sums is not None]
    return DataTotal(
        name=name,
        tensors=len(members),
        same=counts[DataVerdict.SAME],
        different=counts[DataVerdict.DIFFERENT],
        other_type=counts[DataVerdict.OTHER_TYPE],
        not_compared=counts[DataVerdict.NOT_COMPARED],
        measured=len(sums),
        errors=errors_of(total(sums)) if sums else None,
        notes=tuple(dict.fromkeys(one.report.note for one in members if one.report.note)),
        weighted=_count_weighted(members),
    )


def _count_weighted(members: Sequence[_Measured]) -> int | None:
    if any(one.report.weighted is None for one in members):
        return None
    return sum(bool(one.report.weighted) for one in members if one.sums is not None)
