"""The command that tells how a model's bytes are distributed: report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gguftool.cli.shared.options import Csv, Force, Json, Markdown, ModelsArgument, ThisFileOnly, local_path, one_format

if TYPE_CHECKING:
    from gguftool.analysis.report import Report
    from gguftool.model.model import Model
    from gguftool.render.report_tables import ReportBy

_BREAKDOWNS = ("type", "role", "layer", "tensor")


def _breakdown(text: str | None) -> str | None:
    if text not in (None, *_BREAKDOWNS):
        raise typer.BadParameter(f"'{text}' is none of {', '.join(_BREAKDOWNS)}")
    return text


ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="type|role|layer|tensor",
        callback=_breakdown,
        help="Show this breakdown alone. Default: by type and role, and layers as a strip.",
        show_default=False,
    ),
]
PlaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="REGEX=DEVICE",
        help="Add up bytes per device as -ot would place tensors; first match wins; may be given again.",
        show_default=False,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        parser=local_path,
        metavar="FILE",
        help="Write one self-contained page instead.",
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
    markdown: Markdown = False,
    csv: Csv = False,
    force: Force = False,
) -> None:
    """Show how parameters and bytes are distributed.

    Over types, roles, layers, tensors and devices, with an honest one-line label; several models side by side.
    """
    from gguftool.analysis.placement import parse_rules
    from gguftool.analysis.report import report as make_report
    from gguftool.cli.commands.imatrix import imatrix_among, imatrix_instead, show_imatrix
    from gguftool.cli.shared.console import remark, write
    from gguftool.cli.shared.show import write_json
    from gguftool.errors import FormatError, PlanError
    from gguftool.render.report import report_csv, report_markdown
    from gguftool.render.report_tables import ReportBy

    one_format(json=json, markdown=markdown, csv=csv, html=html is not None)
    rules, breakdown = parse_rules(place or ()), ReportBy(by) if by else None
    try:
        opened = _open(models, this_file_only)
        imatrix = imatrix_among(opened)
    except FormatError as error:
        if len(models) != 1:
            raise
        opened, imatrix = (), imatrix_instead(models[0], error)
    if imatrix is not None and html is None:
        show_imatrix(imatrix, json=json, markdown=markdown, csv=csv)
        return
    if imatrix is not None:
        raise PlanError("is an importance matrix, of which there is no page", source=imatrix.name)
    made = make_report(opened, rules)
    for model in made.models:
        for text in model.remarks:
            remark(f"{model.model}: {text}")
    if html is not None:
        _write_page(made, opened, html, force=force)
    elif json:
        write_json(made)
    elif markdown:
        write(report_markdown(made, breakdown))
    elif csv:
        write(report_csv(made, breakdown))
    else:
        _show(made, breakdown)


def _open(specs: list[str], this_file_only: bool) -> tuple[Model, ...]:
    """Open every model that `specs` name; what one name holds of partial sets is one model, as for other commands."""
    from gguftool.model.opening import open_model, open_models

    opened = open_models(*specs, this_file_only=this_file_only)
    if len(specs) == 1 and len(opened) > 1 and sum(model.is_complete for model in opened) <= 1:
        return (open_model(*specs, this_file_only=this_file_only),)
    return opened


def _show(made: Report, by: ReportBy | None) -> None:
    """Show the report: in colour on a terminal, as plain text in a pipe."""
    from gguftool.cli.shared.console import write
    from gguftool.cli.shared.show import rich_console
    from gguftool.render.page.strip import strip_rich
    from gguftool.render.report import headings, report_sections, report_text
    from gguftool.render.table import Table, render_rich

    if not sys.stdout.isatty():
        write(report_text(made, by))
        return
    write("".join(f"{line}\n" for line in (*headings(made), "")))
    console = rich_console()
    for section in report_sections(made, by):
        console.print(render_rich(section) if isinstance(section, Table) else strip_rich(section, console.width))


def _write_page(made: Report, opened: tuple[Model, ...], path: Path, *, force: bool) -> None:
    """Write the page through the one executor: never over a file or a model unasked, never half of it."""
    from gguftool.cli.shared.show import show_receipt
    from gguftool.render.page.page import report_html
    from gguftool.storage.execute.executor import execute
    from gguftool.storage.execute.options import Options
    from gguftool.storage.plan import OutputFile, Plan

    page = report_html(made).encode("utf-8")
    output = OutputFile(path=path, head=page, copies=(), size=len(page))
    sources = tuple(source for model in opened for source in model.sources)
    show_receipt(execute(Plan(outputs=(output,), inputs=sources), Options(force=force)), json=False)
