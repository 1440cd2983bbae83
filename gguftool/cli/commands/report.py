"""The report command: show how a model's bytes are distributed."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from gguftool import __version__
from gguftool.analysis.placement import parse_rules
from gguftool.analysis.report import Report
from gguftool.analysis.report import report as make_report
from gguftool.cli.shared.console import remark
from gguftool.cli.shared.imatrices import imatrix_among, imatrix_instead, show_imatrix
from gguftool.cli.shared.options import (
    Csv,
    Force,
    FullPaths,
    Json,
    Markdown,
    ModelsArgument,
    ThisFileOnly,
    local_path,
    one_format,
)
from gguftool.cli.shared.show import show, show_receipt
from gguftool.errors import FormatError, PlanError, did_you_mean, printable
from gguftool.model.model import Model
from gguftool.model.opening import open_model, open_models
from gguftool.render.format import Format
from gguftool.render.models.report_tables import ReportBy
from gguftool.render.registry import render

_BREAKDOWNS = tuple(by.value for by in ReportBy)


def _breakdown(text: str | None) -> str | None:
    if text not in (None, *_BREAKDOWNS):
        near = did_you_mean(text or "", _BREAKDOWNS)
        raise typer.BadParameter(f"takes {', '.join(_BREAKDOWNS)}, not '{printable(text or '')}'{near}")
    return text


ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="type|role|layer|tensor|file",
        callback=_breakdown,
        help="Show only this breakdown. Default: by type and role, and layers as a strip.",
        show_default=False,
    ),
]
PlaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="REGEX=DEVICE",
        help="Add up bytes per device, with tensors placed as -ot does: the first match counts. Repeatable.",
        show_default=False,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        parser=local_path,
        metavar="FILE",
        help="Write a self-contained HTML page instead.",
        show_default=False,
    ),
]


def report(
    models: ModelsArgument,
    by: ByOption = None,
    place: PlaceOption = None,
    html: HtmlOption = None,
    this_file_only: ThisFileOnly = False,
    json: Json = False,
    full_paths: FullPaths = False,
    markdown: Markdown = False,
    csv: Csv = False,
    force: Force = False,
) -> None:
    """Show how parameters and bytes are distributed.

    Breaks them down by type, role, layer, tensor and device, with an honest one-line label. Shows several models side
    by side.

    Two ways to use it:

    \b
    gguftool report model.gguf --by role
    gguftool report model-Q4_K_M.gguf model-Q5_K_M.gguf --html report.html
    """  # noqa: D301 - \b keeps the lines of a paragraph
    chosen = one_format(json=json, markdown=markdown, csv=csv, html=html is not None)
    rules, breakdown = parse_rules(place or ()), ReportBy(by) if by else None
    try:
        opened = _open(models, this_file_only)
        imatrix = imatrix_among(opened)
    except FormatError as error:
        if len(models) != 1:
            raise
        opened, imatrix = (), imatrix_instead(models[0], error)
    if imatrix is not None:
        if chosen is Format.HTML:
            raise PlanError("is an importance matrix, which has no page: leave out --html", source=imatrix.name)
        show_imatrix(imatrix, chosen, full_paths=full_paths)
        return
    made = make_report(opened, rules)
    _say_remarks(made)
    if html is not None:
        _write_page(made, opened, html, force=force)
    else:
        show(made, chosen, full_paths=full_paths, by=breakdown)


def _say_remarks(made: Report) -> None:
    """Print the remarks about models; print one that several models share only once."""
    about: dict[str, list[str]] = {}
    for model in made.models:
        for text in dict.fromkeys(model.remarks):
            about.setdefault(text, []).append(model.model)
    for text, models in about.items():
        remark(f"{models[0]}: {text}" if len(models) == 1 else f"{len(models):,} models: {text}")


def _open(specs: list[str], this_file_only: bool) -> tuple[Model, ...]:
    """Open every model that `specs` name; partial sets under a single name are one model, as elsewhere."""
    opened = open_models(*specs, this_file_only=this_file_only)
    if len(specs) == 1 and len(opened) > 1 and sum(model.is_complete for model in opened) <= 1:
        return (open_model(*specs, this_file_only=this_file_only),)
    return opened


def _write_page(made: Report, opened: tuple[Model, ...], path: Path, *, force: bool) -> None:
    """Write the page with the executor, so that it is complete, and replaces a file only with --force."""
    # Only --html writes, and the executor is 22 modules.
    from gguftool.analysis.metadata import metadata_rows  # noqa: PLC0415
    from gguftool.render.page.document import project_link  # noqa: PLC0415
    from gguftool.render.page.page import Made  # noqa: PLC0415
    from gguftool.storage.execute.executor import execute  # noqa: PLC0415
    from gguftool.storage.execute.options import Options  # noqa: PLC0415
    from gguftool.storage.plan import OutputFile, Plan  # noqa: PLC0415

    about = Made(version=__version__, day=datetime.now(timezone.utc).date(), link=project_link())
    page = render(made, Format.HTML, metadata=metadata_rows(opened), made=about).encode("utf-8")
    output = OutputFile(path=path, head=page, copies=(), size=len(page))
    sources = tuple(source for model in opened for source in model.sources)
    show_receipt(execute(Plan(outputs=(output,), inputs=sources), Options(force=force)), json=False)
