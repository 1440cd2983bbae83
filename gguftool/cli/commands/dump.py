"""Commands that only read: dump, types."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gguftool.cli.shared.options import Csv, Json, Markdown, ModelArgument, ThisFileOnly, check_patterns, one_format
from gguftool.record import replace

_TEXT_ARRAY_LIMIT = 6

KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Print the value under KEY alone, raw.", show_default=False),
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
        str, typer.Option("--filter", metavar="REGEX", help="Only keys and tensor names in which REGEX is found.")
    ] = "",
    array_limit: ArrayLimit = None,
    no_kv: Annotated[bool, typer.Option("--no-kv", help="Leave the metadata out.")] = False,
    no_tensors: Annotated[bool, typer.Option("--no-tensors", help="Leave the tensors out.")] = False,
    this_file_only: ThisFileOnly = False,
    json: Json = False,
    markdown: Markdown = False,
    csv: Csv = False,
) -> None:
    """Show what is inside: metadata and tensors.

    Every tensor with its type, shape, size in bytes, bits per weight and offset in the file.
    With --csv the tensors, or with --no-tensors the metadata. Of an imatrix also what it holds.
    """
    from gguftool.analysis.dump import dump as make_dump
    from gguftool.cli.commands.imatrix import describe_if_imatrix, imatrix_instead, show_imatrix
    from gguftool.cli.shared.console import remark, write
    from gguftool.cli.shared.show import show_tables, write_json
    from gguftool.errors import FormatError
    from gguftool.model.opening import open_model
    from gguftool.render.dump import dump_csv, dump_markdown, dump_tables, heading

    one_format(json=json, markdown=markdown, csv=csv)
    check_patterns([name_filter])
    try:
        opened = open_model(model, this_file_only=this_file_only)
    except FormatError as error:
        legacy = imatrix_instead(model, error)
        if key is not None:
            raise
        show_imatrix(legacy, name_filter=name_filter, json=json, markdown=markdown, csv=csv)
        return
    if key is not None:
        _print_value(opened, key, array_limit)
        return
    if array_limit is None and not json:
        array_limit = _TEXT_ARRAY_LIMIT
    report = make_dump(opened, name_filter=name_filter, array_limit=array_limit, kvs=not no_kv, tensors=not no_tensors)
    if not no_tensors:
        report = replace(report, imatrix=describe_if_imatrix(opened, name_filter))
    for text in report.remarks:
        remark(text)
    if json:
        write_json(report)
    elif markdown:
        write(dump_markdown(report, kvs=not no_kv, tensors=not no_tensors))
    elif csv:
        write(dump_csv(report, tensors=not no_tensors))
    else:
        write(heading(report) + "\n")
        show_tables(dump_tables(report, kvs=not no_kv, tensors=not no_tensors))


def _print_value(model: Any, key: str, array_limit: int | None) -> None:
    """Print one value: a string's own bytes into a pipe (escaped on a terminal), arrays as JSON, numbers as text."""
    from gguftool.cli.shared.console import write, write_bytes
    from gguftool.cli.shared.show import write_json
    from gguftool.errors import PlanError, printable
    from gguftool.format.kv import ValueType

    kv = model.get(key)
    if kv is None:
        raise PlanError(
            f"no metadata key '{printable(key)}'; 'gguftool dump --no-tensors' lists them", source=model.name
        )
    value = kv.value(array_limit)
    if kv.type is ValueType.ARRAY:
        write_json(value)
    elif kv.type is not ValueType.STRING:
        write(f"{value}\n")
    elif sys.stdout.isatty():
        write("\n".join(printable(line, len(line)) for line in value.split("\n")) + "\n")
    else:
        write_bytes(value.encode("utf-8", "surrogateescape"))
