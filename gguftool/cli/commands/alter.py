"""The alter command: which tensors a model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gguftool.cli.shared.options import KeepFileType, OutputOption, size_option
from gguftool.cli.shared.running import carry_out, output_options, with_inputs
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import SourceError
from gguftool.model.model import Model
from gguftool.storage.sources.source import Source
from gguftool.surgery.alter.alteration import alteration_of
from gguftool.surgery.alter.files import read_text
from gguftool.surgery.alter.plan import plan_alter
from gguftool.surgery.alter.script import MAX_SCRIPT, parse_script
from gguftool.surgery.inputs import Input, open_inputs

_WHAT = "WHAT is a name, a regular expression, or :mtp, :vision, :tied, :unused."


def _list(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=f"{help} Repeatable.", show_default=False)


def _one(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, show_default=False)


@writer("align", "pad", "reserve", "force_sizes", "anyway")
def alter(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[LABEL=]MODEL...", help="The model to alter, then others to take from, each with a LABEL."
        ),
    ],
    output: OutputOption,
    take: Annotated[
        list[str] | None, _list("--take", "LABEL:WHAT", f"Add tensors of another model, and keys that they need. {_WHAT}")
    ] = None,
    drop: Annotated[list[str] | None, _list("--drop", "WHAT", "Leave out tensors.")] = None,
    keep: Annotated[list[str] | None, _list("--keep", "WHAT", "Leave out all other tensors.")] = None,
    rename: Annotated[
        list[str] | None, _list("--rename", "REGEX=NEW", "Rename tensors, and keys that bear their names.")
    ] = None,
    unfuse: Annotated[
        list[str] | None, _list("--unfuse", "KIND", "Take fused tensors apart: qkv, gate_up, experts.")
    ] = None,
    fuse: Annotated[list[str] | None, _list("--fuse", "KIND", "Put them together: qkv, gate_up, experts.")] = None,
    layers: Annotated[
        str | None, _one("--layers", "LIST|@FILE", "Layers, such as 0-10,7-10,11- or !3,7 or 0-9,b:8-23; mergekit YAML.")
    ] = None,
    experts: Annotated[
        str | None, _one("--experts", "LIST|@FILE", "Experts of every layer; JSON {layer: [ids]}.")
    ] = None,
    vocab: Annotated[
        str | None, _one("--vocab", "LIST|@FILE|+N", "Tokens to keep, or how many unused ones to add.")
    ] = None,
    set_: Annotated[list[str] | None, _list("--set", "KEY=[TYPE:]VALUE", "Set a key, as edit does.")] = None,
    remove: Annotated[list[str] | None, _list("--remove", "KEY", "Remove a key.")] = None,
    script: Annotated[
        list[str] | None, _list("--script", "FILE", "Operations, one a line, with these words and without dashes.")
    ] = None,
    engine: Annotated[
        list[str] | None, _list("--engine", "ENGINE", "It must load there: llama.cpp, ik_llama.cpp. Default: both.")
    ] = None,
    max_size: Annotated[
        int | None, size_option("--max-size", help="Write a set of files up to this size; OUT is their prefix.")
    ] = None,
    keep_file_type: KeepFileType = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Change which tensors a model has.

    Takes, drops and renames tensors, fuses and unfuses them, selects layers, experts and tokens, and makes the metadata
    true for it; no weight is decoded. Operations run in the order of the options below, whatever the order given;
    numbers are those of the input's layers, experts and tokens.

    Two ways to use it:

    \b
    gguftool alter model.gguf --drop :mtp -o without-mtp.gguf
    gguftool alter a=model.gguf d=donor.gguf --take d::mtp -o with-mtp.gguf
    """  # noqa: D301 - click keeps the lines of a paragraph after this character
    given = dict.fromkeys(("take", "drop", "keep", "rename", "unfuse", "fuse", "layers", "experts", "vocab"))
    del given, take, drop, keep, rename, unfuse, fuse, layers, experts, vocab, set_, remove, engine
    words, read = _words(context.params, script or [])
    options = output_options(layout, max_size=max_size, keep_file_type=keep_file_type)
    alteration = alteration_of(words, options)
    if not any(word != "engine" for word, _ in words):
        raise typer.BadParameter("nothing to change: give an operation such as --drop :mtp, or --script FILE")
    model, donors = _opened(models)
    carry_out(with_inputs(plan_alter(model, alteration, output, donors), read), writing)


_OPERATIONS = {
    **{name: name for name in ("take", "drop", "keep", "rename", "unfuse", "fuse", "layers", "experts", "vocab")},
    "set_": "set",
    "remove": "remove",
    "engine": "engine",
}
