"""Tables of a report: one model in full, several side by side; and flat tables with raw numbers for csv."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from gguftool.analysis.report import Distribution, Layers, Report, Share, TensorRow
from gguftool.model.roles import Role
from gguftool.record import replace
from gguftool.render.table import Table, columns
from gguftool.render.units import format_count, format_size

_MAX_TYPES = 3  # types to name in a cell
_MAX_WIDE = 3  # models to set side by side with several columns each
_NONE = "-"


class ReportBy(Enum):
    """The breakdowns of a report."""

    TYPE = "type"
    ROLE = "role"
    LAYER = "layer"
    TENSOR = "tensor"
    FILE = "file"


# --- one model -------------------------------------------------------------------------------------------------------


def share_table(title: str, head: str, shares: Iterable[Share], *, types: bool = True) -> Table:
    """Make a table with a row for each share; `types` adds a column with its types."""
    rows = tuple(
        (
            share.name,
            f"{share.tensors:,}",
            format_count(share.parameters),
            format_size(share.nbytes),
            percent(share.share),
            f"{share.bits_per_weight:.2f}",
            *([named(share.types)] if types else []),
        )
        for share in shares
    )
    heads = (head, ">tensors", ">parameters", ">size", ">share", ">bpw")
    shown = columns(*heads, *(["types"] if types else []), middle=head)
    return Table(title=title, columns=shown, rows=rows, drop=("parameters", "tensors", "types", "share"))


def rules_table(model: Distribution) -> Table | None:
    """Make a table of the tensors that each placement rule took; None without rules."""
    if model.placement is None:
        return None
    rows = tuple(
        (use.pattern, use.device, f"{use.tensors:,}", format_size(use.nbytes)) for use in model.placement.rules
    )
    heads = columns("regex", "device", ">tensors", ">size")
    return Table(title="by rule, the first match counts", columns=heads, rows=rows, drop=("tensors",))


def tensor_table(model: Distribution) -> Table:
    """Make a table with a row for each tensor; only csv and JSON show its role, because names need the space."""
    placed = model.placement is not None
    rows = tuple(
        (
            str(row.index),
            row.type,
            " x ".join(map(str, row.dims)),
            format_size(row.nbytes),
            f"{row.bits_per_weight:.2f}",
            *([row.device or "unplaced"] if placed else []),
            row.name,
        )
        for row in model.tensors
    )
    heads = (">#", "type", ">shape", ">size", ">bpw", *(["device"] if placed else []), "name")
    shown = columns(*heads, middle="name")
    return Table(title=f"{len(rows):,} tensors", columns=shown, rows=rows, drop=("#", "shape", "bpw", "size"))


def layer_table(grid: Layers) -> Table:
    """Make a table with a row for each layer."""
    return share_table(f"{len(grid.layers)} layers of {grid.stack}", ">layer", grid.totals)


# --- several models --------------------------------------------------------------------------------------------------

_Shown = tuple[tuple[str, Callable[[Share], str]], ...]
_SIZE: _Shown = ((">size", lambda share: format_size(share.nbytes)),)
_SHARE: _Shown = ((">share", lambda share: percent(share.share)),)
_BITS: _Shown = ((">bpw", lambda share: f"{share.bits_per_weight:.2f}"),)
_TYPES: _Shown = (("types", lambda share: named(share.types, 2)),)


def compared(title: str, head: str, sides: Sequence[Sequence[Share]], shown: _Shown) -> tuple[Table, ...]:
    """Set the models' shares side by side: in one table, or if that is too wide, in one for each of `shown`."""
    if len(shown) == 1:
        return (_compared(title, head, sides, shown),)
    narrow = tuple(
        _compared(f"{title}: {column.removeprefix('>')}", head, sides, ((column, show),)) for column, show in shown
    )
    if len(sides) > _MAX_WIDE:
        return narrow
    return (replace(_compared(title, head, sides, shown), instead=narrow),)


def _compared(title: str, head: str, sides: Sequence[Sequence[Share]], shown: _Shown) -> Table:
    """Make a row for each name, with the columns of `shown` for each model; a dash if a model lacks this share."""
    by_name = [{share.name: share for share in side} for side in sides]
    names = dict.fromkeys(name for side in by_name for name in side)
    heads = [head]
    for index in range(1, len(sides) + 1):
        heads += [_marked(column, index, alone=len(shown) == 1) for column, _ in shown]
    rows = tuple(
        (name, *(show(side[name]) if name in side else _NONE for side in by_name for _, show in shown))
        for name in names
    )
    return Table(title=title, columns=columns(*heads, middle=head), rows=rows)


def _marked(column: str, index: int, *, alone: bool) -> str:
    right, name = ">" * column.startswith(">"), column.removeprefix(">")
    return f"{right}#{index}" if alone else f"{right}#{index} {name}"


def _sorted_rows(tables: Iterable[Table], key: Callable[[str], int]) -> tuple[Table, ...]:
    return tuple(
        replace(
            table,
            rows=tuple(sorted(table.rows, key=lambda row: key(row[0]))),
            instead=_sorted_rows(table.instead, key),
        )
        for table in tables
    )


def compared_tables(report: Report, by: ReportBy) -> tuple[Table, ...]:
    """Make the tables that set the models of `report` side by side."""
    models = report.models
    if by is ReportBy.TYPE:
        return compared("by type", "type", [model.by_type for model in models], _SIZE + _SHARE)
    if by is ReportBy.ROLE:
        tables = compared("by role", "role", [model.by_role for model in models], _SIZE + _BITS + _TYPES)
        order = {role.value: index for index, role in enumerate(Role)}
        return _sorted_rows(tables, order.__getitem__)
    if by is ReportBy.LAYER:
        return tuple(table for stack in stacks(report) for table in _compared_layers(report, stack))
    if by is ReportBy.FILE:
        return compared("by file", "file", [model.by_file for model in models], _SIZE + _TYPES)
    return (_compared_tensors(report),)


def compared_devices(report: Report) -> tuple[Table, ...]:
    """Compare the bytes per device of several models."""
    sides = [model.placement.devices if model.placement else () for model in report.models]
    return compared("by device", "device", sides, _SIZE + _SHARE)


def stacks(report: Report) -> tuple[str, ...]:
    """List the stacks of all models, in order of first occurrence."""
    return tuple(dict.fromkeys(grid.stack for model in report.models for grid in model.by_layer))


def _compared_layers(report: Report, stack: str) -> tuple[Table, ...]:
    grids = [next((grid for grid in model.by_layer if grid.stack == stack), None) for model in report.models]
    sides = [grid.totals if grid else () for grid in grids]
    return _sorted_rows(compared(f"layers of {stack}", ">layer", sides, _SIZE + _BITS), int)


def _compared_tensors(report: Report) -> Table:
    sides = [{row.name: row for row in model.tensors} for model in report.models]
    names = dict.fromkeys(name for side in sides for name in side)
    heads = [head for index in range(1, len(sides) + 1) for head in (f"#{index} type", f">#{index} size")]
    rows = tuple((*(cell for side in sides for cell in _tensor_cells(side.get(name))), name) for name in names)
    return Table(title=f"{len(rows):,} tensors", columns=columns(*heads, "name", middle="name"), rows=rows)


def _tensor_cells(row: TensorRow | None) -> tuple[str, str]:
    return (row.type, format_size(row.nbytes)) if row else (_NONE, _NONE)


# --- csv -------------------------------------------------------------------------------------------------------------


def csv_table(report: Report, by: ReportBy) -> Table:
    """Make one flat table with raw numbers: bytes, counts, bits per weight; the first column is the model."""
    heads, rows = _FLAT[by]
    return Table(
        title="",
        columns=columns("model", *heads),
        rows=tuple((model.model, *row) for model in report.models for row in rows(model)),
    )


_Rows = Callable[[Distribution], Iterable[tuple[str, ...]]]


def _flat(share: Share) -> tuple[str, ...]:
    numbers = (share.tensors, share.parameters, share.nbytes, share.share, share.bits_per_weight)
    return (share.name, *map(str, numbers), " ".join(share.types))


def _flat_cells(model: Distribution) -> Iterable[tuple[str, ...]]:
    for grid in model.by_layer:
        for cell in grid.cells:
            numbers = (cell.tensors, cell.parameters, cell.nbytes, cell.bits_per_weight)
            yield (grid.stack, str(cell.layer), cell.role, *map(str, numbers), " ".join(cell.types))


def _flat_tensors(model: Distribution) -> Iterable[tuple[str, ...]]:
    for row in model.tensors:
        layer = "" if row.layer is None else str(row.layer)
        shape, numbers = "x".join(map(str, row.dims)), (row.parameters, row.nbytes, row.bits_per_weight)
        yield (str(row.index), row.name, row.type, shape, *map(str, numbers), row.role, row.stack, layer,
               row.device or "", row.sizing)  # fmt: skip


_SUMS = ("tensors", "parameters", "bytes", "share", "bits_per_weight", "types")
_FLAT: dict[ReportBy, tuple[tuple[str, ...], _Rows]] = {
    ReportBy.TYPE: (("type", *_SUMS), lambda model: map(_flat, model.by_type)),
    ReportBy.ROLE: (("role", *_SUMS), lambda model: map(_flat, model.by_role)),
    ReportBy.FILE: (("file", *_SUMS), lambda model: map(_flat, model.by_file)),
    ReportBy.LAYER: (
        ("stack", "layer", "role", "tensors", "parameters", "bytes", "bits_per_weight", "types"),
        _flat_cells,
    ),
    ReportBy.TENSOR: (
        ("index", "name", "type", "shape", "parameters", "bytes", "bits_per_weight", "role", "stack", "layer",
         "device", "sizing"),
        _flat_tensors,
    ),
}  # fmt: skip


# --- words -----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Format a share (0 to 1) in per cent; a share above 0 that rounds to 0 becomes ``<0.1%``."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share * 100:.1f}%"


def named(types: Sequence[str], limit: int = _MAX_TYPES) -> str:
    """Join type names with commas; beyond `limit`, give only their number."""
    more = f" +{len(types) - limit}" if len(types) > limit else ""
    return ", ".join(types[:limit]) + more
