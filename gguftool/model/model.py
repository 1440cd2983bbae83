"""One file or many shards as one logical model.

A file's tensors get their places here: an extent of its source, sized by the type table and cross-checked against the
gap to the next tensor.  How the files of a set are found is in `model/opening.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise

from gguftool.errors import FormatError, printable
from gguftool.format.file_names import ShardName
from gguftool.format.ggml import nbytes, type_name
from gguftool.format.header import DEFAULT_ALIGNMENT, Header, TensorInfo, round_up
from gguftool.format.kv import KV, ByteOrder, find_kv
from gguftool.record import record
from gguftool.storage.sources.source import Extent, Source


class Sizing(Enum):
    """What is known of a tensor's size."""

    EXACT = "by type"  # the type is known and the gap in the file agrees
    GAP = "by gap"  # the type is unknown (or its rows are no whole blocks): all up to the next tensor
    CONFLICT = "type and gap disagree"


@record
class Tensor:
    """A tensor and where its bytes are.

    `padded_extent` reaches from its first byte to the next tensor; of the last tensor in the file, to the end of its
    padding, or of the file if its size is unknown. `type_nbytes` is its size by the type, None if that is unknown;
    `alignment` is that of its file. All in bytes.
    """

    info: TensorInfo
    padded_extent: Extent
    type_nbytes: int | None
    sizing: Sizing
    alignment: int

    @property
    def nbytes(self) -> int:
        """Bytes of data without padding, as far as that can be known."""
        return self.padded_extent.length if self.type_nbytes is None else self.type_nbytes

    @property
    def extent(self) -> Extent:
        """The data without padding."""
        return Extent(source=self.padded_extent.source, offset=self.padded_extent.offset, length=self.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """True bits per element, row meta included; 0 for a tensor without elements."""
        return self.nbytes * 8 / self.info.elements if self.info.elements else 0.0


@record
class ModelFile:
    """One GGUF file of a model; `shard` is its name taken apart, None for a name that is no shard's."""

    source: Source
    header: Header
    shard: ShardName | None


@record
class Model:
    """One logical model: `kvs` of the file that carries the metadata, `tensors` of all files in model order.

    `missing` names shards that the set lacks; `expected_tensors` is `split.tensors.count`; `remarks` say what opening
    left out or decided.
    """

    name: str
    files: tuple[ModelFile, ...]
    kvs: tuple[KV, ...]
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...] = ()
    expected_tensors: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The GGUF version of the file with the metadata."""
        return self.files[0].header.version

    @property
    def byte_order(self) -> ByteOrder:
        """The byte order of the file with the metadata."""
        return self.files[0].header.byte_order

    @property
    def alignment(self) -> int:
        """The alignment of the file with the metadata, in bytes."""
        return self.files[0].header.alignment

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of all files."""
        return tuple(file.source for file in self.files)

    def get(self, key: str) -> KV | None:
        """Return the first metadata entry under `key`, or None."""
        return find_kv(self.kvs, key)

    @property
    def is_complete(self) -> bool:
        """Whether, as far as the files tell, no shard and no tensor is missing."""
        return not self.missing and self.expected_tensors in (None, len(self.tensors))


def tensors_of(source: Source, header: Header) -> tuple[Tensor, ...]:
    """Place the tensors of one file, in header order.

    Raises `FormatError` where data would lie outside the file.
    """
    alignment = header.alignment
    data_offset = round_up(header.length, alignment)  # asking for both costs twice, for each of a set's files
    ends = _next_offsets(header.tensors)
    return tuple(
        _place(source, index, info, data_offset, end, alignment)
        for index, (info, end) in enumerate(zip(header.tensors, ends, strict=True))
    )


def _next_offsets(infos: Sequence[TensorInfo]) -> list[int | None]:
    """Return for each tensor the offset of the next one in the file, None for the last; order of infos is free."""
    order = sorted(range(len(infos)), key=lambda index: infos[index].offset)
    ends: list[int | None] = [None] * len(infos)
    for here, after in pairwise(order):
        ends[here] = infos[after].offset
    return ends


def _place(source: Source, index: int, info: TensorInfo, data_offset: int, end: int | None, alignment: int) -> Tensor:
    size = nbytes(info.type, info.dims)
    start = data_offset + info.offset
    room = source.size - start
    if room < (size or 0):
        raise FormatError(
            f"{type_name(info.type)} data of {size or 0:,} bytes at {start:,} ends outside the file of "
            f"{source.size:,} bytes: truncated, or the offset is damaged",
            source=source.name,
            where=f"tensor info {index}, '{printable(info.name, 80)}'",
            offset=start,
        )
    if end is None:
        gap = room if size is None else min(room, round_up(size, alignment))
    else:
        gap = min(data_offset + end, source.size) - start
    return Tensor(
        info=info,
        padded_extent=Extent(source=source, offset=start, length=gap),
        type_nbytes=size,
        sizing=_sizing(size, gap, alignment),
        alignment=alignment,
    )


def _sizing(size: int | None, gap: int, alignment: int) -> Sizing:
    if size is None:
        return Sizing.GAP
    # Engines' own tools pad by 32 whatever the alignment key says, hence the larger of the two.
    return Sizing.EXACT if size <= gap < size + max(alignment, DEFAULT_ALIGNMENT) else Sizing.CONFLICT
