"""Bar charts: a row for each type, role or device, and a bar for each model; a full bar is the whole model.

The pieces of a bar are the types in it. Rows and pieces are bounded, whatever a file holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from gguftool.analysis.report import Distribution, Share, TensorRow
from gguftool.record import record
from gguftool.render.models.report_tables import percent
from gguftool.render.page.palette import Ink
from gguftool.render.units import format_count, format_size

MAX_ROWS = 100
_MAX_PIECES = 12


@record
class Piece:
    """A piece of a bar, in per cent of its width."""

    start: str
    width: str
    ink: Ink
    tip: str


@record
class Bar:
    """The bar of one model in one row, and its numbers; `name` describes the bar in words."""

    name: str
    pieces: tuple[Piece, ...]
    tensors: str
    parameters: str
    size: str
    share: str
    bits: str


@record
class BarRow:
    """One row; `bars` has an entry for each model, None if the model has nothing of that name."""

    name: str
    ink: Ink | None
    bars: tuple[Bar | None, ...]


@record
class Chart:
    """A chart; `marks` name the models if there are several, `left_out` counts rows beyond `MAX_ROWS`."""

    title: str
    head: str
    marks: tuple[str, ...]
    rows: tuple[BarRow, ...]
    left_out: int


@record
class Breakdown:
    """What a chart shows of each model: its shares, and by `key` the name of the share that a tensor counts for."""

    title: str
    head: str
    shares: Callable[[Distribution], Sequence[Share]]
    key: Callable[[TensorRow], str]
    order: Callable[[str], int] | None = None


def make_chart(
    breakdown: Breakdown, models: Sequence[Distribution], marks: tuple[str, ...], inks: Mapping[str, Ink]
) -> Chart:
    """Make the chart of `breakdown`; rows named after a type have its colour."""
    sides = [_bars(breakdown, model, inks) for model in models]
    names = list(dict.fromkeys(name for side in sides for name in side))
    if breakdown.order is not None:
        names.sort(key=breakdown.order)
    elif len(models) > 1:
        sizes = Counter[str]()
        for share in (share for model in models for share in breakdown.shares(model)):
            sizes[share.name] += share.nbytes
        names.sort(key=lambda name: -sizes[name])
    return Chart(
        title=breakdown.title,
        head=breakdown.head,
        marks=marks,
        rows=tuple(
            BarRow(name=name, ink=inks.get(name), bars=tuple(side.get(name) for side in sides))
            for name in names[:MAX_ROWS]
        ),
        left_out=max(0, len(names) - MAX_ROWS),
    )


def _bars(breakdown: Breakdown, model: Distribution, inks: Mapping[str, Ink]) -> dict[str, Bar]:
    sizes: dict[str, Counter[str]] = {}
    for tensor in model.tensors:
        sizes.setdefault(breakdown.key(tensor), Counter())[tensor.type] += tensor.nbytes
    shares = islice(breakdown.shares(model), MAX_ROWS)
    return {share.name: _bar(share, sizes.get(share.name, Counter()), model.nbytes or 1, inks) for share in shares}


def _bar(share: Share, sizes: Counter[str], total: int, inks: Mapping[str, Ink]) -> Bar:
    pieces = tuple(_pieces(sizes, total, inks))
    return Bar(
        name=", ".join(piece.tip for piece in pieces) or "no bytes",
        pieces=pieces,
        tensors=f"{share.tensors:,}",
        parameters=format_count(share.parameters),
        size=format_size(share.nbytes),
        share=percent(share.share),
        bits=f"{share.bits_per_weight:.2f}",
    )


def _pieces(sizes: Counter[str], total: int, inks: Mapping[str, Ink]) -> Iterable[Piece]:
    start = 0.0
    for name, nbytes in sizes.most_common(_MAX_PIECES):
        width = nbytes * 100 / total
        tip = f"{name}: {format_size(nbytes)}, {percent(nbytes / total)} of the model"
        yield Piece(start=f"{start:.3f}", width=f"{width:.3f}", ink=inks[name], tip=tip)
        start += width
