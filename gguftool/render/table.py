"""A table of strings, as plain text (whole or fitted to a screen), markdown or csv.

Cells may come from a file. Text renderers escape what a terminal could act on; markdown also escapes its own syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import zip_longest

from gguftool.errors import printable
from gguftool.record import record
from gguftool.render.screen import Cut, cropped, padded, width_of, wrapped

_CELL_LIMIT = 4096
_GAP = 2  # blanks between columns
_COMFORTABLE = 32  # a text keeps this width at the expense of columns that may be left out
_LEAST = 8
# Markdown's special characters; not an underscore inside a word: type names are full of them.
_MARKDOWN = re.compile(r"[\\`*{}\[\]<>|#~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

_NUMBER = re.compile(r"[+-]?(?:[0-9][0-9,]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@record
class Column:
    """A heading, whether cells are right-aligned, like numbers, and how to cut a cell that is too wide."""

    name: str
    right: bool = False
    cut: Cut = Cut.END


@record
class Table:
    """Rows of cells under columns, with a title; there is no line of headings if all of them are empty.

    On a narrow screen, the columns named in `drop` are left out, in that order, then texts are cut; numbers never are.
    If there are tables in `instead`, they replace a table that would not fit without such cuts.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    drop: tuple[str, ...] = ()
    instead: tuple[Table, ...] = ()

    def as_text(self) -> str:
        """Render the whole table as aligned plain text; the last column is not padded."""
        return render_text(self)

    def as_rich(self, width: int, /) -> str:
        """Render the table as aligned plain text in lines of at most `width` columns."""
        if self.instead and _total(_natural(_cells(self))) > width:
            return "\n".join(render_text(table, width) for table in self.instead)
        return render_text(self, width)


def render_text(table: Table, width: int | None = None) -> str:
    """Render the table as aligned plain text; with `width`, no line is wider, and no number is cut."""
    cells = _cells(table)
    shown, left_out = _fit(table, _natural(cells), width)
    title = printable(table.title, _CELL_LIMIT)
    if left_out:
        title += f" ({left_out:,} column{'s' * (left_out > 1)} left out: the screen is narrow)"
    lines = wrapped(title, width or width_of(title)) if title else []
    for row in cells if any(cells[0]) else cells[1:]:
        lines += _row_lines([(row[at], size, table.columns[at]) for at, size in shown.items()])
    return "\n".join(lines) + "\n"


def _cells(table: Table) -> list[tuple[str, ...]]:
    """Collect the headings and the rows, safe to print."""
    names = tuple(column.name for column in table.columns)
    return [tuple(printable(cell, _CELL_LIMIT) for cell in row) for row in (names, *table.rows)]


def _natural(cells: Sequence[tuple[str, ...]]) -> list[int]:
    """Measure the full width of each column."""
    return [max(map(width_of, column)) for column in zip(*cells, strict=True)]


def _fit(table: Table, natural: Sequence[int], width: int | None) -> tuple[dict[int, int], int]:
    """Choose the columns to show with their widths, and count those left out beyond what the table allows."""
    shown = dict(enumerate(natural))
    if width is None:
        return shown, 0
    texts = {at for at, column in enumerate(table.columns) if not column.right}
    for name in table.drop:
        if _total(min(size, _COMFORTABLE) if at in texts else size for at, size in shown.items()) <= width:
            break
        shown = {at: size for at, size in shown.items() if table.columns[at].name != name}
    left_out = 0
    while True:
        _narrow(shown, texts, width)
        if _total(shown.values()) <= width or len(shown) == 1:
            return shown, left_out
        del shown[max(shown.keys() - texts or shown)]
        shown = {at: natural[at] for at in shown}
        left_out += 1


def _total(widths: Iterable[int]) -> int:
    sizes = tuple(widths)
    return sum(sizes) + _GAP * (len(sizes) - 1)


def _narrow(shown: dict[int, int], texts: Set[int], width: int) -> None:
    """Narrow columns of text to fit `width`, the widest first, none below a few letters."""
    while (over := _total(shown.values()) - width) > 0:
        sizes = sorted({size for at, size in shown.items() if at in texts}, reverse=True)
        if not sizes or sizes[0] <= _LEAST:
            return
        widest = [at for at in shown if at in texts and shown[at] == sizes[0]]
        floor = max(sizes[1] if len(sizes) > 1 else _LEAST, _LEAST)
        step = max(1, min(sizes[0] - floor, -(-over // len(widest))))
        for at in widest:
            shown[at] -= step


def _row_lines(cells: Sequence[tuple[str, int, Column]]) -> Iterator[str]:
    """Render a row as one line, or more if words wrap; the last column is not padded."""
    blocks = [
        wrapped(text, size) if column.cut is Cut.WRAP else [cropped(text, size, column.cut)]
        for text, size, column in cells
    ]
    for parts in zip_longest(*blocks, fillvalue=""):
        line = (padded(part, size, right=column.right) for part, (_, size, column) in zip(parts, cells, strict=True))
        yield (" " * _GAP).join(line).rstrip()


def render_markdown(table: Table) -> str:
    """Render the table in GitHub's markdown."""
    heads = [markdown_text(column.name) for column in table.columns]
    rules = ["---:" if column.right else ":---" for column in table.columns]
    rows = [[markdown_text(cell) for cell in row] for row in table.rows]
    lines = [f"### {markdown_text(table.title)}", ""] if table.title else []
    lines += ["| " + " | ".join(row) + " |" for row in (heads, rules, *rows)]
    return "\n".join(lines) + "\n"


def render_csv(table: Table) -> str:
    """Render the table as csv with a heading line; no cell is a formula to a spreadsheet."""
    import csv  # at the top it would cost every start half a millisecond
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([printable(column.name) for column in table.columns])
    writer.writerows([_no_formula(printable(cell, 1 << 20)) for cell in row] for row in table.rows)
    return out.getvalue()


def _no_formula(cell: str) -> str:
    """Put an apostrophe before `cell` if a spreadsheet would run it; numbers stay numbers."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(cell) else cell


def markdown_text(text: str) -> str:
    """Escape `text`, so that markdown shows it unchanged and a terminal does not act on it."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text, _CELL_LIMIT))


def columns(*names: str, middle: str = "", start: str = "", wrap: str = "") -> tuple[Column, ...]:
    """Make columns from names; a name that starts with ``>`` is a right-aligned column.

    A cell that is too wide loses its end; the columns named `middle`, `start` and `wrap` have another `Cut`.
    """
    cuts = {name: cut for name, cut in ((middle, Cut.MIDDLE), (start, Cut.START), (wrap, Cut.WRAP)) if name}
    return tuple(
        Column(name=name, right=head.startswith(">"), cut=cuts.get(name, Cut.END))
        for head, name in ((name, name.removeprefix(">")) for name in names)
    )
