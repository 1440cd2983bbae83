"""A diff as csv: a row for each difference, with plain numbers."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.diff.data import DataDiff, TensorData
from gguftool.analysis.diff.figures import Errors
from gguftool.analysis.diff.metadata import KVChange, KVSide
from gguftool.analysis.diff.models import HeaderDiff
from gguftool.analysis.diff.tensors import TensorChange
from gguftool.render.diff.values import (
    describe_change,
    dims_text,
    key_text,
    side_text,
    type_text,
    unweighted,
    value_text,
    with_not_finite,
)
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns, render_csv

_FIGURES = ("relative_rmse", "cosine", "max_abs_error", "snr_db", "weighted_relative_rmse", "weighted_snr_db")
_COLUMNS = columns("section", "change", "name", "a", "b", "a_bytes", "b_bytes", *_FIGURES, "note")
_NO_FIGURES = ("",) * len(_FIGURES)
_Row = tuple[str, ...]


@renders(HeaderDiff, Format.CSV)
def render_diff_csv(report: HeaderDiff) -> str:
    """Render all differences as csv."""
    return render_csv(Table(title="", columns=_COLUMNS, rows=tuple(_rows(report))))


def _rows(report: HeaderDiff) -> Iterator[_Row]:
    yield from (_metadata_row(change) for change in report.metadata)
    yield from (_tensor_row(change) for change in report.tensors)
    for layout in report.layout or ():
        note = f"{layout.count} differ, the first at {layout.where}" if layout.where else ""
        values = value_text(layout.old, exact=True), value_text(layout.new, exact=True)
        yield ("layout", "changed", layout.what, *values, "", "", *_NO_FIGURES, note)
    if report.data:
        yield from (_data_row(one) for one in report.data.tensors)
        yield from _total_rows(report.data)


def _metadata_row(change: KVChange) -> _Row:
    described = describe_change(change) if change.array or change.text else ""
    note = "; ".join(part for part in (type_text(change), described.removesuffix(": see below")) if part)
    values = (_value(change.key, change.old), _value(change.key, change.new))
    return ("metadata", change.change.value, key_text(change), *values, "", "", *_NO_FIGURES, note)


def _value(key: str, side: KVSide | None) -> str:
    return side_text(key, side, exact=True) if side else ""


def _tensor_row(change: TensorChange) -> _Row:
    sides = (change.old, change.new)
    types = (side.type if side else "" for side in sides)
    sizes = (str(side.nbytes) if side else "" for side in sides)
    dims = " -> ".join(dict.fromkeys(dims_text(side.dims) for side in sides if side))
    return ("tensor", change.change.value, change.name, *types, *sizes, *_NO_FIGURES, dims)


def _data_row(one: TensorData) -> _Row:
    sizes = str(one.old_nbytes), str(one.new_nbytes)
    note = with_not_finite(unweighted(one), one.errors)
    return ("data", one.verdict.value, one.name, one.old_type, one.new_type, *sizes, *_figure_rows(one.errors), note)


def _total_rows(data: DataDiff) -> Iterator[_Row]:
    for total in data.totals:
        note = f"tensors: {total.tensors}, same: {total.same}, measured: {total.measured}"
        if total.weighted is not None:
            note += f", weighted: {total.weighted}"
        note = with_not_finite(note, total.errors)
        yield (f"data by {data.by.value}", "", total.name, "", "", "", "", *_figure_rows(total.errors), note)


def _figure_rows(errors: Errors | None) -> tuple[str, ...]:
    if errors is None:
        return _NO_FIGURES
    figures = (getattr(errors, name) for name in _FIGURES)
    return tuple("" if figure is None else repr(figure) for figure in figures)
