"""A report as one self-contained page: one model in full, several side by side.

Pages are made to be shared, so files appear without their folders.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from gguftool.analysis.metadata import KeyRow
from gguftool.analysis.report import Distribution, Report
from gguftool.model.roles import Role
from gguftool.record import record
from gguftool.render.format import Format
from gguftool.render.models.label import label_text
from gguftool.render.models.report import model_lines, type_bits
from gguftool.render.page.bars import Breakdown, make_chart
from gguftool.render.page.document import render_document
from gguftool.render.page.grids import metadata_grid, tensor_grid
from gguftool.render.page.heat import heat_maps
from gguftool.render.page.palette import palette
from gguftool.render.registry import renders
from gguftool.render.units import format_count, format_size
from gguftool.storage.sources.locate import base_name

_MAX_FILES = 4
_MAX_WARNINGS = 20
_ROLES = {role.value: index for index, role in enumerate(Role)}
_BREAKDOWNS = (
    Breakdown(title="By type", head="type", shares=lambda model: model.by_type, key=lambda row: row.type),
    Breakdown(
        title="By role",
        head="role",
        shares=lambda model: model.by_role,
        key=lambda row: row.role,
        order=_ROLES.__getitem__,
    ),
)
_DEVICES = Breakdown(
    title="By device",
    head="device",
    shares=lambda model: model.placement.devices if model.placement else (),
    key=lambda row: row.device or "unplaced",
)


@record
class Made:
    """The facts in a page's last line: the version of gguftool, the day, and the project's address or ""."""

    version: str
    day: datetime.date
    link: str = ""


@record
class Card:
    """The overview of one model; `mark` is empty for a single one."""

    mark: str
    name: str
    files: str
    label: str
    numbers: tuple[tuple[str, str], ...]
    facts: tuple[str, ...]
    warnings: tuple[str, ...]


@renders(Report, Format.HTML)
def report_html(report: Report, *, metadata: Sequence[KeyRow] = (), made: Made | None = None, **_: Any) -> str:
    """Render the page with all breakdowns, and with the `metadata` of the models if given.

    Raises `PlanError` if jinja2 is missing, with the command that installs it.
    """
    models, bits = report.models, type_bits(report)
    inks = palette(bits)
    marks = tuple(f"#{index}" for index in range(1, len(models) + 1)) if len(models) > 1 else ("",) * len(models)
    cards = [_card(model, mark) for model, mark in zip(models, marks, strict=True)]
    breakdowns = _BREAKDOWNS + ((_DEVICES,) if any(model.placement for model in models) else ())
    return render_document(
        "report.html.j2",
        title=_title(cards),
        cards=cards,
        charts=[make_chart(breakdown, models, marks, inks) for breakdown in breakdowns],
        heats=heat_maps(models, marks, inks),
        legend=[(name, ink, f"{bits[name]:.2f}") for name, ink in inks.items()][:_MAX_LEGEND],
        grids=[*([metadata_grid(metadata, marks)] if metadata else []), tensor_grid(models, marks, inks)],
        made=made,
    )


_MAX_LEGEND = 60


def _title(cards: Sequence[Card]) -> str:
    if len(cards) == 1:
        return cards[0].name
    return f"{len(cards)} models compared" if cards else "No model"


def _card(model: Distribution, mark: str) -> Card:
    claim = model.label.claim
    doubts = (claim.text,) if claim.agrees is False else ()
    lines = (claim.text, *model_lines(model)[3:])
    warnings = (*doubts, *(_without_folder(text, model.model) for text in model.remarks))
    return Card(
        mark=mark,
        name=model.name or _stem(model.model),
        files=_files(model),
        label=label_text(model.label),
        numbers=_numbers(model),
        facts=tuple(line for line in lines if line not in doubts),
        warnings=warnings[:_MAX_WARNINGS],
    )


def _numbers(model: Distribution) -> tuple[tuple[str, str], ...]:
    layers = max((len(grid.layers) for grid in model.by_layer), default=0)
    return (
        ("architecture", model.architecture or "not named"),
        ("parameters", format_count(model.parameters)),
        ("size", format_size(model.nbytes)),
        ("bits per weight", f"{model.label.bits_per_weight:.2f}"),
        ("layers", f"{layers:,}"),
        ("tensors", f"{len(model.tensors):,}"),
    )


def _files(model: Distribution) -> str:
    names = list(dict.fromkeys([base_name(model.model), *(share.name for share in model.by_file)]))
    more = f" and {len(names) - _MAX_FILES:,} more" if len(names) > _MAX_FILES else ""
    text = ", ".join(names[:_MAX_FILES]) + more
    return text if model.files == 1 else f"{model.files:,} files: {text}"


def _stem(name: str) -> str:
    return base_name(name).removesuffix(".gguf")


def _without_folder(text: str, name: str) -> str:
    """Remove the folder of the file `name` from `text`: it is nobody's business but the user's."""
    folder = name.removesuffix(base_name(name)).rstrip("/\\")
    if not folder:
        return text
    return text.replace(f"{folder}/", "").replace(f"{folder}\\", "").replace(folder, ".")
