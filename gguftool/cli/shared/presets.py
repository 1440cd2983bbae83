"""The preset that a command line names."""

from __future__ import annotations

from typing import Annotated

import typer

from gguftool.errors import PlanError
from gguftool.format.engine_facts.presets.names import find_preset
from gguftool.format.ftypes import FType

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="llama-quantize's mix of that name, such as Q4_K_M, for tensors that no rule matches.",
        show_default=False,
    ),
]
Pure = Annotated[bool, typer.Option("--pure", help="Use the preset's main type for all tensors instead of its mix.")]


def named_preset(positional: str | None, option: str | None, engine: str) -> FType | None:
    """Find the preset given as an argument or by --preset."""
    if positional is not None and option is not None:
        raise typer.BadParameter(f"give the preset once: '{positional}' or --preset {option}")
    name = positional if option is None else option
    try:
        return None if name is None else find_preset(name, engine)
    except ValueError as error:
        raise PlanError(str(error), source="--preset") from error
