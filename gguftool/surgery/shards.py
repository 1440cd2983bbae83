"""Lay out sets of shards: distribute tensors over new shards (by number or bytes), and rewrite existing sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gguftool.errors import PlanError, printable
from gguftool.format.file_names import (
    IK_MAX_SHARDS,
    KEY_COUNT,
    KEY_NO,
    KEY_TENSORS,
    MAX_SHARDS,
    ShardName,
    parse_shard_name,
)
from gguftool.format.header import ALIGNMENT_KEY, Header, round_up
from gguftool.format.kv import KV, ByteOrder, ValueType, find_kv, make_kv
from gguftool.model.layout import Dialect, gguf_file, marks_of, padded_size, with_alignment
from gguftool.model.model import Model, ModelFile, Tensor, tensors_of
from gguftool.model.opening import ORDER_KEY
from gguftool.model.padding import PADDING_KEY
from gguftool.record import record, replace
from gguftool.storage.plan import Copy, OutputFile
from gguftool.storage.sources.source import whole
from gguftool.surgery.metadata import without_layout_keys


@record
class Cut:
    """How to cut: by tensors per shard, or by bytes per file (`max_size`, which takes precedence); sizes in bytes.

    `bundle_small`: tensors below this size go into shard 1; `tensor_first`: shard 1 holds others too.
    """

    max_tensors: int = 1
    max_size: int | None = None
    bundle_small: int = 0
    tensor_first: bool = False


def lay_out_set(
    prefix: str, metadata: tuple[KV, ...], tensors: tuple[Tensor, ...], cut: Cut, dialect: Dialect
) -> tuple[tuple[OutputFile, ...], tuple[str, ...]]:
    """Lay out the files ``PREFIX-00001-of-NNNNN.gguf``, and collect remarks; all `metadata` is in shard 1.

    Raises `PlanError` if PREFIX names no file or there would be more than 65,535 shards.
    """
    if not Path(prefix).name or prefix.endswith("/"):
        raise PlanError(f"PREFIX '{printable(prefix)}' ends in a folder; give the start of the file names too")
    cutter = _Cutter(
        metadata=metadata,
        tensors=tensors,
        bundled=tuple(tensor for tensor in tensors if tensor.nbytes < cut.bundle_small),
        options=cut,
        dialect=dialect,
    )
    cutter = replace(cutter, bundled=cutter.bundled_within_limit())
    bundled = {tensor.info.name for tensor in cutter.bundled}
    shards = cutter.cut([tensor for tensor in tensors if tensor.info.name not in bundled])
    if len(shards) > MAX_SHARDS:
        raise PlanError(f"{len(shards):,} shards; split.count holds at most {MAX_SHARDS:,}: raise --max-tensors")
    names = [ShardName(prefix=prefix, number=n, count=len(shards)) for n in range(1, len(shards) + 1)]
    outputs = tuple(
        gguf_file(Path(str(name)), cutter.kvs(name.number, name.count), shard, _dialect_of(name.number, dialect))
        for name, shard in zip(names, shards, strict=True)
    )
    return outputs, tuple(_remarks(outputs, shards, cut))


@record
class _Cutter:
    """Distributes tensors over shards, and decides which metadata each shard has."""

    metadata: tuple[KV, ...]
    tensors: tuple[Tensor, ...]
    bundled: tuple[Tensor, ...]
    options: Cut
    dialect: Dialect

    def kvs(self, number: int, count: int) -> tuple[KV, ...]:
        """The metadata of shard `number` (from 1): all of it in shard 1, else what a loader needs."""
        order = self.dialect.byte_order
        split = _split_kvs(number, count, len(self.tensors), order)
        if number == 1:
            return (*self.metadata, *self._tensor_order(order), *split)
        alignment = find_kv(self.metadata, ALIGNMENT_KEY)
        return split if alignment is None else (alignment, *split)

    def _tensor_order(self, order: ByteOrder) -> tuple[KV, ...]:
        """The key that records the tensors' order for merge, as bundling changes it; empty if nothing is bundled."""
        if not self.bundled:
            return ()
        names = [tensor.info.name for tensor in self.tensors]
        return (make_kv(ORDER_KEY, ValueType.ARRAY, names, element=ValueType.STRING, byte_order=order),)

    def bundled_within_limit(self) -> tuple[Tensor, ...]:
        """The bundled tensors that fit into shard 1: a limit in bytes applies to it too."""
        if self.options.max_size is None:
            return self.bundled
        room, fitting = self._room(1, ()), []
        for tensor in self.bundled:
            need = _info_size(tensor), padded_size(tensor, self.dialect).total
            if self._fits(room, need, 0):
                fitting.append(tensor)
                room = (room[0] + need[0], room[1] + need[1])
        return tuple(fitting)

    def cut(self, others: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Distribute tensors over shards; the first holds only the bundled ones, unless `tensor_first` is set."""
        if not self.options.tensor_first:
            return [self.bundled, *self._fill([], 2, iter(others))]
        first, *rest = self._fill(list(self.bundled), 1, iter(others))
        # In the model's order, so that its last tensor (the only one that may lack padding) is the last here too.
        names = {tensor.info.name for tensor in first}
        return [tuple(tensor for tensor in self.tensors if tensor.info.name in names), *rest]

    def _fill(self, shard: list[Tensor], number: int, tensors: Iterator[Tensor]) -> list[tuple[Tensor, ...]]:
        """Fill shards from `number` on, starting with the tensors already in `shard`."""
        shards: list[tuple[Tensor, ...]] = []
        room = self._room(number, shard)
        held = 0  # tensors bundled into shard 1 do not count against --max-tensors
        for tensor in tensors:
            need = _info_size(tensor), padded_size(tensor, self.dialect).total
            in_first = number + len(shards) == 1  # shard 1 may stay without tensors, any other holds at least one
            if (held or in_first) and not self._fits(room, need, held):
                shards.append(tuple(shard))
                shard, held = [], 0
                room = self._room(number + len(shards), shard)
            shard.append(tensor)
            room = (room[0] + need[0], room[1] + need[1])
            held += 1
        return [*shards, tuple(shard)] if shard or number + len(shards) == 1 else shards

    def _room(self, number: int, shard: Sequence[Tensor]) -> tuple[int, int]:
        """Bytes of a shard (head without padding, data) before more tensors are added."""
        head = Header(
            version=self.dialect.version,
            byte_order=self.dialect.byte_order,
            kvs=self.kvs(number, MAX_SHARDS),
            tensors=tuple(tensor.info for tensor in shard),
        )
        return head.length, sum(padded_size(tensor, self.dialect).total for tensor in shard)

    def _fits(self, room: tuple[int, int], need: tuple[int, int], held: int) -> bool:
        if self.options.max_size is None:
            return held < self.options.max_tensors
        head = round_up(room[0] + need[0], self.dialect.alignment)
        return head + room[1] + need[1] + self.dialect.filler.at_most <= self.options.max_size


def _dialect_of(number: int, dialect: Dialect, old: Header | None = None) -> Dialect:
    """`dialect` for one shard: only the shard with the metadata gets a filler for later edits.

    A shard that has a filler in its `old` header keeps it.
    """
    filler = dialect.filler if number == 1 else replace(dialect.filler, reserve=0)
    if old is not None and old.get(PADDING_KEY) is not None:
        filler = replace(filler, at_least=old.data_offset)
    return replace(dialect, filler=filler)


def _info_size(tensor: Tensor) -> int:
    """Bytes of a tensor info; in version 1, which writes narrower numbers, an upper bound."""
    empty = Header()
    return Header(tensors=(tensor.info,)).length - empty.length


def _remarks(outputs: Sequence[OutputFile], shards: Sequence[Sequence[Tensor]], options: Cut) -> Iterator[str]:
    if options.max_size is not None:
        for output, shard in zip(outputs, shards, strict=True):
            if output.size > options.max_size:
                what = f"'{printable(shard[0].info.name)}' alone is larger" if shard else "the metadata is larger"
                yield f"{output.path.name} has {output.size:,} bytes, over the limit of {options.max_size:,}: {what}"
    if len(shards) > IK_MAX_SHARDS:
        yield (
            f"{len(shards):,} files: ik_llama.cpp opens at most {IK_MAX_SHARDS} unless it was built with a larger "
            "GGML_MAX_CONTEXTS"
        )


# --- existing sets ---------------------------------------------------------------------------------------------------


@record
class TensorChanges:
    """Changes to the tensors of a model: `taken` replaces by name, `added` puts scales after a weight, `dropped`."""

    taken: Mapping[str, Tensor]
    added: Mapping[str, tuple[Tensor, ...]]
    dropped: frozenset[str]

    @property
    def more(self) -> int:
        """The number of tensors by which the model grows."""
        return sum(map(len, self.added.values())) - len(self.dropped)

    def touches(self, name: str) -> bool:
        """Whether the tensor called `name`, or its scales after it, change."""
        return name in self.taken or name in self.added or name in self.dropped

    def applied(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """`tensors` with the changes made."""
        changed = []
        for tensor in tensors:
            name = tensor.info.name
            if name not in self.dropped:
                changed += [self.taken.get(name, tensor), *self.added.get(name, ())]
        return changed


NO_CHANGES = TensorChanges(taken={}, added={}, dropped=frozenset())


def rewrite_set(
    model: Model, kvs: tuple[KV, ...], changes: TensorChanges, prefix: Path, dialect: Dialect
) -> tuple[OutputFile, ...]:
    """Lay out the shards of `model` under a new prefix, with `kvs` in shard 1 and the tensors of `changes` replaced.

    Shards in which nothing changes are copied whole.
    """
    count, start = len(model.files), str(prefix).removesuffix(".gguf")
    outputs = []
    for number, file in enumerate(_in_shard_order(model), start=1):
        path = Path(str(ShardName(prefix=start, number=number, count=count)))
        own = _own_kvs(file, kvs if file is model.files[0] else None, _shard_dialect(file, model, dialect))
        if changes.more or (file.shard and (file.shard.number, file.shard.count)) != (number, count):
            own = _renumbered(own, number, count, len(model.tensors) + changes.more, dialect.byte_order)
        copy = Copy(extent=whole(file.source), offset=0)
        changed = _rewritten(file, path, own, changes, _shard_dialect(file, model, dialect))
        marks = marks_of(tensors_of(file.source, file.header))
        same = OutputFile(path=path, head=b"", copies=(copy,), size=file.source.size, marks=marks)
        outputs.append(changed or same)
    return tuple(outputs)


def recorded_sequence(model: Model) -> tuple[str, ...]:
    """The tensors' names in the order that a bundling split recorded in `model`, else empty."""
    return () if model.get(ORDER_KEY) is None else tuple(model.tensors)


def replace_shards(
    model: Model, kvs: tuple[KV, ...], changes: TensorChanges, dialect: Dialect
) -> tuple[tuple[OutputFile, ...], Path]:
    """Lay out the shards of `model` that change, to replace them in place; the second item is the path of shard 1.

    Raises `PlanError` if nothing changes, or the files are not one local set with one prefix.
    """
    shards = [parse_shard_name(file.source.name) for file in model.files]  # engines and recovery go by the names
    if any(source.file_id is None for source in model.sources):
        raise PlanError("is not local, and cannot be changed in place; -o PREFIX writes a new set", source=model.name)
    if any(shard is None or shard.prefix != (shards[0] or shard).prefix for shard in shards):
        raise PlanError("is not one set of shards; -o PREFIX writes a new set", source=model.name)
    outputs = []
    for file in model.files:
        own_dialect = _shard_dialect(file, model, dialect)
        own = _own_kvs(file, kvs if file is model.files[0] else None, own_dialect)
        output = _rewritten(file, Path(file.source.name), own, changes, own_dialect)
        if output is not None:
            outputs.append(replace(output, replaces=file.source))
    if not outputs:
        raise PlanError("nothing would change", source=model.name)
    return tuple(outputs), Path(model.files[0].source.name)


def _shard_dialect(file: ModelFile, model: Model, dialect: Dialect) -> Dialect:
    """The dialect of one shard: shards may differ in alignment, and keep theirs unless another is requested."""
    if dialect.alignment == model.alignment:
        dialect = replace(dialect, alignment=file.header.alignment)
    return _dialect_of(1 if file is model.files[0] else 2, dialect, file.header)


def _rewritten(
    file: ModelFile, path: Path, own: tuple[KV, ...], changes: TensorChanges, dialect: Dialect
) -> OutputFile | None:
    """Lay out a shard again with the metadata `own`, or None if nothing in it changes."""
    differs = own != file.header.kvs or any(changes.touches(info.name) for info in file.header.tensors)
    if not differs and not dialect.filler.reserve:
        return None
    return gguf_file(path, own, changes.applied(tensors_of(file.source, file.header)), dialect)


def _in_shard_order(model: Model) -> list[ModelFile]:
    """The files, the one with the metadata first; for a model joined from partial sets, by shard number."""
    first, *others = model.files
    return [first, *sorted(others, key=lambda file: file.shard.number if file.shard else 0)]


def _split_kvs(number: int, count: int, n_tensors: int, order: ByteOrder) -> tuple[KV, ...]:
    """The keys of shard `number` (from 1) of `count`, in the order of llama-gguf-split (tools/gguf-split)."""
    return (
        make_kv(KEY_NO, ValueType.UINT16, number - 1, byte_order=order),
        make_kv(KEY_TENSORS, ValueType.INT32, n_tensors, byte_order=order),
        make_kv(KEY_COUNT, ValueType.UINT16, count, byte_order=order),
    )


def _renumbered(kvs: tuple[KV, ...], number: int, count: int, n_tensors: int, order: ByteOrder) -> tuple[KV, ...]:
    """Set the split keys of shard `number` of `count` in `kvs`, in their old places."""
    new = {kv.key: kv for kv in _split_kvs(number, count, n_tensors, order)}
    return (*(new.pop(kv.key, kv) for kv in kvs), *new.values())


def _own_kvs(file: ModelFile, model_kvs: tuple[KV, ...] | None, dialect: Dialect) -> tuple[KV, ...]:
    """A shard's metadata: its own; in shard 1, `model_kvs` replace all but the keys of the layout."""
    kvs = file.header.kvs
    if model_kvs is not None and without_layout_keys(kvs) != without_layout_keys(model_kvs):
        kvs = (*without_layout_keys(model_kvs), *(kv for kv in kvs if not without_layout_keys([kv])))
    return with_alignment(kvs, dialect.alignment, dialect.byte_order)
