"""The edit command: change metadata."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gguftool.cli.shared.console import write
from gguftool.cli.shared.options import InPlace, ModelArgument, OptionalOutput, one_target
from gguftool.cli.shared.running import carry_out, output_options, recover_first, with_inputs
from gguftool.cli.shared.writing import LayoutFlags, Writing, writer
from gguftool.errors import PlanError, SourceError, printable
from gguftool.format.cursor import MAX_HEAD
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.format.values import SHORT_NAMES, parse_value
from gguftool.model.opening import open_model
from gguftool.model.recovery import recover_model
from gguftool.storage.sources.locate import open_source
from gguftool.surgery.edit import Edits, plan_edit


@writer("pad", "reserve")
def edit(
    model: ModelArgument,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=TYPE:VALUE",
            help="Set a value: u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str, or TYPE[] with a JSON list. Repeatable.",
        ),
    ] = None,
    set_file: Annotated[
        list[str] | None,
        typer.Option("--set-file", metavar="KEY=PATH", help="Set a string to a file's content. Repeatable."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="KEY", help="Repeatable.")] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", metavar="OLD=NEW", help="Repeatable.")] = None,
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

    Renames first, then removals, then values, each in its old place. A single file can be changed in place only where
    the new head ends where the old one does (--reserve leaves room for that beforehand); of a split set shard 1 is
    replaced. Keys of the layout (general.alignment, split.*) belong to other commands.
    """
    if recover:
        _recover(model)
        return
    output = one_target(output, in_place=in_place)
    filler = output_options(layout, in_place=in_place).filler
    read = tuple(open_source(_pair(text, "--set-file KEY=PATH")[1]) for text in set_file or [])
    # Arguments are checked before recovery changes the model. It is opened afterwards, and tells its byte order then.
    edits = _edits(set_ or [], set_file or [], remove or [], rename or [], ByteOrder.LITTLE)
    if edits == Edits() and not (layout.pad or layout.reserve):
        raise typer.BadParameter("nothing to change: give --set, --set-file, --remove, --rename, --pad or --reserve")
    if in_place:
        recover_first(model, dry_run=writing.dry_run)
    opened = open_model(model)
    if opened.byte_order is not ByteOrder.LITTLE:
        edits = _edits(set_ or [], set_file or [], remove or [], rename or [], opened.byte_order)
    carry_out(with_inputs(plan_edit(opened, edits, output, filler), read), writing)


def _recover(name: str) -> None:
    done = recover_model(name)
    if not done:
        raise SourceError("there is no unfinished change in place here", source=name)
    write("".join(f"{printable(text, 4096)}\n" for text in done))


def _edits(set_: list[str], set_file: list[str], remove: list[str], rename: list[str], order: ByteOrder) -> Edits:
    values = [_value(text, order) for text in set_] + [_file_value(text, order) for text in set_file]
    return Edits(
        rename=tuple(_pair(text, "--rename OLD=NEW") for text in rename), remove=tuple(remove), values=tuple(values)
    )


def _pair(text: str, usage: str) -> tuple[str, str]:
    key, separator, rest = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"'{text}' is not of the form {usage}")
    return key, rest


def _value(text: str, order: ByteOrder) -> KV:
    key, rest = _pair(text, "--set KEY=TYPE:VALUE")
    name, separator, literal = rest.partition(":")
    kind = SHORT_NAMES.get(name.removesuffix("[]"))
    if not separator or kind is None:
        raise typer.BadParameter(f"'{text}': the type is one of {' '.join(SHORT_NAMES)}, or one of them with []")
    try:
        value: Any = parse_value(literal, kind, is_array=name.endswith("[]"))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}': {error}") from None
    if name.endswith("[]"):
        return make_kv(key, ValueType.ARRAY, value, element=kind, byte_order=order)
    return make_kv(key, kind, value, byte_order=order)


def _file_value(text: str, order: ByteOrder) -> KV:
    key, path = _pair(text, "--set-file KEY=PATH")
    source = open_source(path)
    if source.size > MAX_HEAD:
        raise PlanError(f"has {source.size:,} bytes; a whole head takes at most {MAX_HEAD:,}", source=path)
    content = source.read_at(0, source.size).decode("utf-8", "surrogateescape")
    return make_kv(key, ValueType.STRING, content, byte_order=order)
