"""The target of lint rules: the files of a model as they are, even if they contradict each other.

`open_model` refuses a set with shards that disagree; a linter has to name the disagreement. So this view is flatter:
all files with their heads, and all tensors with the space that each has in its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from gguftool.analysis.placement import PlacementRule, device_of
from gguftool.format.engine_facts.embeddings import EMBEDDINGS
from gguftool.format.file_names import KEY_COUNT, KEY_NO, KEY_TENSORS
from gguftool.format.ggml import TYPES, Formula, TypeTraits, nbytes, type_name
from gguftool.format.header import ARCHITECTURE_KEY, TensorInfo, round_up
from gguftool.format.kv import INTEGERS, KV, ValueType, find_kv
from gguftool.model.model import ModelFile
from gguftool.record import record

_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)", re.DOTALL)


@record
class TensorView:
    """A tensor in its file (an index); `start` is absolute, `room` reaches to the next tensor or the file's end.

    `nbytes` is the size by type, or None if the type is unknown; `overrun` counts how many of these bytes lie beyond
    the file's end. `layer` and `role` are the parts of ``blk.LAYER.ROLE``; without a layer, the role is the whole name.
    """

    info: TensorInfo
    file: int
    start: int
    room: int
    is_last: bool
    alignment: int
    nbytes: int | None
    overrun: int
    traits: TypeTraits | None
    layer: int | None
    role: str

    @property
    def name(self) -> str:
        """The tensor's name as the file has it."""
        return self.info.name

    @property
    def type(self) -> str:
        """The name of the type."""
        return type_name(self.info.type)

    @property
    def ne0(self) -> int:
        """The row length in elements."""
        return self.info.dims[0] if self.info.dims else 1

    @property
    def ne1(self) -> int:
        """The number of rows (of each expert)."""
        return self.info.dims[1] if len(self.info.dims) > 1 else 1

    @property
    def rows(self) -> int:
        """Rows of all experts together."""
        return self.info.elements // self.ne0 if self.ne0 else 0

    @property
    def is_embedding(self) -> bool:
        """Whether its rows are looked up by token."""
        return self.name in EMBEDDINGS

    @property
    def bare_nbytes(self) -> int | None:
        """The bytes as written by tools that forget the row metadata; None for types without row metadata."""
        if self.nbytes is None or self.traits is None or not self.traits.row_meta_size:
            return None
        return self.nbytes - self.traits.row_meta_size * self.rows

    @property
    def lacks_row_meta(self) -> bool:
        """Whether there is space only for the blocks, so that row metadata was forgotten."""
        bare = self.bare_nbytes
        if bare is None or self.nbytes is None or self.room >= self.nbytes:
            return False
        return bare <= self.room < bare + max(self.alignment, 32)

    @property
    def padded(self) -> int | None:
        """`nbytes` rounded up to the file's alignment."""
        return None if self.nbytes is None else round_up(self.nbytes, self.alignment)


@record
class SplitKeys:
    """The split keys of one file; None for a key that is absent or not an integer."""

    number: int | None
    count: int | None
    tensors: int | None


@record
class LintTarget:
    """A model as found; `kvs` are those of the file with the metadata.

    `data_offsets` and `split_keys` have one entry per file; `weights` are the tensors in matrix multiplications.
    `by_name` maps each name to its first tensor, `layers` each layer number to its tensors by role.
    """

    name: str
    files: tuple[ModelFile, ...]
    kvs: tuple[KV, ...]
    data_offsets: tuple[int, ...]
    split_keys: tuple[SplitKeys, ...]
    tensors: tuple[TensorView, ...]
    weights: tuple[TensorView, ...]
    by_name: Mapping[str, TensorView]
    layers: Mapping[int, Mapping[str, TensorView]]
    this_file_only: bool = False
    places: tuple[PlacementRule, ...] = ()
    read_data: bool = False

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" if it is absent or not a string."""
        return self.string(ARCHITECTURE_KEY)

    @property
    def looks_into_data(self) -> bool:
        """Whether samples of data may be read; for remote files only on request, because each costs a round trip."""
        return self.read_data or not any(file.source.is_remote for file in self.files)

    @property
    def kind(self) -> str:
        """`general.type` (model, imatrix, mmproj, adapter), or "" if absent."""
        return self.string("general.type")

    def string(self, key: str) -> str:
        """Find the string under `key`, or ""."""
        kv = find_kv(self.kvs, key)
        return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else ""

    def integer(self, key: str) -> int | None:
        """Find the integer under `key`, or None."""
        return integer_of(find_kv(self.kvs, key))

    @property
    def shard_count(self) -> int:
        """Shards of the set: by the names, else by `split.count`, else 1."""
        shard = self.files[0].shard
        return shard.count if shard else self.integer(KEY_COUNT) or 1

    @property
    def has_metadata(self) -> bool:
        """Whether the file with the metadata is there: shard 1, or a file that is not a shard."""
        return any(file.shard is None or file.shard.number == 1 for file in self.files)

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the missing shards, if all files belong to one set."""
        first = self.files[0].shard
        if first is None or any(file.shard is None or file.shard.prefix != first.prefix for file in self.files):
            return ()
        present = {file.shard.number for file in self.files if file.shard}
        return tuple(number for number in range(1, first.count + 1) if number not in present)

    def device_of(self, name: str) -> str | None:
        """Find the device that the first matching pattern gives a tensor, as llama.cpp's -ot does."""
        rule = device_of(name, self.places)
        return rule.device if rule else None


def integer_of(kv: KV | None) -> int | None:
    """Read the value of an integer entry; None if it is absent or has another type."""
    return int(kv.value()) if kv is not None and kv.type in INTEGERS else None


def _split_keys(kvs: tuple[KV, ...]) -> SplitKeys:
    number, count, tensors = (integer_of(find_kv(kvs, key)) for key in (KEY_NO, KEY_COUNT, KEY_TENSORS))
    return SplitKeys(number=number, count=count, tensors=tensors)


def _weights(tensors: tuple[TensorView, ...], by_name: Mapping[str, TensorView]) -> tuple[TensorView, ...]:
    """Pick the tensors with two or more dims; token embeddings only if they also serve as output."""
    tied = "token_embd.weight" if "output.weight" not in by_name else None
    return tuple(t for t in tensors if len(t.info.dims) > 1 and (not t.is_embedding or t.name == tied))


def target_of(
    name: str,
    files: Iterable[ModelFile],
    *,
    this_file_only: bool = False,
    places: tuple[PlacementRule, ...] = (),
    read_data: bool = False,
) -> LintTarget:
    """Build the view of `files`; the file with the metadata comes first."""
    ordered = sorted(files, key=lambda file: (find_kv(file.header.kvs, ARCHITECTURE_KEY) is None,))
    data_offsets = tuple(file.header.data_offset for file in ordered)
    places_of = enumerate(zip(ordered, data_offsets, strict=True))
    tensors = tuple(tensor for index, (file, start) in places_of for tensor in tensor_views(index, file, start))
    by_name: dict[str, TensorView] = {}
    layers: dict[int, dict[str, TensorView]] = {}
    for tensor in tensors:
        by_name.setdefault(tensor.name, tensor)
        if tensor.layer is not None:
            layers.setdefault(tensor.layer, {}).setdefault(tensor.role, tensor)
    return LintTarget(
        name=name,
        files=tuple(ordered),
        kvs=ordered[0].header.kvs,
        data_offsets=data_offsets,
        split_keys=tuple(_split_keys(file.header.kvs) for file in ordered),
        weights=_weights(tensors, by_name),
        tensors=tensors,
        by_name=by_name,
        layers=dict(sorted(layers.items())),
        this_file_only=this_file_only,
        places=places,
        read_data=read_data,
    )


def tensor_views(index: int, file: ModelFile, data_offset: int) -> tuple[TensorView, ...]:
    """View the tensors of one file in header order; refuse nothing, even if a `room` is negative."""
    infos, header = file.header.tensors, file.header
    if not infos:
        return ()
    alignment, size = header.alignment, file.source.size
    order = sorted(range(len(infos)), key=lambda at: infos[at].offset)
    ends = {here: data_offset + infos[after].offset for here, after in pairwise(order)}
    return tuple(
        _view(info, index, data_offset + info.offset, ends.get(at), size, alignment) for at, info in enumerate(infos)
    )


def _view(info: TensorInfo, file: int, start: int, end: int | None, size: int, alignment: int) -> TensorView:
    match = _LAYER.fullmatch(info.name)
    length = nbytes(info.type, info.dims)
    return TensorView(
        info=info,
        file=file,
        start=start,
        room=(size if end is None else min(end, size)) - start,
        is_last=end is None,
        alignment=alignment,
        nbytes=length,
        overrun=max(0, start + (length or 0) - size),
        traits=TYPES.get(info.type),
        layer=int(match[1]) if match else None,
        role=match[2] if match else info.name,
    )


def out_of_file(tensors: tuple[TensorView, ...]) -> tuple[TensorView, ...]:
    """List the tensors of one file with data beyond the file's end.

    Leaves out a last tensor that lacks only its row metadata, like all others: such a file is complete as its writer
    meant it.
    """
    suspects = tuple(tensor for tensor in tensors if tensor.overrun)
    others = [t for t in tensors if t.bare_nbytes is not None and not t.is_last]
    if len(suspects) == 1 and suspects[0].lacks_row_meta and all(t.lacks_row_meta for t in others):
        return ()
    return suspects


def formula_is_plain(tensor: TensorView) -> bool:
    """Whether the type stores blocks in rows, so that row lengths matter."""
    return tensor.traits is not None and tensor.traits.formula is Formula.STD
