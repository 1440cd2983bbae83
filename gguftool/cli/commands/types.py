"""The types command: list the tensor types of both engines."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.cli.shared.console import write
from gguftool.cli.shared.options import Json
from gguftool.cli.shared.show import show_parts
from gguftool.render.format import Format
from gguftool.render.registry import render
from gguftool.render.types import describe_type, type_rows, types_table


def types(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One type, by name or number.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the tensor types, or explain one.

    Shows all types of llama.cpp and ik_llama.cpp that can occur in a file, with the engines that load them.

    Two ways to use it:

    \b
    gguftool types q4_K
    gguftool types --json
    """  # noqa: D301 - \b keeps the lines of a paragraph
    rows = type_rows(name)
    if json:
        write(render(rows, Format.JSON))
    else:
        show_parts((*([] if name is None else [describe_type(rows[0])]), types_table(rows)))
