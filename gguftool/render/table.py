"""A table of strings, and the ways to show it: plain text, rich, markdown, csv.

Cells may come from a file. Text renderers escape what a terminal could act on; markdown also escapes its own syntax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gguftool.errors import printable
from gguftool.record import record

if TYPE_CHECKING:
    from rich.console import RenderableType

_CELL_LIMIT = 4096
# Markdown's special characters; an underscore inside a word is none, and type names are full of them.
_MARKDOWN = re.compile(r"[\\`*{}\[\]<>|#~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

_NUMBER = re.compile(r"[+-]?(?:[0-9][0-9,]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@record
class Column:
    """A heading, and whether cells are aligned to the right, as numbers are."""

    name: str
    right: bool = False


@record
class Table:
    """Rows of cells under columns, with a title."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_text(self) -> str:
        """The table as aligned plain text; the last column is not padded."""
        return render_text(self)

    def as_rich(self, _width: int, /) -> RenderableType:
        """The table for a rich console, which fits it to its own width."""
        return render_rich(self)


def render_text(table: Table) -> str:
    """The table as aligned plain text; the last column is not padded."""
    names = tuple(column.name for column in table.columns)
    rows = [tuple(printable(cell, _CELL_LIMIT) for cell in row) for row in (names, *table.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(names))]
    lines = [printable(table.title, _CELL_LIMIT)] if table.title else []
    for row in rows:
        cells = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def render_rich(table: Table) -> RenderableType:
    """The table for a rich console; no text of a file is read as markup."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        title=Text(printable(table.title, _CELL_LIMIT)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in table.columns:
        shown.add_column(Text(printable(column.name)), justify="right" if column.right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell, _CELL_LIMIT)) for cell in row))
    return shown


def render_markdown(table: Table) -> str:
    """The table in GitHub's markdown."""
    heads = [markdown_text(column.name) for column in table.columns]
    rules = ["---:" if column.right else ":---" for column in table.columns]
    rows = [[markdown_text(cell) for cell in row] for row in table.rows]
    lines = [f"### {markdown_text(table.title)}", ""] if table.title else []
    lines += ["| " + " | ".join(row) + " |" for row in (heads, rules, *rows)]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """The table as csv with a heading line; no cell is a formula to a spreadsheet."""
    import csv  # half a millisecond of every start otherwise
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([printable(column.name) for column in table.columns])
    writer.writerows([_no_formula(printable(cell, 1 << 20)) for cell in row] for row in table.rows)
    return out.getvalue()


def _no_formula(cell: str) -> str:
    """`cell` with an apostrophe before it if a spreadsheet would run it; numbers stay numbers."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(cell) else cell


def markdown_text(text: str) -> str:
    """`text` escaped, so that markdown shows it unchanged and a terminal does not act on it."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text, _CELL_LIMIT))


def columns(*names: str) -> tuple[Column, ...]:
    """Make columns from names; a name that starts with ``>`` is a right-aligned column."""
    return tuple(Column(name=name.removeprefix(">"), right=name.startswith(">")) for name in names)


def text_of(tables: Sequence[Table]) -> str:
    """Several tables as plain text, with a blank line between them."""
    return "\n".join(render_text(table) for table in tables)
