"""The heat strip: layers from left to right, a row for each role, a letter (on a terminal also a colour) for each cell.

An upper-case letter means that all matrices of the cell have this type; a lower-case letter means several types, and
that most of the cell's bytes have this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gguftool.analysis.report import Cell, Layers
from gguftool.model.roles import Role
from gguftool.record import record
from gguftool.render.page.palette import COLOURS, NO_LETTER, Ink
from gguftool.render.screen import wrapped

if TYPE_CHECKING:
    from rich.text import Text

TEXT_WIDTH = 100  # columns of a strip that does not go to a terminal
_MIN_LAYERS = 10
_RULER_STEP = 10


@record
class StripRow:
    """One row; `cells` has an entry for each layer, None if the layer lacks this role."""

    name: str
    cells: tuple[Cell | None, ...]


@record
class Strip:
    """A strip over `layers`; `inks` holds the types that occur in it, fewest bits first."""

    title: str
    layers: tuple[int, ...]
    rows: tuple[StripRow, ...]
    inks: Mapping[str, Ink]
    bits: Mapping[str, float]

    def as_text(self) -> str:
        """Draw the strip as plain text, wrapped at `TEXT_WIDTH` columns."""
        return strip_text(self)

    def as_rich(self, width: int, /) -> Text:
        """Draw the strip for a rich console of `width` columns."""
        return strip_rich(self, width)


def make_strip(
    title: str, grids: Sequence[tuple[str, Layers]], inks: Mapping[str, Ink], bits: Mapping[str, float]
) -> Strip:
    """Make the strip of one stack; with several models, the text next to each grid marks its rows."""
    layers = tuple(sorted({layer for _, grid in grids for layer in grid.layers}))
    roles = [role.value for role in Role if any(role.value in grid.roles for _, grid in grids)]
    cells = {(mark, cell.role, cell.layer): cell for mark, grid in grids for cell in grid.cells}
    rows = tuple(
        StripRow(name=f"{role}{mark}", cells=tuple(cells.get((mark, role, layer)) for layer in layers))
        for role in roles
        for mark, grid in grids
        if role in grid.roles
    )
    used = {name for cell in cells.values() for name in cell.types}
    return Strip(
        title=title, layers=layers, rows=rows, inks={name: ink for name, ink in inks.items() if name in used}, bits=bits
    )


def letter(cell: Cell | None, inks: Mapping[str, Ink]) -> str:
    """Choose the letter of a cell, or a dot for None."""
    if cell is None:
        return "."
    upper = inks[cell.types[0]].letter
    return upper if len(cell.types) == 1 else upper.lower()


def strip_text(strip: Strip, width: int = TEXT_WIDTH) -> str:
    """Draw the strip as plain text of at most `width` columns, wrapped if it has more layers."""
    lines = wrapped(strip.title, width)
    for head, ruler, rows in _blocks(strip, width):
        lines.append(f"{'':{head}}{ruler}".rstrip())
        for row, cells in rows:
            lines.append(f"{row.name:{head}}{''.join(letter(cell, strip.inks) for cell in cells)}")
    return "\n".join([*lines, *_legend(strip, width)]) + "\n"


def strip_rich(strip: Strip, width: int) -> Text:
    """Draw the strip for a rich console, with cells on the colour of their type."""
    from rich.text import Text

    text = Text(f"{strip.title}\n", style="italic")
    for head, ruler, rows in _blocks(strip, width):
        text.append(f"{'':{head}}{ruler}\n", style="dim not italic")
        for row, cells in rows:
            text.append(f"{row.name:{head}}", style="not italic")
            for cell in cells:
                text.append(letter(cell, strip.inks), style=_style(strip.inks[cell.types[0]]) if cell else "dim")
            text.append("\n")
    _append_legend(text, strip, width)
    return text


def _style(ink: Ink) -> str:
    background, foreground = COLOURS[ink.colour]
    return f"not italic {foreground} on {background}"


def _blocks(strip: Strip, width: int) -> list[tuple[int, str, list[tuple[StripRow, tuple[Cell | None, ...]]]]]:
    """Cut the strip into pieces that fit `width`: the width of the row heads, the ruler, the rows with their cells."""
    head = max((len(row.name) for row in strip.rows), default=0) + 2
    step = max(_MIN_LAYERS, (width - head) // _RULER_STEP * _RULER_STEP)
    if len(strip.layers) <= width - head:
        step = max(1, len(strip.layers))
    return [
        (head, _ruler(strip.layers[at : at + step]), [(row, row.cells[at : at + step]) for row in strip.rows])
        for at in range(0, len(strip.layers), step)
    ]


def _ruler(layers: Sequence[int]) -> str:
    """Write the numbers of the first layer and each tenth above their columns, unless they would touch."""
    ruler = ""
    for column, layer in enumerate(layers):
        if column >= len(ruler) + bool(ruler) and (not column or layer % _RULER_STEP == 0):
            ruler = f"{ruler:{column}}{layer}"
    return ruler


def _entries(strip: Strip) -> list[tuple[str, Ink]]:
    """List each letter's type, once; the types beyond the alphabet share one entry."""
    lettered = {name: ink for name, ink in strip.inks.items() if ink.letter != NO_LETTER}
    entries = [(f"{name} {strip.bits[name]:.2f}", ink) for name, ink in lettered.items()]
    rest = [ink for ink in strip.inks.values() if ink.letter == NO_LETTER]
    return [*entries, (f"{len(rest)} other types", rest[-1])] if rest else entries


def _explanation(strip: Strip) -> str:
    mixed = any(cell is not None and len(cell.types) > 1 for row in strip.rows for cell in row.cells)
    return "lower case: several types, most bytes in this one" if mixed else ""


def _legend(strip: Strip, width: int) -> list[str]:
    """Write the legend, each letter with its type and bits per weight, in lines of at most `width` columns."""
    lines = [""]
    for words, ink in _entries(strip):
        entry = f"{ink.letter} = {words}"
        if lines[-1] and len(lines[-1]) + len(entry) + 3 > width:
            lines.append("")
        lines[-1] += f"   {entry}" if lines[-1] else entry
    note = _explanation(strip)
    return [*lines, *wrapped(note, width)] if note else lines


def _append_legend(text: Text, strip: Strip, width: int) -> None:
    column = 0
    for words, ink in _entries(strip):
        if column and column + len(words) + 6 > width:
            text.append("\n")
            column = 0
        text.append(f" {ink.letter} ", style=_style(ink))
        text.append(f" {words}  ", style="not italic")
        column += len(words) + 6
    note = _explanation(strip)
    text.append(f"\n{note}\n" if note else "\n", style="dim not italic")
