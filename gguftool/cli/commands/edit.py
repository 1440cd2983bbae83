"""The edit command: change metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from gguftool.cli.shared.console import write
from gguftool.cli.shared.options import InPlace, ModelArgument, OptionalOutput, one_target
from gguftool.cli.shared.running import carry_out, output_options, recover_first
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import SourceError, printable
from gguftool.model.opening import open_model
from gguftool.model.recovery import recover_model
from gguftool.record import replace
from gguftool.surgery.edit.plan import Edits, check_settings, plan_edit
from gguftool.surgery.edit.settings import split_assignment


@writer("pad", "reserve", "engine", "anyway")
def edit(
    model: ModelArgument,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=[TYPE:]VALUE",
            help="Set a value, or with KEY[INDEX] one element of an array. TYPE is one of u8 i8 u16 i16 u32 i32 u64 "
            "i64 f32 f64 bool str, or TYPE[] with a JSON list. Default: the key's own type. Repeatable.",
        ),
    ] = None,
    set_file: Annotated[
        list[str] | None,
        typer.Option(
            "--set-file",
            metavar="KEY=[TYPE:]@FILE",
            help="Set a value to a file's content: text, or a JSON list for an array. Repeatable.",
        ),
    ] = None,
    set_token: Annotated[
        list[str] | None,
        typer.Option(
            "--set-token",
            metavar="NAME=TEXT",
            help="Make the token with this text a special token: bos eos eot eom unk sep pad cls mask fim_pre fim_suf "
            "fim_mid fim_pad fim_rep fim_sep. Repeatable.",
        ),
    ] = None,
    force_type: Annotated[
        bool, typer.Option("--force-type", help="Let --set and --set-file change the type of an existing key.")
    ] = False,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY", help="Remove a key. Repeatable.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option("--rename", metavar="OLD=NEW", help="Rename a key. Repeatable.")
    ] = None,
    output: OptionalOutput = None,
    in_place: InPlace = False,
    recover: Annotated[
        bool,
        typer.Option("--recover", help="Only undo or finish an interrupted change in place."),
    ] = False,
    *,
    layout: LayoutFlags,
    writing: Writing,
) -> None:
    """Change metadata.

    Renames first, then removes, then sets values; each key keeps its place, and its type unless you give --force-type.
    Refuses what an engine would no longer load, unless you give --anyway. Changes a single file in place if the new
    head is no longer than the old one (--reserve leaves room beforehand); in a split set, replaces shard 1. Layout keys
    (general.alignment, split.*) belong to other commands.

    Two ways to use it:

    \b
    gguftool edit model.gguf --set 'general.name=My mix' --set 'x.list[5]=3' -o new.gguf
    gguftool edit model.gguf --set-token 'eos=<|im_end|>' --in-place
    """  # noqa: D301 - \b keeps the lines of a paragraph
    if recover:
        _recover(model)
        return
    output = one_target(output, in_place=in_place)
    options = output_options(layout, in_place=in_place)
    edits = Edits(
        rename=_renames(rename or [], ()),
        remove=tuple(remove or ()),
        settings=tuple(set_ or ()),
        file_settings=tuple(set_file or ()),
        tokens=tuple(split_assignment(text, (), "--set-token NAME=TEXT") for text in set_token or ()),
        force_type=force_type,
    )
    check_settings(edits)  # before recovery changes the model
    if edits == Edits(force_type=force_type) and not (layout.pad or layout.reserve):
        raise typer.BadParameter(
            "nothing to change: give --set, --set-file, --set-token, --remove, --rename, --pad or --reserve"
        )
    if in_place:
        recover_first(model, dry_run=writing.dry_run)
    opened = open_model(model)
    edits = replace(edits, rename=_renames(rename or [], [kv.key for kv in opened.kvs]))
    plan = plan_edit(opened, edits, output, options.filler, engines=options.engines, anyway=options.anyway)
    carry_out(plan, writing)


def _renames(texts: Sequence[str], keys: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(split_assignment(text, keys, "--rename OLD=NEW") for text in texts)


def _recover(name: str) -> None:
    done = recover_model(name)
    if not done:
        raise SourceError("there is no unfinished change in place here", source=name)
    write("".join(f"{printable(text, 4096)}\n" for text in done))
