"""The dump command: metadata and tensors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gguftool.analysis.dump import TensorSort, sort_dump
from gguftool.analysis.dump import dump as make_dump
from gguftool.cli.shared.console import remark, write, write_bytes
from gguftool.cli.shared.imatrices import describe_if_imatrix, imatrix_instead, show_imatrix
from gguftool.cli.shared.options import Csv, FullPaths, Json, Markdown, ModelArgument, ThisFileOnly, one_format
from gguftool.cli.shared.patterns import check_patterns
from gguftool.cli.shared.show import show
from gguftool.errors import FormatError, PlanError, command_line, did_you_mean, printable
from gguftool.format.kv import ValueType
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.render.format import Format
from gguftool.render.registry import render
from gguftool.render.units import format_float32

_TEXT_ARRAY_LIMIT = 6

KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Print only the value of KEY, raw.", show_default=False),
]
ArrayLimit = Annotated[
    int | None,
    typer.Option(
        "--array-limit",
        metavar="N",
        min=0,
        help=f"Show at most N elements of an array. Default: {_TEXT_ARRAY_LIMIT} in tables, all in JSON and --key.",
        show_default=False,
    ),
]


def dump(
    model: ModelArgument,
    key: KeyOption = None,
    name_filter: Annotated[
        str, typer.Option("--filter", metavar="REGEX", help="Show only keys and tensors with names that match REGEX.")
    ] = "",
    array_limit: ArrayLimit = None,
    no_kv: Annotated[bool, typer.Option("--no-kv", help="Leave the metadata out.")] = False,
    no_tensors: Annotated[bool, typer.Option("--no-tensors", help="Leave the tensors out.")] = False,
    sort: Annotated[
        TensorSort | None,
        typer.Option("--sort", help="Sort the tensors; by size, the largest first.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, help="Show at most N tensors.", show_default=False),
    ] = None,
    this_file_only: ThisFileOnly = False,
    json: Json = False,
    full_paths: FullPaths = False,
    markdown: Markdown = False,
    csv: Csv = False,
) -> None:
    """Show what is inside: metadata and tensors.

    Lists every tensor with its type, shape, size in bytes, bits per weight and offset in the file. With --csv, prints
    only the tensors, or with --no-tensors the metadata. For an imatrix, also shows what it holds.

    Two ways to use it:

    \b
    gguftool dump model.gguf --filter 'blk.0|general.name'
    gguftool dump model.gguf --sort size --limit 10
    """  # noqa: D301 - \b keeps the lines of a paragraph
    chosen = one_format(json=json, markdown=markdown, csv=csv)
    check_patterns([name_filter])
    try:
        opened = open_model(model, this_file_only=this_file_only)
    except FormatError as error:
        legacy = imatrix_instead(model, error)
        if key is not None:
            raise
        show_imatrix(legacy, chosen, name_filter=name_filter, full_paths=full_paths)
        return
    if key is not None:
        _print_value(opened, key, array_limit, as_json=chosen is Format.JSON)
        return
    if array_limit is None and chosen is not Format.JSON:
        array_limit = _TEXT_ARRAY_LIMIT
    report = make_dump(opened, name_filter=name_filter, array_limit=array_limit, kvs=not no_kv, tensors=not no_tensors)
    if not no_tensors:
        report = replace(report, imatrix=describe_if_imatrix(opened, name_filter))
    report = sort_dump(report, sort, limit)
    for text in report.remarks:
        remark(text)
    show(report, chosen, full_paths=full_paths, kvs=not no_kv, tensors=not no_tensors)


def _print_value(model: Model, key: str, array_limit: int | None, *, as_json: bool) -> None:
    """Print one value: a string's own bytes into a pipe (escaped on a terminal), arrays as JSON, numbers as text.

    With `as_json`, print every value as JSON.
    """
    kv = model.get(key)
    if kv is None:
        raise PlanError(
            f"no metadata key '{printable(key)}'{did_you_mean(key, (kv.key for kv in model.kvs))}; "
            f"{command_line('dump', model.name, '--no-tensors')} lists them",
            source=model.name,
        )
    value = kv.value(array_limit)
    if as_json or kv.type is ValueType.ARRAY:
        write(render(value, Format.JSON))
    elif kv.type is not ValueType.STRING:
        write(f"{format_float32(value) if kv.type is ValueType.FLOAT32 else value}\n")
    elif sys.stdout.isatty():
        write("\n".join(printable(line, len(line)) for line in value.split("\n")) + "\n")
    else:
        write_bytes(value.encode("utf-8", "surrogateescape"))
