"""Output layouts: from metadata and tensors to an `OutputFile`.

GGUFs are written strictly: offsets are dense and in header order, each tensor is padded to the file's alignment, and
the data starts right after the rounded-up head.  If the alignment does not change, a tensor is copied with its old
padding, so that a file that is split and merged again is the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import pairwise
from pathlib import Path

from gguftool.errors import PlanError, joined_problems, listed, printable
from gguftool.format.cursor import MAX_HEAD
from gguftool.format.ggml import type_name
from gguftool.format.header import ALIGNMENT_KEY, MAX_ALIGNMENT, Header, alignment_of, round_up, serialize
from gguftool.format.kv import KV, ByteOrder, ValueType, find_kv, make_kv
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.padding import Filler, filled
from gguftool.record import record, replace
from gguftool.storage.plan import Mark, OutputFile, coalesce, copies_of
from gguftool.storage.sources.virtual import cut, parts_of


class ForceSizes(Enum):
    """Which size to copy if a tensor's type and the gap to the next tensor disagree."""

    GAP = "gap"
    TYPE = "type"


@record
class Dialect:
    """The properties that all files of an output share: version, byte order, alignment, doubtful sizes, filler."""

    version: int
    byte_order: ByteOrder
    alignment: int
    force_sizes: ForceSizes | None = None
    filler: Filler = Filler()


@record
class OutputOptions:
    """The layout of the output's files; sizes and alignment in bytes.

    `alignment`: of tensor data, default: that of the model that gives the metadata; `force_sizes`: which size to copy
    if a tensor's type and its extent disagree, default: refuse; `filler`: the purpose of `gguftool.padding`;
    `max_size`: write a set of files up to this size, default: one file; `keep_file_type`: keep `general.file_type`;
    `engines`: those that the output is for, default: both; `anyway`: also write files that they do not load, and types
    on which they abort; `true_file_type`: set the file type by the type of most elements, even if all tensors come from
    one model; `texts`: keys with strings to add to the metadata, replacing existing values.
    """

    alignment: int | None = None
    force_sizes: ForceSizes | None = None
    filler: Filler = Filler()
    max_size: int | None = None
    keep_file_type: bool = False
    engines: tuple[str, ...] = ()
    anyway: bool = False
    true_file_type: bool = False
    texts: tuple[tuple[str, str], ...] = ()

    def with_texts(self, kvs: tuple[KV, ...], byte_order: ByteOrder) -> tuple[KV, ...]:
        """`kvs` with the texts to add."""
        added = {key: make_kv(key, ValueType.STRING, text, byte_order=byte_order) for key, text in self.texts}
        return (*(kv for kv in kvs if kv.key not in added), *added.values())

    def dialect_for(self, model: Model) -> Dialect:
        """The dialect of an output with the metadata of `model`."""
        return Dialect(
            version=model.version,
            byte_order=model.byte_order,
            alignment=self.alignment or model.alignment,
            force_sizes=self.force_sizes,
            filler=self.filler,
        )


@record
class PaddedSize:
    """The number of bytes of a tensor to copy, and the `total` to the start of the next tensor."""

    copied: int
    total: int


def padded_size(tensor: Tensor, dialect: Dialect) -> PaddedSize:
    """The size of `tensor` in a file of `dialect`; `check_sizes` must have passed."""
    if tensor.type_nbytes is None or (tensor.sizing is Sizing.CONFLICT and dialect.force_sizes is ForceSizes.GAP):
        return PaddedSize(
            copied=tensor.padded_extent.length, total=round_up(tensor.padded_extent.length, dialect.alignment)
        )
    total = round_up(tensor.nbytes, dialect.alignment)
    keeps_padding = tensor.alignment == dialect.alignment and tensor.sizing is Sizing.EXACT
    return PaddedSize(copied=min(tensor.padded_extent.length, total) if keeps_padding else tensor.nbytes, total=total)


def check_sizes(tensors: Iterable[Tensor], dialect: Dialect) -> None:
    """Raise one `PlanError` that names every tensor with a size in doubt, or if the alignment is too large."""
    if dialect.alignment > MAX_ALIGNMENT:
        raise PlanError(f"an alignment of {dialect.alignment:,} bytes; gguftool writes at most {MAX_ALIGNMENT:,}")
    if dialect.force_sizes is ForceSizes.GAP:
        _refuse_short_gaps(tensors)
    if dialect.force_sizes is not None:
        return
    problems = [problem for tensor in tensors if (problem := _size_problem(tensor, dialect))]
    if problems:
        raise PlanError(
            f"sizes in doubt: {joined_problems(problems)}. --force-sizes gap copies all bytes up to the next tensor, "
            "--force-sizes type copies the size of the type"
        )


def _refuse_short_gaps(tensors: Iterable[Tensor]) -> None:
    """Raise `PlanError` if a gap is shorter than the type's size: no reader could read such a tensor."""
    short = [t.info.name for t in tensors if t.type_nbytes is not None and t.padded_extent.length < t.type_nbytes]
    if short:
        raise PlanError(f"the gap is shorter than the type's size for {listed(short)}; --force-sizes type copies those")


def _size_problem(tensor: Tensor, dialect: Dialect) -> str | None:
    name, kind = printable(tensor.info.name), type_name(tensor.info.type)
    if tensor.sizing is Sizing.CONFLICT:
        return (
            f"'{name}' ({kind}) takes {tensor.nbytes:,} bytes by its type, but {tensor.padded_extent.length:,} in the "
            "file"
        )
    if tensor.sizing is Sizing.GAP and dialect.alignment < tensor.alignment:
        return (
            f"'{name}' ({kind}) takes {tensor.padded_extent.length:,} bytes with padding to {tensor.alignment}, "
            f"so its end is unknown at alignment {dialect.alignment}"
        )
    return None


def gguf_file(path: Path, kvs: Sequence[KV], tensors: Sequence[Tensor], dialect: Dialect) -> OutputFile:
    """Lay out one GGUF file with `kvs` and `tensors`, in this order.

    The head is padded by `dialect.filler`; raises `PlanError` if that is impossible, or the head is too large to be
    read back. The last tensor has padding only if its source has it: some writers leave it out, and every loader
    accepts that.
    """
    sizes = [padded_size(tensor, dialect) for tensor in tensors]
    infos, offset = [], 0
    for tensor, padded in zip(tensors, sizes, strict=True):
        infos.append(replace(tensor.info, offset=offset))
        offset += padded.total
    header = Header(version=dialect.version, byte_order=dialect.byte_order, kvs=tuple(kvs), tensors=tuple(infos))
    places = [
        copy
        for tensor, padded, info in zip(tensors, sizes, infos, strict=True)
        for copy in copies_of(cut(tensor.padded_extent, 0, padded.copied), info.offset)
    ]
    head = serialize(filled(header, places, dialect.filler))
    if len(head) > MAX_HEAD:
        raise PlanError(f"a head of {len(head):,} bytes; gguftool reads back at most {MAX_HEAD:,}", source=str(path))
    copies = [replace(place, offset=len(head) + place.offset) for place in places]
    size = _file_size(head, tensors, sizes, dialect)
    marks = _marks(tensors, [len(head) + info.offset for info in infos], size)
    return OutputFile(path=path, head=head, copies=coalesce(copies), size=size, marks=marks)


def marks_of(tensors: Iterable[Tensor]) -> tuple[Mark, ...]:
    """The marks of `tensors` in a file that is copied unchanged."""
    return tuple(Mark(name=t.info.name, offset=t.extent.offset, length=t.nbytes) for t in tensors)


def _marks(tensors: Sequence[Tensor], starts: Sequence[int], size: int) -> tuple[Mark, ...]:
    """Mark each tensor's data without padding; for an unknown type, the bytes that a reader would use as its data."""
    return tuple(
        Mark(name=tensor.info.name, offset=start, length=end - start if tensor.type_nbytes is None else tensor.nbytes)
        for tensor, (start, end) in zip(tensors, pairwise([*starts, size]), strict=True)
    )


def _file_size(head: bytes, tensors: Sequence[Tensor], sizes: Sequence[PaddedSize], dialect: Dialect) -> int:
    size = len(head) + sum(padded.total for padded in sizes)
    if not tensors:
        return size
    last, padded = tensors[-1], sizes[-1]
    end = parts_of(last.padded_extent)[-1]
    unpadded_in_source = last.alignment == dialect.alignment and end.end == end.source.size
    return size - (padded.total - padded.copied) if unpadded_in_source else size


def with_alignment(kvs: Sequence[KV], alignment: int, byte_order: ByteOrder) -> tuple[KV, ...]:
    """Set `alignment` in `kvs`, as u32 in the key's old place; unchanged if it is already set, as u32 or by default.

    Loaders refuse the key in any other type.
    """
    found = find_kv(kvs, ALIGNMENT_KEY)
    if alignment_of(kvs) == alignment and (found is None or found.type is ValueType.UINT32):
        return tuple(kvs)
    key = make_kv(ALIGNMENT_KEY, ValueType.UINT32, alignment, byte_order=byte_order)
    if any(kv.key == ALIGNMENT_KEY for kv in kvs):
        return tuple(key if kv.key == ALIGNMENT_KEY else kv for kv in kvs)
    return (*kvs, key)
