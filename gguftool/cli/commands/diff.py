"""The diff command: the differences between two models."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.analysis.diff.data import By, DataOptions
from gguftool.analysis.diff.models import DiffOptions, HeaderDiff, bytes_to_compare, diff_headers
from gguftool.cli.shared.console import progress_bar, remark_each
from gguftool.cli.shared.options import FullPaths, Json, ThisFileOnly, one_format
from gguftool.cli.shared.patterns import check_patterns
from gguftool.cli.shared.show import show
from gguftool.model.companions import open_imatrix
from gguftool.model.opening import open_model
from gguftool.record import replace


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model: a GGUF file, any shard of a set, or a folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare A with.")],
    data: Annotated[
        bool, typer.Option("--data", help="Also compare tensor data, and show how far apart it is for known types.")
    ] = False,
    by: Annotated[
        By | None, typer.Option("--by", help="With --data: errors of each tensor, or totals.", show_default=False)
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix", metavar="FILE", help="With --data: also weight errors by this imatrix.", show_default=False
        ),
    ] = None,
    layout: Annotated[
        bool, typer.Option("--layout", help="Also compare order, offsets, alignment, shards, version and byte order.")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore", metavar="REGEX", help="Leave out keys and tensors with names that match REGEX. Repeatable."
        ),
    ] = None,
    this_file_only: ThisFileOnly = False,
    json: Json = False,
    full_paths: FullPaths = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown, for a thread on GitHub.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print csv: one row per difference.")] = False,
) -> None:
    """Show how two models differ: metadata and tensors.

    Order, offsets, shards and alignment do not count. Exit code 0: no differences, 1: differences, 2: trouble.

    Two ways to use it:

    \b
    gguftool diff a.gguf b.gguf
    gguftool diff model-F16.gguf model-Q4_K_M.gguf --data --by role
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if json + markdown + csv > 1:
        raise typer.BadParameter("--json, --markdown and --csv exclude each other")
    chosen = one_format(json=json, markdown=markdown, csv=csv)
    if imatrix is not None and not data:
        raise typer.BadParameter("--imatrix weights errors of tensor data: add --data")
    if by and not data:
        raise typer.BadParameter("--by totals errors of tensor data: add --data")
    check_patterns(ignore or [])
    options = DiffOptions(layout=layout, ignore=tuple(ignore or ()))
    report = _compare(a, b, by or (By.TENSOR if data else None), imatrix, options, this_file_only)
    remark_each(report.remarks)
    show(report, chosen, full_paths=full_paths)
    if report.differs:
        raise typer.Exit(1)


def _compare(
    a: str, b: str, by: By | None, imatrix: str | None, options: DiffOptions, this_file_only: bool
) -> HeaderDiff:
    weights = open_imatrix(imatrix) if imatrix is not None else None
    old, new = (open_model(spec, this_file_only=this_file_only) for spec in (a, b))
    if by is None:
        return diff_headers(old, new, options)
    with progress_bar(bytes_to_compare(old, new, options), "comparing") as progress:
        data = DataOptions(by=by, progress=progress, imatrix=weights, imatrix_name=imatrix or "imatrix")
        return diff_headers(old, new, replace(options, data=data))
