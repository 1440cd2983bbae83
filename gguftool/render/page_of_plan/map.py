"""The heat map: a row for each kind of tensor, a column for each layer, a cell for each tensor; the rest below it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguftool.cooking.exploration import Exploration
from gguftool.cooking.mix import MixTensor
from gguftool.record import record
from gguftool.render.page_of_plan.look import Look
from gguftool.render.units import format_size

_NAME = re.compile(r"(?P<stack>(?:\w+\.)*?blk)\.(?P<layer>[0-9]{1,6})\.(?P<base>.{1,200}?)(?:\.weight)?", re.DOTALL)
_SPARSE = 20  # a map has at most this many cells per tensor: names in hostile files could make it huge
_TICK = 5
_MAX_NAME = 256


@record
class Place:
    """A tensor on the page: its number, letter and colour, and its state in words."""

    index: int
    name: str
    letter: str
    colour: int
    words: str


@record
class Row:
    """A kind of tensor in all layers; None where a layer lacks it."""

    name: str
    cells: tuple[Place | None, ...]


@record
class HeatMap:
    """`layers` are the numbers above the columns, empty between ticks; `others` belong to no layer."""

    layers: tuple[str, ...]
    rows: tuple[Row, ...]
    others: tuple[Place, ...]


def heat_map(plan: Exploration, look: Look) -> HeatMap:
    """Make the map of the tensors with a chosen type; it has no rows if their names form no grid."""
    tensors = [tensor for tensor in plan.mix.tensors if tensor.chosen]
    rows: dict[str, dict[int, Place]] = {}
    others = []
    for index, tensor in enumerate(tensors):
        place = _place(index, tensor, look)
        found = _NAME.fullmatch(tensor.name[:_MAX_NAME])
        if found is None:
            others.append(place)
            continue
        stack = "" if found["stack"] == "blk" else f"{found['stack']} "
        rows.setdefault(stack + found["base"], {})[int(found["layer"])] = place
    layers = sorted({layer for row in rows.values() for layer in row})
    if len(rows) * len(layers) > _SPARSE * len(tensors):
        return HeatMap(layers=(), rows=(), others=())
    return HeatMap(
        layers=tuple(str(layer) if at % _TICK == 0 else "" for at, layer in enumerate(layers)),
        rows=tuple(Row(name=name, cells=_cells(row, layers)) for name, row in rows.items()),
        others=tuple(others),
    )


def _cells(row: dict[int, Place], layers: Sequence[int]) -> tuple[Place | None, ...]:
    return tuple(row.get(layer) for layer in layers)


def _place(index: int, tensor: MixTensor, look: Look) -> Place:
    return Place(
        index=index,
        name=tensor.name,
        letter=look.letters[tensor.type],
        colour=look.inks[tensor.type].colour,
        words=f"{tensor.name}: {tensor.type}, {format_size(tensor.nbytes)}",
    )
