"""Tables to search and sort: all tensors, all metadata; several models side by side, with differences marked.

Rows and texts are bounded, whatever a file holds: a page is for reading, csv and JSON have everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.analysis.dump import KVEntry
from gguftool.analysis.metadata import KeyRow
from gguftool.analysis.report import Distribution, TensorRow
from gguftool.errors import printable
from gguftool.record import record
from gguftool.render.page.palette import Ink
from gguftool.render.units import format_size

MAX_TENSORS = 20_000
MAX_KEYS = 500
_MAX_NAME = 256
_MAX_ITEM = 80
_SHORT = 100  # characters of a value that stand in the table; the rest unfolds
_LONG = 20_000  # characters that unfold
_BUDGET = 1_000_000  # characters that unfold in all


@record
class Head:
    """The head of a column; `kind` is a class of the style sheet (`n` for numbers)."""

    text: str
    kind: str = ""


@record
class GridCell:
    """A cell: `text`, in a chip if it has an ink, then `note`; `lines` unfold below it.

    `value` sorts in place of the text; `label` names the column on a narrow screen.
    """

    text: str
    note: str = ""
    kind: str = ""
    value: float | None = None
    ink: Ink | None = None
    lines: tuple[str, ...] = ()
    label: str = ""


@record
class GridRow:
    """A row; `differs` if the models do not agree."""

    cells: tuple[GridCell, ...]
    differs: bool = False


@record
class Grid:
    """A table; `kind` is a class of the style sheet, `left_out` counts the rows that do not fit."""

    kind: str
    title: str
    hint: str
    heads: tuple[Head, ...]
    rows: tuple[GridRow, ...]
    compared: bool
    left_out: int


# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_grid(models: Sequence[Distribution], marks: tuple[str, ...], inks: Mapping[str, Ink]) -> Grid:
    """Make a table of the models' tensors, up to `MAX_TENSORS`; sizes and shapes sort as numbers."""
    sides = [{row.name: row for row in model.tensors} for model in models]
    names = list(dict.fromkeys(name for side in sides for name in side))
    shown = names[:MAX_TENSORS]
    if len(models) == 1:
        placed = models[0].placement is not None
        heads = (Head(text="#", kind="n"), Head(text="name"), Head(text="type"), Head(text="shape", kind="n"),
                 Head(text="size", kind="n"), Head(text="bpw", kind="n"), Head(text="role"),
                 *([Head(text="device")] if placed else []))  # fmt: skip
        rows = tuple(_tensor_row(sides[0][name], inks, placed=placed) for name in shown)
    else:
        heads = (Head(text="#", kind="n"), Head(text="name"), *(Head(text=mark) for mark in marks))
        rows = tuple(_compared_row(at, name, sides, marks, inks) for at, name in enumerate(shown, start=1))
    return Grid(
        kind="tensors",
        title="1 tensor" if len(names) == 1 else f"{len(names):,} tensors",
        hint="Filter by any text, such as exps",
        heads=heads,
        rows=rows,
        compared=len(models) > 1,
        left_out=len(names) - len(shown),
    )


def _tensor_row(row: TensorRow, inks: Mapping[str, Ink], *, placed: bool) -> GridRow:
    cells = (
        GridCell(text=str(row.index), kind="n index", value=row.index),
        GridCell(text=_name(row.name), kind="name"),
        GridCell(text=row.type, ink=inks[row.type]),
        GridCell(text=" × ".join(map(str, row.dims)), kind="n", value=row.parameters),  # noqa: RUF001
        GridCell(text=format_size(row.nbytes), kind="n", value=row.nbytes),
        GridCell(text=f"{row.bits_per_weight:.2f}", kind="n bpw", value=row.bits_per_weight),
        GridCell(text=row.role),
        *([GridCell(text=row.device or "unplaced")] if placed else []),
    )
    return GridRow(cells=cells)


def _compared_row(
    at: int, name: str, sides: Sequence[Mapping[str, TensorRow]], marks: Sequence[str], inks: Mapping[str, Ink]
) -> GridRow:
    rows = [side.get(name) for side in sides]
    cells = (_compared_cell(row, mark, inks) for row, mark in zip(rows, marks, strict=True))
    differs = len({(row.type, row.dims) if row else None for row in rows}) > 1
    index, head = GridCell(text=str(at), kind="n index", value=at), GridCell(text=_name(name), kind="name")
    return GridRow(cells=(index, head, *cells), differs=differs)


def _compared_cell(row: TensorRow | None, mark: str, inks: Mapping[str, Ink]) -> GridCell:
    if row is None:
        return GridCell(text="not there", kind="absent", value=-1, label=mark)
    return GridCell(text=row.type, ink=inks[row.type], note=format_size(row.nbytes), value=row.nbytes, label=mark)


def _name(text: str) -> str:
    return printable(text, _MAX_NAME)


# --- metadata --------------------------------------------------------------------------------------------------------


class _Budget:
    """Cuts the texts that unfold, so that a page stays small whatever a file holds."""

    def __init__(self) -> None:
        self._left = _BUDGET

    def lines(self, text: str) -> tuple[str, ...]:
        """Split `text` into lines, cut to what is left of the budget."""
        cut = text[: min(_LONG, self._left)]
        self._left -= len(cut)
        lines = cut.split("\n")
        return (*lines, f"... {len(text):,} characters in all") if len(cut) < len(text) else tuple(lines)


def metadata_grid(keys: Sequence[KeyRow], marks: tuple[str, ...]) -> Grid:
    """Make a table of the models' metadata, up to `MAX_KEYS` keys; arrays as far as the rows have them."""
    budget, several = _Budget(), len(marks) > 1
    columns = [Head(text=mark) for mark in marks] if several else [Head(text="value")]
    return Grid(
        kind="metadata",
        title="1 metadata key" if len(keys) == 1 else f"{len(keys):,} metadata keys",
        hint="Search keys and values",
        heads=(Head(text="key"), Head(text="type"), *columns),
        rows=tuple(_key_row(row, marks if several else ("",), budget) for row in keys[:MAX_KEYS]),
        compared=several,
        left_out=max(0, len(keys) - MAX_KEYS),
    )


def _key_row(row: KeyRow, marks: Sequence[str], budget: _Budget) -> GridRow:
    values = (_value_cell(entry, mark, budget) for entry, mark in zip(row.entries, marks, strict=True))
    kinds = " or ".join(dict.fromkeys(_kind(entry) for entry in row.entries if entry))
    key, kind = GridCell(text=_name(row.key), kind="name"), GridCell(text=kinds, kind="kind")
    return GridRow(cells=(key, kind, *values), differs=row.differs)


def _kind(entry: KVEntry) -> str:
    return entry.type.lower() if entry.element_type is None else f"{entry.element_type.lower()}[{entry.count:,}]"


def _value_cell(entry: KVEntry | None, label: str, budget: _Budget) -> GridCell:
    if entry is None:
        return GridCell(text="not there", kind="absent", label=label)
    text = entry.value if isinstance(entry.value, str) else _value(entry)
    if len(text) <= _SHORT and "\n" not in text:
        return GridCell(text=text, kind="value", label=label)
    first = text[:_SHORT].partition("\n")[0]
    return GridCell(text=f"{first} ...", kind="value", label=label, lines=budget.lines(text))


def _value(entry: KVEntry) -> str:
    if entry.element_type is None:
        return _scalar(entry.value, entry.type)
    items = ", ".join(_scalar(item, entry.element_type) for item in entry.value)
    return f"{items}, ..." if entry.truncated else items or "empty"


def _scalar(value: object, kind: str) -> str:
    """Format a value as people write it: a float32 only with the digits that it has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.7g}" if kind == "FLOAT32" else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item, kind) for item in value)}]"
    return f'"{printable(value, _MAX_ITEM)}"' if isinstance(value, str) else str(value)
