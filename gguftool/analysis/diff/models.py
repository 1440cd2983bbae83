"""Diff: how two models differ.

By default this compares the meaning of a model: its metadata, and its tensors' types and shapes. It compares the layout
of its files (order, offsets, shards, alignment, padding, byte order) and tensor data only on request.
`diff_headers(a, b)` gives the same result as `diff_headers(b, a)`, with the sides exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from gguftool.analysis.diff.data import DataDiff, DataOptions, DataVerdict, data_size, diff_data
from gguftool.analysis.diff.layout import LayoutChange, diff_layout
from gguftool.analysis.diff.metadata import KVChange, diff_kvs
from gguftool.analysis.diff.tensors import TensorChange, TensorGroup, diff_tensors, group_over_layers
from gguftool.errors import listed
from gguftool.format.header import ALIGNMENT_KEY
from gguftool.format.pattern import compile_pattern
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, as_model
from gguftool.record import record
from gguftool.storage.sources.locate import base_name

_LAYOUT_KEY = re.compile(rf"split\.|(?:{re.escape(ALIGNMENT_KEY)}|gguftool\.padding|gguftool\.tensor_order)\Z")


@record
class DiffOptions:
    """What counts as a difference: with `layout` also the layout, with `data` also tensor data.

    Whatever one of the `ignore` patterns matches does not count.
    """

    layout: bool = False
    ignore: tuple[str, ...] = ()
    data: DataOptions | None = None


@record
class DiffSide:
    """One of the two models; counts cover what is compared, `tensor_bytes` is without padding."""

    model: str
    files: int
    metadata: int
    tensors: int
    tensor_bytes: int


@record
class HeaderDiff:
    """All differences; `groups` has the same tensors as `tensors`, grouped over layers.

    `layout` and `data` are None if they were not compared.
    """

    a: DiffSide
    b: DiffSide
    differs: bool
    metadata: tuple[KVChange, ...]
    tensors: tuple[TensorChange, ...]
    groups: tuple[TensorGroup, ...]
    layout: tuple[LayoutChange, ...] | None
    data: DataDiff | None
    remarks: tuple[str, ...]


def diff_headers(a: ModelLike, b: ModelLike, options: DiffOptions | None = None) -> HeaderDiff:
    """Compare two models; tensor data is read only with `options.data`.

    Raises `SourceError` if that data cannot be read, `BadPatternError` for a bad pattern.
    """
    a, b, options = as_model(a), as_model(b), options or DiffOptions()
    wanted = _wanted(options)

    def wanted_key(key: str) -> bool:
        return wanted(key) and (options.layout or not _LAYOUT_KEY.match(key))

    metadata = diff_kvs(a.kvs, b.kvs, wanted_key)
    tensors = diff_tensors(a.tensors, b.tensors, wanted)
    layout = diff_layout(a, b, wanted) if options.layout else None
    data = diff_data(a, b, wanted, options.data) if options.data else None
    return HeaderDiff(
        a=_side(a, wanted_key, wanted),
        b=_side(b, wanted_key, wanted),
        differs=bool(metadata or tensors or layout or (data and data.differs)),
        metadata=metadata,
        tensors=tensors,
        groups=group_over_layers(tensors),
        layout=layout,
        data=data,
        remarks=(
            *_remarks("A", a),
            *_remarks("B", b),
            *_imatrix_remarks(a, options.data),
            *_shards_that_differ(a, b, tensors, data),
        ),
    )


def bytes_to_compare(a: ModelLike, b: ModelLike, options: DiffOptions) -> int:
    """Count the bytes of tensor data in A that a comparison with `options` reads, for progress."""
    return data_size(as_model(a), as_model(b), _wanted(options))


def _wanted(options: DiffOptions) -> Callable[[str], bool]:
    ignored = [compile_pattern(pattern) for pattern in options.ignore]
    return lambda name: not any(pattern.search(name) for pattern in ignored)


def _side(model: Model, wanted_key: Callable[[str], bool], wanted: Callable[[str], bool]) -> DiffSide:
    tensors = [tensor for name, tensor in model.tensors.items() if wanted(name)]
    return DiffSide(
        model=model.name,
        files=len(model.files),
        metadata=sum(wanted_key(kv.key) for kv in model.kvs),
        tensors=len(tensors),
        tensor_bytes=sum(tensor.nbytes for tensor in tensors),
    )


def _imatrix_remarks(a: Model, data: DataOptions | None) -> tuple[str, ...]:
    if data is None or data.imatrix is None:
        return ()
    entries = data.imatrix.entries
    unmatched = [name for name in entries if name not in a.tensors]
    if not unmatched:
        return ()
    return (f"{len(unmatched):,} of the {len(entries):,} imatrix entries match no tensor of A: {listed(unmatched, 3)}",)


def _shards_that_differ(a: Model, b: Model, changes: Sequence[TensorChange], data: DataDiff | None) -> Iterator[str]:
    """Name the files of a set in which tensors differ: a user fetches or replaces those."""
    names = {change.name for change in changes}
    if data is not None:
        names |= {one.name for one in data.tensors if one.verdict is not DataVerdict.SAME}
    for side, model in (("A", a), ("B", b)):
        held = [model.tensors[name].padded_extent.source.name for name in model.tensors if name in names]
        files = [base_name(name) for name in dict.fromkeys(held)]
        if files and len(model.files) > 1:
            count = f"{len(files):,} of {len(model.files):,} files"
            yield f"{side}: the tensors that differ are in {count}: {listed(files, 8)}"


def _remarks(side: str, model: Model) -> tuple[str, ...]:
    remarks = [f"{side}: {text}" for text in model.remarks]
    if model.missing:
        shown = listed(model.missing, 2)
        remarks.append(f"{side} is incomplete; tensors in missing shards count as absent: {shown}")
    return tuple(remarks)
