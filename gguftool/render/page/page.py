"""A report as one self-contained page.

Nothing is fetched and nothing of the model is code: the template escapes all text, the content security policy allows
exactly the page's own style and script (by their hashes, so neither may hold anything of the model), and what a
terminal or a browser could act on in a name (control characters, bidi marks) is shown escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from gguftool.analysis.report import Cell, Distribution, Layers, Report, Share, TensorRow
from gguftool.errors import PlanError, printable
from gguftool.record import record
from gguftool.render.format import Format
from gguftool.render.page.palette import COLOURS, Ink, palette
from gguftool.render.page.strip import letter
from gguftool.render.registry import renders
from gguftool.render.report import model_lines, type_bits
from gguftool.render.report_tables import label_text, percent
from gguftool.render.units import format_count, format_size

_TEXT_LIMIT = 4096
_TICK = 10  # layers between two numbers above a heat map
_DEVICE = (("device", False),)
_HEADS = (
    ("#", True),
    ("name", False),
    ("type", False),
    ("shape", True),
    ("size", True),
    ("bpw", True),
    ("role", False),
)


@record
class Piece:
    """A piece of a bar, in per cent of its width."""

    start: str
    width: str
    ink: Ink
    tip: str


@record
class Row:
    """A row of a chart: its name and numbers, and the pieces of its bar."""

    name: str
    ink: Ink | None
    tensors: str
    parameters: str
    size: str
    share: str
    bits: str
    pieces: tuple[Piece, ...]


@record
class HeatCell:
    """A cell of a heat map."""

    letter: str
    ink: Ink
    tip: str


@record
class HeatRow:
    """One role of a heat map; None for a layer without this role."""

    role: str
    cells: tuple[HeatCell | None, ...]


@record
class Heat:
    """The heat map of one stack."""

    stack: str
    ticks: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    legend: tuple[tuple[str, Ink], ...]


@record
class TensorCells:
    """One row of the tensor table: numbers to sort by, and the texts to show."""

    index: int
    name: str
    type: str
    ink: Ink
    shape: str
    parameters: int
    nbytes: int
    size: str
    bits: str
    role: str
    device: str | None


@record
class Page:
    """The template's data of one model."""

    path: str
    label: str
    parameters: str
    facts: tuple[str, ...]
    warnings: tuple[str, ...]
    types: tuple[Row, ...]
    roles: tuple[Row, ...]
    devices: tuple[Row, ...]
    heats: tuple[Heat, ...]
    rows: tuple[TensorCells, ...]


@renders(Report, Format.HTML)
def report_html(report: Report, **_: Any) -> str:
    """The page with all breakdowns; raises `PlanError` that names the way to get jinja2 if it is missing."""
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise PlanError("a page needs jinja2; get it with: pip install jinja2") from None
    css, js = _colour_rules() + _resource("report.css"), _resource("report.js")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown, keep_trailing_newline=True
    )
    inks = palette(type_bits(report))
    return environment.from_string(_resource("report.html.j2")).render(
        title=f"{label_text(report.models[0].label)} - gguftool report" if report.models else "gguftool report",
        policy=_policy(css, js),
        css=Markup(css),
        js=Markup(js),
        heads=_HEADS + (_DEVICE if any(model.placement for model in report.models) else ()),
        models=[_page(model, inks) for model in report.models],
    )


def _shown(value: Any) -> Any:
    """Escape what could reorder or hide text, in every plain string that the template puts out."""
    return printable(value, _TEXT_LIMIT) if type(value) is str else value


def _resource(name: str) -> str:
    return files("gguftool.render.page").joinpath(name).read_text("utf-8")


def _colour_rules() -> str:
    """A class for each colour; style attributes would need a laxer policy."""
    return "".join(
        f".c{index} {{ background: {back}; fill: {back}; color: {ink}; }}\n"
        for index, (back, ink) in enumerate(COLOURS)
    )


def _policy(css: str, js: str) -> str:
    return f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _page(model: Distribution, inks: Mapping[str, Ink]) -> Page:
    claim = model.label.claim
    doubts = (claim.text,) if claim.agrees is False else ()
    devices = model.placement.devices if model.placement else ()
    return Page(
        path=model.model,
        label=label_text(model.label),
        parameters=format_count(model.parameters),
        facts=tuple(line for line in model_lines(model)[1:] if line not in doubts),
        warnings=(*doubts, *model.remarks),
        types=_rows(model.by_type, ((row.type, row) for row in model.tensors), inks, lettered=True),
        roles=_rows(model.by_role, ((row.role, row) for row in model.tensors), inks),
        devices=_rows(devices, ((row.device or "unplaced", row) for row in model.tensors), inks),
        heats=tuple(_heat(grid, inks) for grid in model.by_layer),
        rows=tuple(_tensor(row, inks, placed=model.placement is not None) for row in model.tensors),
    )


def _rows(
    shares: Iterable[Share],
    tensors: Iterable[tuple[str, TensorRow]],
    inks: Mapping[str, Ink],
    *,
    lettered: bool = False,
) -> tuple[Row, ...]:
    """The rows of a chart; the longest bar fills its column, its pieces are the types."""
    sizes: dict[str, Counter[str]] = {}
    for name, tensor in tensors:
        sizes.setdefault(name, Counter())[tensor.type] += tensor.nbytes
    shares = tuple(shares)
    longest = max((share.nbytes for share in shares), default=0) or 1
    return tuple(
        Row(
            name=share.name,
            ink=inks[share.name] if lettered else None,
            tensors=f"{share.tensors:,}",
            parameters=format_count(share.parameters),
            size=format_size(share.nbytes),
            share=percent(share.share),
            bits=f"{share.bits_per_weight:.2f}",
            pieces=_pieces(sizes.get(share.name, Counter()), longest, inks),
        )
        for share in shares
    )


def _pieces(sizes: Counter[str], longest: int, inks: Mapping[str, Ink]) -> tuple[Piece, ...]:
    pieces, start = [], 0.0
    for name, nbytes in sizes.most_common():
        width = nbytes * 100 / longest
        tip = f"{name}: {format_size(nbytes)}"
        pieces.append(Piece(start=f"{start:.3f}", width=f"{width:.3f}", ink=inks[name], tip=tip))
        start += width
    return tuple(pieces)


def _heat(grid: Layers, inks: Mapping[str, Ink]) -> Heat:
    cells = {(cell.role, cell.layer): cell for cell in grid.cells}
    used = {name for cell in grid.cells for name in cell.types}
    return Heat(
        stack=grid.stack,
        ticks=tuple(str(layer) if layer % _TICK == 0 else "" for layer in grid.layers),
        rows=tuple(
            HeatRow(role=role, cells=tuple(_heat_cell(grid.stack, cells.get((role, at)), inks) for at in grid.layers))
            for role in grid.roles
        ),
        legend=tuple((name, ink) for name, ink in inks.items() if name in used),
    )


def _heat_cell(stack: str, cell: Cell | None, inks: Mapping[str, Ink]) -> HeatCell | None:
    if cell is None:
        return None
    tensors = "1 tensor" if cell.tensors == 1 else f"{cell.tensors} tensors"
    tip = (
        f"{stack}.{cell.layer} {cell.role}: {', '.join(cell.types)}; {tensors}, "
        f"{format_size(cell.nbytes)}, {cell.bits_per_weight:.2f} bpw"
    )
    return HeatCell(letter=letter(cell, inks), ink=inks[cell.types[0]], tip=tip)


def _tensor(row: TensorRow, inks: Mapping[str, Ink], *, placed: bool) -> TensorCells:
    return TensorCells(
        index=row.index,
        name=row.name,
        type=row.type,
        ink=inks[row.type],
        shape=" x ".join(map(str, row.dims)),
        parameters=row.parameters,
        nbytes=row.nbytes,
        size=format_size(row.nbytes),
        bits=f"{row.bits_per_weight:.2f}",
        role=row.role,
        device=(row.device or "unplaced") if placed else None,
    )
