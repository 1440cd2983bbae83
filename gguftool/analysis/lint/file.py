"""Rules of soundness: one file by itself, its metadata, offsets, sizes and padding.

Sources: ggml docs/gguf.md. The limits of each loader are separate rules, in loaders.py.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from gguftool.analysis.lint.heads.causes import named_for
from gguftool.analysis.lint.kinds import kind_in_words
from gguftool.analysis.lint.rules import Hit, Severity, hits_by_message, rule
from gguftool.analysis.lint.target import LintTarget, TensorView
from gguftool.analysis.lint.way_out import edit_command, value_text
from gguftool.errors import printable
from gguftool.format.engine_facts.other_meanings import other_meanings
from gguftool.format.header import DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, round_up
from gguftool.format.kv import KV, ByteOrder, ValueType
from gguftool.model.model import ModelFile

_T = TypeVar("_T")

MAX_KEY = 65535  # bytes; docs/gguf.md
PADDING_SAMPLES = 16  # paddings to sample in a whole model
PADDING_READ = 4096  # bytes read of one padding
DATA_SAMPLES = 24  # tensors to sample in a whole model
DATA_READ = 256  # bytes read at each of three places of one
SMALLEST_SAMPLED = 64 << 10  # smaller tensors may well be zero: biases, scales
TAIL_READ = 64 << 10  # bytes after the data to search for another head


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """Pick at most `count` of `items`, evenly spread, with the first and the last."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / (count - 1)
    return [items[round(index * step)] for index in range(count)]


def _shown(file: ModelFile) -> str:
    return printable(file.source.name, 4096)


# --- sizes and offsets -----------------------------------------------------------------------------------------------


@rule("F01", Severity.ERROR, way_out="the file was written with other sizes or is damaged: fetch or make it again")
def data_too_short(target: LintTarget) -> Iterator[Hit]:
    """A tensor has less space than its type needs."""
    short = (
        t
        for t in target.tensors
        if t.nbytes is not None and 0 < t.room < t.nbytes and not t.lacks_row_meta and not _shares_start(t)
    )
    yield from hits_by_message(short, lambda t: f"{t.type} data of {t.nbytes:,} bytes has space for {t.room:,}")


@rule(
    "F02",
    Severity.ERROR,
    way_out="the missing scales are not in the file: quantize these tensors again with a current ik_llama.cpp",
)
def row_meta_forgotten(target: LintTarget) -> Iterator[Hit]:
    """The row metadata of the type was forgotten when offsets were computed."""

    def describe(tensor: TensorView) -> str:
        meta = tensor.traits.row_meta_size if tensor.traits else 0
        return f"{tensor.type} keeps {meta} more bytes in each row, but there is space only for the blocks"

    yield from hits_by_message((t for t in target.tensors if t.lacks_row_meta), describe)


@rule(
    "F03",
    Severity.WARNING,
    way_out="'gguftool merge FILE -o NEW --force-sizes type' writes the tensors without them, if the types are right",
)
def unexplained_gap(target: LintTarget) -> Iterator[Hit]:
    """There are bytes between two tensors that nothing explains."""
    for tensor in target.tensors:
        if tensor.nbytes is None or tensor.is_last:
            continue
        extra = tensor.room - tensor.nbytes
        if extra >= max(tensor.alignment, DEFAULT_ALIGNMENT):
            yield Hit(message=f"{extra:,} bytes after the {tensor.nbytes:,} of {tensor.type}", tensors=(tensor.name,))


def _shares_start(tensor: TensorView) -> bool:
    return tensor.room == 0 and not tensor.is_last


@rule("F04", Severity.ERROR, way_out="one of the offsets is damaged: fetch or make the file again")
def same_offset(target: LintTarget) -> Iterator[Hit]:
    """Two tensors start at the same place."""
    filled = [tensor for tensor in target.tensors if tensor.nbytes != 0]
    ordered = sorted(filled, key=lambda tensor: (tensor.file, tensor.start))
    for (_, start), members in groupby(ordered, key=lambda tensor: (tensor.file, tensor.start)):
        names = tuple(tensor.name for tensor in members)
        if len(names) > 1:
            yield Hit(message=f"{len(names)} tensors start at offset {start:,}", tensors=names)


@rule("F05", Severity.WARNING, way_out="'gguftool merge FILE -o NEW' writes offsets in header order")
def offsets_not_ascending(target: LintTarget) -> Iterator[Hit]:
    """The data of the tensors is not in the order of their infos."""
    for index, file in enumerate(target.files):
        offsets = [info.offset for info in file.header.tensors]
        back = next((at for at in range(1, len(offsets)) if offsets[at] < offsets[at - 1]), None)
        if back is not None:
            name = target.files[index].header.tensors[back].name
            yield Hit(message=f"the data of tensor info {back} lies before that of the previous one", tensors=(name,))


@rule("F06", Severity.ERROR, way_out="'gguftool merge FILE -o NEW' writes aligned offsets, if the data is right")
def offset_not_aligned(target: LintTarget) -> Iterator[Hit]:
    """A tensor's offset is not a multiple of the alignment."""
    off = (t for t in target.tensors if t.info.offset % t.alignment)
    yield from hits_by_message(off, lambda t: f"offset is not a multiple of {t.alignment}")


@rule("F07", Severity.WARNING, way_out="harmless to engines; 'gguftool merge FILE -o NEW --align 64' rewrites it")
def padding_not_zero(target: LintTarget) -> Iterator[Hit]:
    """Padding between tensors is not zero."""
    if not target.looks_into_data:
        return
    padded = [t for t in target.tensors if t.nbytes is not None and 0 < t.room - t.nbytes < t.alignment]
    looked = spread(padded, PADDING_SAMPLES)
    dirty = []
    for tensor in looked:
        length = min(tensor.room - (tensor.nbytes or 0), PADDING_READ)
        if any(target.files[tensor.file].source.read_at(tensor.start + (tensor.nbytes or 0), length)):
            dirty.append(tensor.name)
    if dirty:
        message = f"bytes other than zero in {len(dirty)} of {len(looked)} sampled paddings"
        yield Hit(message=message, tensors=tuple(dirty))


@rule("F08", Severity.WARNING, way_out="'gguftool merge FILE -o NEW --align 32' re-aligns")
def odd_alignment(target: LintTarget) -> Iterator[Hit]:
    """The alignment is unusual."""
    for file in target.files:
        alignment = file.header.alignment
        if alignment % 8 or alignment > MAX_ALIGNMENT:
            message = f"general.alignment is {alignment:,}; the specification wants a multiple of 8"
            yield Hit(message=message, where=_shown(file))


@rule(
    "F14",
    Severity.WARNING,
    way_out="its size is a guess (the gap to the next tensor); ask the file's author which fork reads it",
)
def unknown_type(target: LintTarget) -> Iterator[Hit]:
    """A tensor has a type that neither engine knows."""
    yield from hits_by_message((t for t in target.tensors if t.traits is None), _describe_unknown)


def _describe_unknown(tensor: TensorView) -> str:
    holders = [f"{other.name} ({other.holder})" for other in other_meanings(tensor.info.type)]
    return f"{tensor.type}" + (f", which has been {', '.join(holders)}" if holders else " is not a known type")


# --- metadata --------------------------------------------------------------------------------------------------------


def _places_of(target: LintTarget, wrong: Callable[[KV], bool]) -> Iterator[tuple[ModelFile, list[KV]]]:
    for file in target.files:
        found = [kv for kv in file.header.kvs if wrong(kv)]
        if found:
            yield file, found


def _keys(kvs: Sequence[KV]) -> str:
    return ", ".join(f"'{printable(kv.key, 80)}'" for kv in kvs[:4]) + (" ..." if len(kvs) > 4 else "")


@rule("F09", Severity.ERROR, way_out="keep one of them; llama.cpp refuses the file, ik_llama.cpp takes the first")
def duplicate_keys(target: LintTarget) -> Iterator[Hit]:
    """A metadata key occurs twice."""
    for file in target.files:
        twice = file.header.duplicate_keys()
        if twice:
            shown = ", ".join(f"'{printable(key, 80)}'" for key in twice[:4])
            message = f"{len(twice)} key(s) occur more than once: {shown}"
            yield Hit(message=message, where=_shown(file), way_out=_leave_the_first(target, file, twice))


def _leave_the_first(target: LintTarget, file: ModelFile, keys: Sequence[str]) -> str:
    """Write the command that keeps only the first of each of `keys`; "" if a value is an array."""
    first = [file.header.get(key) for key in keys]
    kvs = [kv for kv in first if kv is not None and kv.type is not ValueType.ARRAY]
    if len(kvs) < len(keys) or file is not target.files[0]:
        return ""
    words = [word for kv in kvs for word in ("--remove", kv.key, "--set", f"{kv.key}={value_text(kv)}")]
    return edit_command(target, *words, does="keeps the first")


@rule("F10", Severity.WARNING, way_out="give it an ASCII name of at most 65,535 bytes")
def odd_keys(target: LintTarget) -> Iterator[Hit]:
    """A metadata key does not follow the specification."""

    def odd(kv: KV) -> bool:
        return not kv.key.isascii() or len(kv.key) > MAX_KEY

    for file, found in _places_of(target, odd):
        message = f"not ASCII or longer than {MAX_KEY:,} bytes: {_keys(found)}"
        yield Hit(message=message, where=_shown(file), way_out=_give_ascii_names(target, [kv.key for kv in found]))


def _give_ascii_names(target: LintTarget, keys: Sequence[str]) -> str:
    """Write the command that renames `keys`, numbered if two would get the same name; "" if no command can."""
    names = [re.sub(r"[^!-~]", "_", key) for key in keys]
    counts = Counter(names)
    names = [name if counts[name] == 1 else f"{name}_{number}" for number, name in enumerate(names, 1)]
    known = {kv.key for file in target.files for kv in file.header.kvs}
    if len({*names, *keys}) < 2 * len(keys) or not known.isdisjoint(names) or any("=" in key for key in keys):
        return ""
    words = [word for key, name in zip(keys, names, strict=True) for word in ("--rename", f"{key}={name}")]
    return edit_command(target, *words, does="gives ASCII names")


@rule("F11", Severity.WARNING, way_out="make the file again with a writer that writes 0 and 1")
def odd_bools(target: LintTarget) -> Iterator[Hit]:
    """A BOOL value is neither 0 nor 1."""

    def odd(kv: KV) -> bool:
        if kv.element_type is not ValueType.BOOL:
            return False
        return max(kv.raw[12:] if kv.type is ValueType.ARRAY else kv.raw, default=0) > 1

    for file, found in _places_of(target, odd):
        single = [kv for kv in found if kv.type is not ValueType.ARRAY]
        words = [word for kv in single for word in ("--set", f"{kv.key}=bool:true")]
        way_out = edit_command(target, *words, does="sets what engines read") if len(single) == len(found) else ""
        yield Hit(message=f"bytes other than 0 and 1 in {_keys(found)}", where=_shown(file), way_out=way_out)


@rule("F12", Severity.WARNING, way_out="engines show it garbled: set it again with --set KEY=str:TEXT of gguftool edit")
def not_utf8(target: LintTarget) -> Iterator[Hit]:
    """Text is not UTF-8."""

    def odd(kv: KV) -> bool:
        return not _is_utf8(kv.key) or (kv.type is ValueType.STRING and not _is_utf8(kv.value()))

    for file, found in _places_of(target, odd):
        yield Hit(message=f"bytes that are not UTF-8 in {_keys(found)}", where=_shown(file))
    names = tuple(tensor.name for tensor in target.tensors if not _is_utf8(tensor.name))
    if names:
        way_out = "edit does not rename tensors: convert or fetch the model again"
        yield Hit(message="bytes that are not UTF-8 in tensor names", tensors=names, way_out=way_out)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@rule("F13", Severity.WARNING, way_out="no engine writes such names: distrust the file")
def hostile_names(target: LintTarget) -> Iterator[Hit]:
    """A name holds characters that a terminal acts on or hides."""

    def odd(kv: KV) -> bool:
        return _is_hostile(kv.key)

    for file, found in _places_of(target, odd):
        yield Hit(message=f"control or invisible characters in {_keys(found)}", where=_shown(file))
    names = tuple(tensor.name for tensor in target.tensors if _is_hostile(tensor.name))
    if names:
        yield Hit(message="control or invisible characters in tensor names", tensors=names)


def _is_hostile(text: str) -> bool:
    return not text.isprintable() and printable(text, len(text)) != text


@rule(
    "F15",
    Severity.ERROR,
    way_out="take the metadata from the original model",
)
def no_architecture(target: LintTarget) -> Iterator[Hit]:
    """The model does not name its architecture."""
    later_shard = (target.split_keys[0].number or 0) > 0
    if target.has_metadata and not later_shard and not target.architecture and not kind_in_words(target):
        yield Hit(
            message="general.architecture is absent or not a string",
            where=_shown(target.files[0]),
            way_out=named_for(target),
        )


@rule(
    "F16",
    Severity.ERROR if sys.byteorder == "little" else Severity.INFO,
    way_out="engines read only the byte order of the machine they run on: convert it there with gguf_convert_endian.py",
)
def big_endian(target: LintTarget) -> Iterator[Hit]:
    """The file is big-endian."""
    big = [file for file in target.files if file.header.byte_order is ByteOrder.BIG]
    if big:
        yield Hit(message=f"{len(big)} of {len(target.files)} file(s) are big-endian", where=_shown(big[0]))


@rule("F27", Severity.INFO, way_out="give it to the tool or option that it is for")
def not_a_model(target: LintTarget) -> Iterator[Hit]:
    """The file is not a language model."""
    kind = kind_in_words(target)
    if kind:
        yield Hit(message=printable(kind, 400), where=_shown(target.files[0]))


# --- data ------------------------------------------------------------------------------------------------------------


def _tails(target: LintTarget) -> Iterator[tuple[ModelFile, int, bool]]:
    """Yield files with bytes after their data: where those start, and whether another head follows soon."""
    ends = list(target.data_offsets)
    for t in target.tensors:
        ends[t.file] = max(ends[t.file], t.start + (t.room if t.nbytes is None else t.nbytes))
    for file, end in zip(target.files, ends, strict=True):
        tail = file.source.size - round_up(end, max(file.header.alignment, DEFAULT_ALIGNMENT))
        if tail > 0:
            start = end
            data = file.source.read_at(start, min(file.source.size - start, TAIL_READ))
            yield file, start, any(data[at : at + 4] == MAGIC for at in range(0, len(data), 4))


@rule(
    "F17",
    Severity.WARNING,
    way_out="llama.cpp ignores them, Ollama fails on them; 'gguftool merge FILE -o NEW' leaves them out",
)
def trailing_bytes(target: LintTarget) -> Iterator[Hit]:
    """There are bytes after the data of the last tensor."""
    for file, start, has_head in _tails(target):
        if not has_head:
            message = f"{file.source.size - start:,} bytes from offset {start:,} on belong to no tensor"
            yield Hit(message=message, where=_shown(file))


@rule(
    "F18",
    Severity.ERROR,
    way_out="gguf-split shards are not byte ranges: fetch them again and load shard 1, or merge them with gguftool",
)
def joined_files(target: LintTarget) -> Iterator[Hit]:
    """Another GGUF starts after the data: shards were joined with cat."""
    for file, start, has_head in _tails(target):
        if has_head:
            yield Hit(message=f"a GGUF head follows the data that ends at {start:,}", where=_shown(file))


@rule(
    "F19",
    Severity.WARNING,
    way_out="an interrupted download leaves holes of zeros: compare the sha256 with the one its publisher gives",
)
def zeroed_data(target: LintTarget) -> Iterator[Hit]:
    """A large tensor is zero at every sampled place."""
    if not target.looks_into_data:
        return
    large = [
        t for t in target.tensors if len(t.info.dims) > 1 and t.nbytes is not None and t.nbytes >= SMALLEST_SAMPLED
    ]
    looked = spread([t for t in large if not t.overrun], DATA_SAMPLES)
    zero = tuple(t.name for t in looked if _is_zero(target, t))
    if zero:
        yield Hit(message=f"{len(zero)} of the {len(looked)} sampled tensors hold only zeros", tensors=zero)


def _is_zero(target: LintTarget, tensor: TensorView) -> bool:
    source, length = target.files[tensor.file].source, tensor.nbytes or 0
    return not any(any(source.read_at(tensor.start + length * at // 7, DATA_READ)) for at in (1, 3, 5))
