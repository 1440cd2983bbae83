"""A report as text, markdown and csv; the page comes from `render/page/page.py`.

A report has a few headings and then breakdowns, as tables and heat strips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gguftool.analysis.report import Distribution, Report
from gguftool.errors import listed, printable
from gguftool.render.format import Format
from gguftool.render.models.label import label_text
from gguftool.render.models.report_tables import (
    ReportBy,
    compared_devices,
    compared_tables,
    csv_table,
    layer_table,
    rules_table,
    share_table,
    stacks,
    tensor_table,
)
from gguftool.render.page.palette import palette
from gguftool.render.page.strip import Strip, make_strip, strip_text
from gguftool.render.registry import renders
from gguftool.render.table import Table, markdown_text, render_csv, render_markdown
from gguftool.render.units import format_count, format_size

_MAX_UNPLACED = 4


@renders(Report, Format.TEXT)
def report_parts(report: Report, by: ReportBy | None = None) -> Iterator[str | Table | Strip]:
    """Yield headings, then the breakdown `by`, or those by type, role and layer; then devices if tensors are placed."""
    yield "".join(f"{line}\n" for line in headings(report))
    yield from _sections(report, by)


def headings(report: Report) -> tuple[str, ...]:
    """Write the lines above the breakdowns, safe to print: each model's name, label, claim and size."""
    lines = []
    for mark, model in _marked(report):
        lines += [f"{mark}{model.model}", *(f"  {line}" for line in model_lines(model))]
    return tuple(printable(line, 4096) for line in lines)


def _marked(report: Report) -> list[tuple[str, Distribution]]:
    """Pair each model with the mark of its columns and rows, empty for a single model."""
    several = len(report.models) > 1
    return [(f"#{index} " if several else "", model) for index, model in enumerate(report.models, start=1)]


def model_lines(model: Distribution) -> tuple[str, ...]:
    """Write the headings of one model: label, claim, architecture and size."""
    kind = model.architecture or "no architecture named"
    name = f" '{model.name}'" if model.name else ""
    files = "1 file" if model.files == 1 else f"{model.files:,} files"
    what = (
        f"{kind}{name}, {format_count(model.parameters)} parameters in {len(model.tensors):,} tensors, "
        f"{files} of {format_size(model.file_bytes)}"
    )
    return (label_text(model.label), model.label.claim.text, what, *_unplaced(model))


@renders(Report, Format.MARKDOWN)
def report_markdown(report: Report, by: ReportBy | None = None) -> str:
    """Render the report in GitHub's markdown, with strips as code blocks."""
    blocks = []
    for mark, model in _marked(report):
        lines = [f"- {markdown_text(line)}" for line in model_lines(model)[1:]]
        name = markdown_text(f"{mark}{model.model}")
        blocks.append(f"## {name}\n\n**{label_text(model.label)}**\n\n" + "\n".join(lines) + "\n")
    for section in _sections(report, by):
        if isinstance(section, Table):
            blocks.append(render_markdown(section))
        else:
            blocks.append(f"```text\n{strip_text(section)}```\n")
    return "\n".join(blocks)


@renders(Report, Format.CSV)
def report_csv(report: Report, by: ReportBy | None = None) -> str:
    """Render one csv table with raw numbers, by type unless `by` says otherwise."""
    return render_csv(csv_table(report, by or ReportBy.TYPE))


def strips_of(report: Report) -> tuple[Strip, ...]:
    """Make the heat strips of all stacks; several models have a row each, and all share the same letters."""
    bits = type_bits(report)
    inks = palette(bits)
    strips = []
    for stack in stacks(report):
        grids = [
            (f" #{index}" if len(report.models) > 1 else "", grid)
            for index, model in enumerate(report.models, start=1)
            for grid in model.by_layer
            if grid.stack == stack
        ]
        strips.append(make_strip(f"by layer: {stack}.N, one column per layer", grids, inks, bits))
    return tuple(strips)


def type_bits(report: Report) -> dict[str, float]:
    """Compute the true bits per weight of all types in `report`, over all its models."""
    nbytes: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for share in (share for model in report.models for share in model.by_type):
        nbytes[share.name] += share.nbytes
        parameters[share.name] += share.parameters
    return {name: nbytes[name] * 8 / parameters[name] if parameters[name] else 0.0 for name in nbytes}


def _sections(report: Report, by: ReportBy | None) -> Iterator[Table | Strip]:
    if by in (None, ReportBy.TYPE):
        yield from _tables(report, ReportBy.TYPE)
    if by in (None, ReportBy.ROLE):
        yield from _tables(report, ReportBy.ROLE)
    if by in (None, ReportBy.LAYER):
        yield from strips_of(report)
    if by in (ReportBy.LAYER, ReportBy.TENSOR, ReportBy.FILE):
        yield from _tables(report, by)
    yield from _devices(report)


def _tables(report: Report, by: ReportBy) -> tuple[Table, ...]:
    if len(report.models) != 1:
        return compared_tables(report, by)
    model = report.models[0]
    if by is ReportBy.TYPE:
        return (share_table("by type", "type", model.by_type, types=False),)
    if by is ReportBy.ROLE:
        return (share_table("by role", "role", model.by_role),)
    if by is ReportBy.LAYER:
        return tuple(map(layer_table, model.by_layer))
    if by is ReportBy.FILE:
        return (share_table("by file", "file", model.by_file),)
    return (tensor_table(model),)


def _devices(report: Report) -> Iterator[Table]:
    placed = [model for model in report.models if model.placement is not None]
    if not placed:
        return
    if len(report.models) > 1:
        yield from compared_devices(report)
        return
    if placed[0].placement is not None:
        yield share_table("by device", "device", placed[0].placement.devices)
    rules = rules_table(placed[0])
    if rules is not None:
        yield rules


def _unplaced(model: Distribution) -> tuple[str, ...]:
    """Write a line about the tensors that no placement rule took, if there are any."""
    names = model.placement.unplaced if model.placement else ()
    if not names:
        return ()
    return (f"matched by no rule, so placed by -ngl, {len(names):,} tensors: {listed(names, _MAX_UNPLACED)}",)
