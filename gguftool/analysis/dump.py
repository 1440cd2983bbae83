"""Dump: the head of a model, entry by entry."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from gguftool.format.ggml import type_name
from gguftool.format.kv import KV, ValueType
from gguftool.format.pattern import compile_pattern
from gguftool.model.model import Tensor
from gguftool.model.opening import ModelLike, as_model
from gguftool.record import record, replace

if TYPE_CHECKING:
    from gguftool.analysis.imatrix import ImatrixReport  # a twentieth of the start-up of `gguftool dump`

NO_FILE = -1  # in place of an index: a tensor made of parts is in no single file


@record
class FileEntry:
    """One file of the model; offsets and sizes in bytes."""

    path: str
    size: int
    version: int
    byte_order: str
    alignment: int
    data_offset: int
    tensors: int


@record
class KVEntry:
    """One metadata entry; `value` holds an array's first elements up to the limit, `count` is its length."""

    index: int
    key: str
    type: str
    element_type: str | None
    count: int
    value: Any
    truncated: bool


@record
class TensorEntry:
    """One tensor; `offset` is absolute in its `file` (an index into the files), `nbytes` is without padding.

    For a view of several extents, which only a model made in Python has, `file` is -1 and `offset` 0.

    `sizing` says whether `nbytes` is certain ("by type") or the gap to the next tensor ("by gap", unknown types).
    """

    index: int
    name: str
    type: str
    type_id: int
    dims: tuple[int, ...]
    elements: int
    nbytes: int
    bits_per_weight: float
    file: int
    offset: int
    sizing: str


@record
class Dump:
    """A whole head; `duplicate_keys` occur more than once, `missing` names absent shards.

    `imatrix` describes an importance matrix in GGUF form, or None for a model or if tensors were left out.
    """

    model: str
    files: tuple[FileEntry, ...]
    metadata: tuple[KVEntry, ...]
    tensors: tuple[TensorEntry, ...]
    duplicate_keys: tuple[str, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]
    imatrix: ImatrixReport | None = None


def dump(
    model: ModelLike, *, name_filter: str = "", array_limit: int | None = None, kvs: bool = True, tensors: bool = True
) -> Dump:
    """Describe `model`; `name_filter` is searched in keys and tensor names, `array_limit` cuts arrays.

    With `kvs` or `tensors` false, that part stays empty. Indexes count from 1 as in gguf-dump, over the whole model,
    whatever the filter leaves. Raises `BadPatternError` for a bad filter, and the errors of `open_model` for a path.
    """
    model, wanted = as_model(model), compile_pattern(name_filter)
    places = {file.source.identity: index for index, file in enumerate(model.files)}
    return Dump(
        model=model.name,
        files=tuple(
            FileEntry(
                path=file.source.name,
                size=file.source.size,
                version=file.header.version,
                byte_order=file.header.byte_order.name.lower(),
                alignment=file.header.alignment,
                data_offset=file.header.data_offset,
                tensors=len(file.header.tensors),
            )
            for file in model.files
        ),
        metadata=tuple(
            kv_entry(index, kv, array_limit)
            for index, kv in enumerate(model.kvs, start=1)
            if kvs and wanted.search(kv.key)
        ),
        tensors=tuple(
            _tensor_entry(index, tensor, places.get(tensor.padded_extent.source.identity, NO_FILE))
            for index, tensor in enumerate(model.tensors.values(), start=1)
            if tensors and wanted.search(tensor.info.name)
        ),
        duplicate_keys=model.files[0].header.duplicate_keys(),
        missing=model.missing,
        remarks=model.remarks,
    )


class TensorSort(str, Enum):
    """The sort keys of tensors: names and offsets ascend, sizes descend."""

    NAME = "name"
    TYPE = "type"
    SIZE = "size"
    ELEMENTS = "elements"
    BPW = "bpw"
    OFFSET = "offset"


_SORTS: dict[TensorSort, Callable[[TensorEntry], Any]] = {
    TensorSort.NAME: lambda tensor: natural_key(tensor.name),
    TensorSort.TYPE: lambda tensor: tensor.type,
    TensorSort.SIZE: lambda tensor: -tensor.nbytes,
    TensorSort.ELEMENTS: lambda tensor: -tensor.elements,
    TensorSort.BPW: lambda tensor: -tensor.bits_per_weight,
    TensorSort.OFFSET: lambda tensor: (tensor.file, tensor.offset),
}


def sort_dump(report: Dump, sort: TensorSort | None = None, limit: int | None = None) -> Dump:
    """Sort the tensors of `report`, ties in model order, and keep the first `limit` of them."""
    tensors = report.tensors if sort is None else sorted(report.tensors, key=_SORTS[sort])
    return replace(report, tensors=tuple(tensors[:limit]))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Make a key that sorts numbers in names by value: `blk.2` before `blk.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,18})", name)]


def kv_entry(index: int, kv: KV, limit: int | None) -> KVEntry:
    """Describe an entry; `limit` cuts arrays."""
    is_array = kv.type is ValueType.ARRAY
    return KVEntry(
        index=index,
        key=kv.key,
        type=kv.type.name,
        element_type=kv.element_type.name if is_array else None,
        count=kv.count,
        value=kv.value(limit),
        truncated=is_array and limit is not None and kv.count > limit,
    )


def _tensor_entry(index: int, tensor: Tensor, file: int) -> TensorEntry:
    info = tensor.info
    return TensorEntry(
        index=index,
        name=info.name,
        type=type_name(info.type),
        type_id=info.type,
        dims=info.dims,
        elements=info.elements,
        nbytes=tensor.nbytes,
        bits_per_weight=round(tensor.bits_per_weight, 4),
        file=file,
        offset=tensor.padded_extent.offset,
        sizing=tensor.sizing.value,
    )
