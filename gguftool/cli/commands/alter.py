"""The alter command: change which tensors a model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gguftool.cli.shared.operations import by_label, operations
from gguftool.cli.shared.options import KeepFileType, MaxSize, OutputOption, engines_named
from gguftool.cli.shared.running import carry_out, output_options, with_inputs
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import listed
from gguftool.model.model import Model
from gguftool.surgery.alter.alteration import alteration_of
from gguftool.surgery.alter.plan import plan_alter
from gguftool.surgery.inputs import open_inputs

_TAKE = "Add tensors from another model. WHAT is a name, a regular expression, or :mtp, :vision, :tied, :unused."
_LAYERS = "Layers, such as 0-10,7-10,11- or !3,7 or 0-9,b:8-23; @FILE is a mergekit YAML file."


def _operation(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, show_default=False)


@writer("align", "pad", "reserve", "force_sizes", "engine", "anyway")
def alter(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]MODEL...", help="The model to alter, then others to take from, each with a LABEL."
        ),
    ],
    output: OutputOption,
    take: Annotated[
        list[str] | None,
        _operation("--take", "LABEL:WHAT", _TAKE),
    ] = None,
    drop: Annotated[list[str] | None, _operation("--drop", "WHAT", "Leave out tensors.")] = None,
    keep: Annotated[list[str] | None, _operation("--keep", "WHAT", "Leave out all other tensors.")] = None,
    rename: Annotated[
        list[str] | None, _operation("--rename", "REGEX=NEW", "Rename tensors, and the keys that contain their names.")
    ] = None,
    unfuse: Annotated[
        list[str] | None, _operation("--unfuse", "KIND", "Split fused tensors: qkv, gate_up, experts.")
    ] = None,
    fuse: Annotated[
        list[str] | None, _operation("--fuse", "KIND", "Fuse separate tensors: qkv, gate_up, experts.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        _operation("--layers", "LIST|@FILE", _LAYERS),
    ] = None,
    experts: Annotated[
        list[str] | None,
        _operation("--experts", "LIST|@FILE", "Experts of every layer; @FILE is JSON: {layer: [ids]}."),
    ] = None,
    vocab: Annotated[
        list[str] | None, _operation("--vocab", "LIST|@FILE|+N", "Tokens to keep, or how many unused ones to add.")
    ] = None,
    set_: Annotated[list[str] | None, _operation("--set", "KEY=[TYPE:]VALUE", "Set a key, as edit does.")] = None,
    remove: Annotated[list[str] | None, _operation("--remove", "KEY", "Remove a key.")] = None,
    script: Annotated[
        list[str] | None, _operation("--script", "FILE", "Operations, one per line: these options without the dashes.")
    ] = None,
    max_size: MaxSize = None,
    keep_file_type: KeepFileType = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Change which tensors a model has.

    Takes, drops, renames, fuses and unfuses tensors, selects layers, experts and tokens, and updates the metadata to
    match; decodes no weight. Operations run in the order of the options below, not in the order given; layers, experts
    and tokens are numbered as in the input.

    Two ways to use it:

    \b
    gguftool alter model.gguf --drop :mtp -o without-mtp.gguf
    gguftool alter a=model.gguf d=donor.gguf --take d::mtp -o with-mtp.gguf
    """  # noqa: D301 - \b keeps the lines of a paragraph
    given = {
        **{"take": take, "drop": drop, "keep": keep, "rename": rename, "unfuse": unfuse, "fuse": fuse},
        **{"layers": layers, "experts": experts, "vocab": vocab, "set": set_, "remove": remove},
    }
    words, scripts = operations(given, script or ())
    words += [("engine", engine) for engine in engines_named(layout.engine)]
    options = output_options(layout, max_size=max_size, keep_file_type=keep_file_type)
    model, donors = _opened(models)
    plan = plan_alter(model, alteration_of(words, options), output, donors)
    carry_out(with_inputs(plan, scripts), writing)


def _opened(models: Sequence[str]) -> tuple[Model, dict[str, Model]]:
    """Open the model to alter, and all labelled models, by label."""
    inputs = open_inputs(models)
    nameless = [each.name for each in inputs[1:] if not each.given]
    if nameless:
        raise typer.BadParameter(f"only the first model needs no label; give LABEL=MODEL for {listed(nameless, 4)}")
    return inputs[0].model, by_label((label, each.model) for each in inputs for label in each.given)
