"""An importance matrix as text, markdown and csv."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.imatrix import ImatrixReport, ImatrixTensor, ModelCoverage
from gguftool.errors import listed, printable
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.render.format import Format
from gguftool.render.registry import renders
from gguftool.render.table import Table, columns, markdown_text, render_csv, render_markdown
from gguftool.render.units import runs_text

_RUNS = 8  # of numbers in a cell
_UNITS = {"legacy": "chunks", "gguf": "tokens"}


@renders(ImatrixReport, Format.TEXT)
def imatrix_parts(report: ImatrixReport) -> tuple[str | Table, ...]:
    """The heading and the table of entries."""
    return imatrix_heading(report), imatrix_table(report)


def imatrix_heading(report: ImatrixReport) -> str:
    """The lines above the table."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ImatrixReport) -> Iterator[str]:
    form = "legacy format" if report.kind == "legacy" else "GGUF"
    yield f"{printable(report.imatrix, 4096)}: an importance matrix ({form}), {report.entries:,} entries"
    chunks = "chunks: not recorded" if report.chunk_count is None else f"{report.chunk_count:,} chunks"
    size = "" if report.chunk_size is None else f" of {report.chunk_size:,} tokens"
    yield f"  {chunks}{size}; datasets: {listed(report.datasets) if report.datasets else 'not recorded'}"
    if report.matrices_without_data:
        yield f"  {report.matrices_without_data:,} of {report.matrices:,} matrices have no data and get the weight 1"
    yield f"  sha256 {report.sha256}"
    if report.coverage:
        yield from _coverage_lines(report.coverage)


def _coverage_lines(found: ModelCoverage) -> Iterator[str]:
    yield f"{printable(found.model, 4096)}: {found.covered:,} of {found.tensors:,} tensors to quantize are covered"
    if found.embeddings:
        yield f"  looked up, so they never have weights: {listed(found.embeddings)}"
    if found.missing:
        yield f"  without an entry: {listed(found.missing)}"
        if found.stand_ins:
            yield from (f"  {text}" for text in _taken(found))
    if found.unmatched:
        yield f"  entries that match no tensor of the model: {listed(found.unmatched)}"
    yield from (f"  does not fit: {text}" for text in found.misfits)


def _taken(found: ModelCoverage) -> Iterator[str]:
    """Say what each engine's llama-quantize uses for the tensors without an entry."""
    for engine in ENGINES:
        taken = [f"{one.tensor} <- {one.entry}" for one in found.stand_ins if one.engine == engine]
        if not taken:
            yield f"{engine} quantizes these without weights"
        else:
            rest = len(found.missing) - len(taken)
            yield f"{engine} takes the entry of another tensor for {len(taken):,} of these: {listed(taken)}" + (
                f"; {rest:,} without weights" if rest else ""
            )


def imatrix_table(report: ImatrixReport) -> Table:
    """The entries as a table."""
    unit = _UNITS[report.kind]
    heads = columns(
        ">matrices", ">values", f">least {unit}", f">most {unit}", "without data", "tensor", middle="tensor"
    )
    rows = tuple(
        (
            f"{one.matrices:,}",
            f"{one.values:,}",
            f"{one.least:,}",
            f"{one.most:,}",
            _without(one),
            one.name,
        )
        for one in report.tensors
    )
    drop = ("values", f"most {unit}", "without data", "matrices")
    return Table(title=f"{len(rows):,} entries", columns=heads, rows=rows, drop=drop)


@renders(ImatrixReport, Format.MARKDOWN)
def imatrix_markdown(report: ImatrixReport) -> str:
    """Heading and entries in GitHub's markdown."""
    lines = [f"{markdown_text(line.strip())}\n" for line in _lines(report)]
    return "\n".join([*lines, render_markdown(imatrix_table(report))])


@renders(ImatrixReport, Format.CSV)
def imatrix_csv(report: ImatrixReport) -> str:
    """The entries as csv with plain numbers."""
    heads = columns("name", "matrices", "values", "least", "most", "unit", "without_data")
    rows = tuple(
        (
            one.name,
            str(one.matrices),
            str(one.values),
            str(one.least),
            str(one.most),
            _UNITS[report.kind],
            " ".join(map(str, one.without_data)),
        )
        for one in report.tensors
    )
    return render_csv(Table(title="", columns=heads, rows=rows))


def _without(one: ImatrixTensor) -> str:
    """``3 of 64 (5, 10-11)``, or nothing if all matrices have data."""
    if not one.without_data:
        return ""
    return f"{len(one.without_data):,} of {one.matrices:,} ({runs_text(one.without_data, _RUNS)})"
