"""The types command: the tensor types of both engines."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.cli.shared.options import Json


def types(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One type, by name.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the tensor types, or explain one.

    All types of llama.cpp and ik_llama.cpp that may occur in a file, with the engines that load them.
    """
    from gguftool.cli.shared.console import write
    from gguftool.cli.shared.show import show_tables, write_json
    from gguftool.render.types import describe_type, type_rows, types_table

    rows = type_rows(name)
    if json:
        write_json(rows)
        return
    if name is not None:
        write(describe_type(rows[0]) + "\n")
    show_tables([types_table(rows)])
