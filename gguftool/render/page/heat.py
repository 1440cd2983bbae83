"""Heat maps: a row for each layer; each cell names a type, on the colour of its bits per weight.

Layers run downwards, so that 94 of them fit a page of any width. The columns are the roles of one model or, for one
role, several models side by side. A row that equals the one above it can be folded away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from gguftool.analysis.report import Cell, Distribution, Layers
from gguftool.model.roles import Role
from gguftool.record import record
from gguftool.render.page.palette import Ink
from gguftool.render.units import format_size

MAX_LAYERS = 1000
_MAX_TYPES = 6  # types to name in the description of a cell


@record
class HeatCell:
    """A cell: `text` is written in it, `words` describe it."""

    text: str
    ink: Ink
    words: str


@record
class HeatRow:
    """A layer; `run` names all equal layers from here on, `same` is true if it equals the one before."""

    name: str
    run: str
    same: bool
    cells: tuple[HeatCell | None, ...]


@record
class HeatMap:
    """A heat map; `left_out` counts layers beyond `MAX_LAYERS`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    left_out: int


def heat_maps(models: Sequence[Distribution], marks: tuple[str, ...], inks: Mapping[str, Ink]) -> tuple[HeatMap, ...]:
    """Make the maps of all stacks: one model has roles as columns, several models have a map for each role."""
    if len(models) == 1:
        return tuple(_map(grid.stack, grid.roles, [(grid, role) for role in grid.roles], inks)
                     for grid in models[0].by_layer)  # fmt: skip
    stacks = dict.fromkeys(grid.stack for model in models for grid in model.by_layer)
    return tuple(one for stack in stacks for one in _compared(stack, models, marks, inks))


def _compared(
    stack: str, models: Sequence[Distribution], marks: tuple[str, ...], inks: Mapping[str, Ink]
) -> Iterable[HeatMap]:
    grids = [next((grid for grid in model.by_layer if grid.stack == stack), None) for model in models]
    for role in Role:
        if any(grid is not None and role.value in grid.roles for grid in grids):
            yield _map(f"{stack}: {role.value}", marks, [(grid, role.value) for grid in grids], inks)


def _map(
    title: str, columns: tuple[str, ...], sides: Sequence[tuple[Layers | None, str]], inks: Mapping[str, Ink]
) -> HeatMap:
    """Make the map with a column for each of `sides`: a grid and its role to show."""
    wanted = [_column(grid, role) for grid, role in sides]
    layers = sorted({layer for column in wanted for layer in column})
    shown = [(layer, tuple(column.get(layer) for column in wanted)) for layer in layers[:MAX_LAYERS]]
    return HeatMap(
        title=title, columns=columns, rows=tuple(_rows(shown, inks)), left_out=max(0, len(layers) - MAX_LAYERS)
    )


def _column(grid: Layers | None, role: str) -> dict[int, Cell]:
    return {cell.layer: cell for cell in (grid.cells if grid else ()) if cell.role == role}


def _rows(rows: Sequence[tuple[int, tuple[Cell | None, ...]]], inks: Mapping[str, Ink]) -> Iterable[HeatRow]:
    for _, alike in groupby(rows, key=lambda row: [cell and cell.types for cell in row[1]]):
        group = list(alike)
        first, last = group[0][0], group[-1][0]
        for layer, cells in group:
            yield HeatRow(
                name=str(layer),
                run=str(first) if first == last else f"{first} to {last}",
                same=layer != first,
                cells=tuple(_cell(cell, inks) if cell else None for cell in cells),
            )


def _cell(cell: Cell, inks: Mapping[str, Ink]) -> HeatCell:
    more = len(cell.types) - 1
    tensors = "1 tensor" if cell.tensors == 1 else f"{cell.tensors} tensors"
    types = ", ".join(cell.types[:_MAX_TYPES]) + (f" and {more + 1 - _MAX_TYPES} more" if more >= _MAX_TYPES else "")
    return HeatCell(
        text=f"{cell.types[0]} +{more}" if more else cell.types[0],
        ink=inks[cell.types[0]],
        words=f"{types}; layer {cell.layer}, {cell.role}: {tensors}, {format_size(cell.nbytes)}, "
        f"{cell.bits_per_weight:.2f} bpw",
    )
