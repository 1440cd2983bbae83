"""The error table: how much each tensor changes at each type. It needs no engine and no text.

Errors are concentrated in few rows (some dimensions of a head), so regular samples mislead by a factor of up to seven.
So rows are drawn at random, in short runs, because a remote model is read by ranges; small tensors are taken whole. The
sample depends only on the tensor's name, so every type, every quant and every run sees the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from gguftool.cooking.measure_lines import Basis, ErrorLine
from gguftool.cooking.type_values import TypedTensor, TypeMaker, measure_rows
from gguftool.errors import GGUFToolError
from gguftool.format.ggml import TYPES
from gguftool.record import record

WHOLE = 1 << 20  # elements of a tensor that is taken whole
_LEAST_ROWS = 512
_ELEMENTS = 1 << 19  # elements of a sample with short rows
_RUN = 16  # rows read together; a multiple of the rows that types interleave


@record
class TensorError:
    """The relative squared errors of a tensor at a type, plain and weighted by the imatrix, from `rows` of its rows."""

    error: float
    weighted_error: float | None
    rows: int


def type_error(typed: TypedTensor, *, threads: int | None = None) -> TensorError:
    """Measure the error of a sample of rows; raises as `measure_rows` does."""
    ranges = sample_rows(typed.tensor.name, typed.tensor.info.rows, typed.tensor.info.width)
    sums = measure_rows(typed, ranges, threads=threads)
    weighted = None if typed.entry is None else sums.weighted_error
    return TensorError(error=sums.error, weighted_error=weighted, rows=sum(last - first for first, last in ranges))


def sample_rows(name: str, rows: int, width: int) -> list[tuple[int, int]]:
    """Draw ranges of rows of the tensor `name`: all rows of a small tensor, else a few hundred or more, in runs."""
    wanted = max(_LEAST_ROWS, _ELEMENTS // max(width, 1))
    if rows * width <= WHOLE or rows <= 2 * wanted:
        return [(0, rows)]
    runs = -(-wanted // _RUN)
    places = random.Random(name).sample(range(rows // _RUN), runs)
    return [(place * _RUN, (place + 1) * _RUN) for place in sorted(places)]


def error_lines(
    maker: TypeMaker,
    wanted: Iterable[tuple[str, int]],
    basis: Basis,
    *,
    refused: Callable[[str, str, GGUFToolError], None],
) -> Iterator[ErrorLine]:
    """Measure each (tensor, type id) of `wanted`; for impossible ones call `refused` with tensor, type and reason."""
    for name, type_id in wanted:
        alias = TYPES[type_id].alias
        try:
            typed = maker.make(name, type_id)
            found = type_error(typed)
        except GGUFToolError as error:
            refused(name, alias, error)
            continue
        yield ErrorLine(
            tensor=name,
            type=alias,
            error=found.error,
            weighted_error=found.weighted_error,
            rows=found.rows,
            of=typed.tensor.info.rows,
            source=None if typed.maker is None else typed.maker.name,
            basis=basis,
        )


def types_found(maker: TypeMaker, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The (tensor, type id) that ready-made quants have, for the tensors `names`."""
    for name in names:
        own = maker.model.tensors[name].info.type
        kinds = (quant.tensors[name].info.type for quant in maker.quants if name in quant.tensors)
        for type_id in dict.fromkeys(kinds):
            if type_id != own and type_id in TYPES:
                yield name, type_id
