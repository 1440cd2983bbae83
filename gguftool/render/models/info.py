"""Info as text: one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.info import Info, Infos, LayerGroup
from gguftool.errors import listed, printable, shell_word
from gguftool.render.format import Format
from gguftool.render.models.label import label_text
from gguftool.render.registry import renders
from gguftool.render.screen import Commands, Cut
from gguftool.render.table import Column, Table, columns
from gguftool.render.units import format_count, format_size, runs_text

_MAX_TYPES = 4
_MAX_GROUPS = 6  # of layers to show
_NEXT = (
    ("check", "is it sound, which engines run it"),
    ("report", "where the bytes are, layer by layer"),
    ("dump", "every key and every tensor"),
)


@renders(Info, Format.TEXT)
def info_parts(info: Info, command_name: str = "") -> Iterator[str | Table | Commands]:
    """Yield facts, layers, memory, and where to look next: commands on the model as `command_name` names it."""
    yield f"{printable(info.name or info.model, 200)}\n"
    yield _pairs(_facts(info))
    if info.layers:
        yield _layers_table(info.layers)
    if info.memory:
        yield _memory_table(info)
    yield _next(command_name or info.model)


@renders(Infos, Format.TEXT)
def infos_parts(infos: Infos, command_names: Sequence[str] = ()) -> Iterator[str | Table | Commands]:
    """Yield one model after the other."""
    for at, info in enumerate(infos.models):
        yield from info_parts(info, command_names[at] if at < len(command_names) else "")


def _pairs(rows: Iterator[tuple[str, str]]) -> Table:
    """Show names and values side by side, without headings."""
    return Table(title="", columns=(Column(name=""), Column(name="", cut=Cut.WRAP)), rows=tuple(rows))


def _facts(info: Info) -> Iterator[tuple[str, str]]:
    files = "1 file" if info.files == 1 else f"{info.files:,} files"
    yield "file", info.model
    if info.kind != "model":
        yield "kind", info.kind
    yield "architecture", info.architecture or "not named"
    yield "parameters", f"{format_count(info.parameters)} in {info.tensors:,} tensors"
    yield "quantization", label_text(info.label)
    if info.label.claim.agrees is False:
        yield "", info.label.claim.text
    yield "size", f"{format_size(info.file_bytes)} in {files}"
    if info.missing:
        yield "missing", f"{len(info.missing):,} shards: {listed(info.missing, 3)}"
    if info.context_length:
        yield "context", f"{info.context_length:,} tokens"
    if info.heads:
        yield "heads", _heads(info)
    if info.experts:
        used = f", {info.experts_used:,} for each token" if info.experts_used else ""
        yield "experts", f"{info.experts:,}{used}"
    if info.kind == "model":
        yield "tokenizer", _tokenizer(info)
        yield "chat template", "yes" if info.chat_template else "no"
    for gap in info.gaps:
        yield "will not run in", f"{gap.judged_by}: {'; '.join(gap.reasons)}"


def _heads(info: Info) -> str:
    keys = f", {_either(info.kv_heads)} for keys and values" if info.kv_heads else ""
    width = f", embedding of {info.embedding_length:,}" if info.embedding_length else ""
    return f"{_either(info.heads)}{keys}{width}"


def _either(values: Sequence[int]) -> str:
    shown = " or ".join(f"{value:,}" for value in values[:3])
    return f"{shown} ..." if len(values) > 3 else shown


def _tokenizer(info: Info) -> str:
    if info.tokenizer is None:
        return "none"
    tokens = f", {info.tokens:,} tokens" if info.tokens is not None else ""
    return f"{info.tokenizer}{f' ({info.pre_tokenizer})' if info.pre_tokenizer else ''}{tokens}"


def _layers_table(groups: Sequence[LayerGroup]) -> Table:
    stacks = [group.stack for group in groups]
    rows = [_layers_row(group, alone=stacks.count(group.stack) == 1) for group in groups[:_MAX_GROUPS]]
    if len(groups) > _MAX_GROUPS:
        rest = groups[_MAX_GROUPS:]
        layers, size = sum(len(group.layers) for group in rest), sum(group.nbytes for group in rest)
        rows.append((f"{layers:,}x others", "", format_size(size), "", ""))
    heads = columns("layers", ">tensors", ">size", ">bpw", "types")
    return Table(title="", columns=heads, rows=tuple(rows), drop=("tensors", "types", "bpw"))


def _layers_row(group: LayerGroup, *, alone: bool) -> tuple[str, ...]:
    """Write ``30x blk.*``, or ``3x blk.0-2`` if the stack has other layers too; then what they hold."""
    numbers = "*" if alone else runs_text(group.layers, limit=4)
    more = len(group.types) - _MAX_TYPES
    return (
        f"{len(group.layers):,}x {group.stack}.{numbers}",
        f"{group.tensors:,}",
        format_size(group.nbytes),
        f"{group.nbytes * 8 / group.parameters:.2f}" if group.parameters else "",
        ", ".join(group.types[:_MAX_TYPES]) + (f" +{more}" if more > 0 else ""),
    )


def _memory_table(info: Info) -> Table:
    rows = tuple((f"{one.context:,}", format_size(one.kv_cache), format_size(one.total)) for one in info.memory)
    heads = columns(">context", ">KV cache", ">with weights")
    return Table(title="memory in llama.cpp, KV cache in F16, without compute buffers", columns=heads, rows=rows)


def _next(name: str) -> Commands:
    """List commands that tell more, ready to paste."""
    return Commands(commands=tuple((f"gguftool {command} {shell_word(name)}", what) for command, what in _NEXT))
