"""Views: tensors made of parts of others. No byte is decoded, computed or moved; a view is a tensor like any other.

A tensor consists of rows; a row consists of its own metadata, if its type has that, and its blocks. So along axis 1, 2
and 3 a range of indices is a range of bytes, in each of the slices of the higher axes. This holds for every type, if
groups of rows that are packed together stay whole. Blocks within a row share scales, so axis 0 is not cut. Tensors of
types that do not store row after row are only moved as a whole.

A view that ends where its tensor ends keeps the padding after it: parts that are joined again give the tensor that they
were taken from, byte for byte.
"""

from __future__ import annotations

import math
import operator
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gguftool.errors import PlanError, command_line, listed, printable
from gguftool.format.file_names import SPLIT_KEYS
from gguftool.format.ggml import TYPES, Formula, TypeTraits, find_type, type_alias
from gguftool.format.header import TensorInfo
from gguftool.format.kv import KV, ByteOrder
from gguftool.model.model import Model, Sizing, Tensor, shape_text
from gguftool.model.opening import ORDER_KEY
from gguftool.record import replace
from gguftool.storage.sources.locate import new_name
from gguftool.storage.sources.source import Extent, whole
from gguftool.storage.sources.virtual import BytesSource, cut, joined, parts_of

MAX_PIECES = 1 << 20  # per tensor: bounds the memory of a plan, however small the pieces; vocabularies have 262,144
_AXES = 4  # of ggml (GGML_MAX_DIMS); files leave out trailing ones

_Range = tuple[Tensor, int, int]  # a tensor, and offset and length in its data


def take(tensor: Tensor, axis: int, indices: Sequence[int]) -> Tensor:
    """`tensor` with only the slices `indices` of `axis`, in that order; axis 0 runs along a row.

    Indices may repeat. All of them in order give `tensor` itself. Raises `PlanError` if an index is out of range, or
    the tensor cannot be cut there: see the head of this module.
    """
    if not isinstance(indices, range):
        indices = tuple(map(operator.index, indices))
    dims = _padded(tensor.info.dims, min(axis + 1, _AXES))
    length = dims[axis] if 0 <= axis < len(dims) else -1
    if _are_all(indices, length):
        return tensor
    traits = _refuse_axis(tensor, axis, len(dims))
    _refuse_indices(tensor, axis, length, indices)
    runs = tuple(_runs(indices))
    _refuse_split_groups(tensor, axis, runs, traits.interleaved_rows)
    starts, size = _blocks(tensor, dims, axis), _slice_bytes(tensor, dims, axis)
    _refuse_many(tensor, len(starts) * len(runs))
    ranges = ((tensor, block + start * size, (stop - start) * size) for block in starts for start, stop in runs)
    made = (*dims[:axis], len(indices), *dims[axis + 1 :])
    return _view(tensor, _shortened(made, len(tensor.info.dims)), ranges)


def reshape(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """`tensor` with other `dims` (row length first); the number of elements and the row length stay.

    Raises `PlanError` if rows or the number of elements would differ, or rows that are packed together would be split.
    """
    dims, old = tuple(dims), tensor.info.dims
    if _shortened(dims, 1) != _shortened(old, 1):
        traits = _traits(tensor, f"reshaped to {shape_text(dims)}")
        if not dims or min(dims) < 0 or math.prod(dims) != math.prod(old) or dims[:1] != old[:1]:
            raise PlanError(
                f"{_shown(tensor)} cannot be reshaped to {shape_text(dims)}: dims[0], the length of a row, and the "
                "number of elements must stay"
            )
        rows = dims[1] if len(dims) > 1 else 1
        _refuse_split_groups(tensor, 1, ((0, rows),), traits.interleaved_rows)
    return tensor if dims == old else replace(tensor, info=replace(tensor.info, dims=dims))


def named(tensor: Tensor, name: str) -> Tensor:
    """`tensor` under another name."""
    return tensor if name == tensor.name else replace(tensor, info=replace(tensor.info, name=name))


def cat(axis: int, tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate `tensors` along `axis`, under the name of the first; `axis` may be one more than they have.

    Raises one `PlanError` with all mismatches: types, byte orders and the other dims must be equal, and it must be
    possible to cut each tensor along `axis`.
    """
    if not tensors:
        raise PlanError("no tensors to join; give at least one")
    if len(tensors) == 1:
        return tensors[0]
    longest = max(len(tensor.info.dims) for tensor in tensors)
    first, every = tensors[0], [_padded(tensor.info.dims, max(longest, min(axis + 1, _AXES))) for tensor in tensors]
    _refuse_unequal(axis, tensors, every)
    for tensor, dims in zip(tensors, every, strict=True):
        rows = _refuse_axis(tensor, axis, len(dims)).interleaved_rows
        _refuse_split_groups(tensor, axis, ((0, dims[axis]),), rows)
    starts = [_blocks(tensor, dims, axis) for tensor, dims in zip(tensors, every, strict=True)]
    most = max(len(blocks) for blocks in starts)
    _refuse_many(first, most * len(tensors))
    ranges = (
        (tensor, blocks[number], blocks.step)
        for number in range(most)
        for tensor, blocks in zip(tensors, starts, strict=True)
        if blocks
    )
    made = (*every[0][:axis], sum(dims[axis] for dims in every), *every[0][axis + 1 :])
    return _view(first, _shortened(made, longest), ranges)


def number_list(
    name: str, numbers: Sequence[int], kind: str = "I64", *, byte_order: ByteOrder = ByteOrder.LITTLE
) -> Tensor:
    """A tensor of one row that holds `numbers` as integers of type `kind` (I8 to I64), from memory.

    For computed lists that accompany a view, such as the `d2t` of a draft's vocabulary. Raises `PlanError` if `kind` is
    not an integer type, or a number does not fit.
    """
    traits = find_type(kind)
    if traits is None or traits.kind != "integer":
        raise PlanError(f"'{printable(name)}' as {printable(kind)}: integers are stored as I8, I16, I32 or I64")
    code = {1: "b", 2: "h", 4: "i", 8: "q"}[traits.type_size]
    try:
        data = struct.pack(f"{byte_order.value}{len(numbers)}{code}", *numbers)
    except struct.error as error:
        raise PlanError(f"'{printable(name)}' cannot be stored as {traits.name}: {error}") from error
    source = BytesSource(label=f"numbers of '{printable(name)}'", data=data)
    return Tensor(
        info=TensorInfo(name=name, dims=(len(numbers),), type=traits.id, offset=0),
        padded_extent=whole(source),
        type_nbytes=len(data),
        sizing=Sizing.EXACT,
        alignment=1,
        byte_order=byte_order,
    )


def with_tensors(model: Model, tensors: Iterable[Tensor]) -> Model:
    """`model` with other tensors, as one file; see `Model.with_tensors`."""
    tensors, first = tuple(tensors), model.files[0]
    if problems := name_problems(tensors):
        raise PlanError(problems[0])
    kvs = without_split_keys(model.kvs) if len(model.files) > 1 else model.kvs
    sources = dict.fromkeys(part.source for tensor in tensors for part in parts_of(tensor.padded_extent))
    sources.pop(first.source, None)
    return replace(
        model,
        files=(first,),
        kvs=kvs,
        tensors={tensor.name: tensor for tensor in tensors},
        missing=(),
        expected_tensors=None,
        donors=tuple(sources),
    )


def without_split_keys(kvs: Iterable[KV]) -> tuple[KV, ...]:
    """Leave out the keys that say how a model is split into files."""
    return tuple(kv for kv in kvs if kv.key not in SPLIT_KEYS and kv.key != ORDER_KEY)


def name_problems(tensors: Iterable[Tensor]) -> list[str]:
    """At most one problem: duplicate names."""
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    return [f"several tensors are called {listed(twice)}; a file must not have a name twice"] if twice else []


# --- dims ------------------------------------------------------------------------------------------------------------


def _padded(dims: tuple[int, ...], length: int) -> tuple[int, ...]:
    """At least `length` dims, with the trailing ones that files leave out."""
    return (*dims, *(1 for _ in range(len(dims), length)))


def _shortened(dims: tuple[int, ...], least: int) -> tuple[int, ...]:
    """`dims` without trailing ones, but at least `least` of them."""
    end = len(dims)
    while end > least and dims[end - 1] == 1:
        end -= 1
    return dims[:end]


def _are_all(indices: Sequence[int], length: int) -> bool:
    """Whether `indices` are all below `length`, in order."""
    if isinstance(indices, range):  # it may be longer than `len` can say
        return indices == range(length)
    return len(indices) == length and all(index == place for place, index in enumerate(indices))


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut `indices` into ranges (start, stop) that grow by one."""
    if isinstance(indices, range) and indices.step == 1:
        yield indices.start, indices.stop
        return
    start = stop = indices[0]
    for index in indices:
        if index != stop:
            yield start, stop
            start = index
        stop = index + 1
    yield start, stop


# --- bytes -----------------------------------------------------------------------------------------------------------


def _slice_bytes(tensor: Tensor, dims: tuple[int, ...], axis: int) -> int:
    """Bytes of one index of `axis`; the size is that of the type, so this divides evenly."""
    return tensor.nbytes // math.prod(dims[axis:]) if tensor.nbytes else 0


def _blocks(tensor: Tensor, dims: tuple[int, ...], axis: int) -> range:
    """The starts of the slices of the axes after `axis` in the data; empty if there is no data, whatever the dims."""
    size = dims[axis] * _slice_bytes(tensor, dims, axis)
    return range(0, tensor.nbytes, size) if size else range(0)


def _view(tensor: Tensor, dims: tuple[int, ...], ranges: Iterable[_Range]) -> Tensor:
    """A tensor like `tensor`, of `dims` and the bytes of `ranges`; with the padding after them, if they end there."""
    extents: list[Extent] = []
    size = padding = 0
    for owner, start, length in ranges:
        extents.append(cut(owner.padded_extent, start, length))
        size, padding = size + length, owner.padded_extent.length - owner.nbytes
        padding *= start + length == owner.nbytes
    if padding:
        extents[-1] = cut(extents[-1], 0, extents[-1].length + padding)
    return replace(
        tensor,
        info=replace(tensor.info, dims=dims),
        padded_extent=joined(extents) if extents else cut(tensor.padded_extent, 0, 0),
        type_nbytes=size,
        sizing=Sizing.EXACT,
    )


def _refuse_many(tensor: Tensor, count: int) -> None:
    if count > MAX_PIECES:
        raise PlanError(
            f"{_shown(tensor)} would be made of {count:,} pieces; gguftool allows at most {MAX_PIECES:,} per tensor"
        )


# --- refusals --------------------------------------------------------------------------------------------------------


def _traits(tensor: Tensor, what: str) -> TypeTraits:
    """The type of a tensor that can be cut; raises `PlanError` if its bytes do not follow row after row."""
    traits, why = TYPES.get(tensor.info.type), ""
    if traits is None:
        why = "of a type that gguftool does not know"
    elif tensor.sizing is Sizing.CONFLICT:
        why = f"{tensor.nbytes:,} bytes long by its type, but its place has {tensor.padded_extent.length:,}"
    elif tensor.type_nbytes is None:
        why = f"not made of whole blocks of {traits.block_size} elements"
    elif traits.formula is not Formula.STD:
        why = "of a type that has one scale after all data"
    if traits is None or why:
        raise PlanError(f"{_shown(tensor)} cannot be {what}: it is {why}. It can only be renamed, moved and left out")
    return traits


def _refuse_axis(tensor: Tensor, axis: int, n_dims: int) -> TypeTraits:
    """Raise `PlanError` if `tensor` cannot be cut along `axis`."""
    if not 0 <= axis < n_dims:
        last = max(n_dims, _AXES) - 1
        raise PlanError(f"{_shown(tensor)} has no axis {axis}; its axes are 0 (along a row) to {last}")
    traits = _traits(tensor, f"cut along axis {axis}")
    is_list = len(_shortened(tensor.info.dims, 1)) == 1 and traits.block_size == 1 and traits.interleaved_rows == 1
    if axis == 0 and not (is_list and traits.dtype):
        why = "rows of blocks share scales" if traits.block_size > 1 else "it has more than one row"
        raise PlanError(
            f"{_shown(tensor)} cannot be cut along axis 0, within its rows: {why}. Axis 0 is for lists of plain numbers"
        )
    return traits


def _refuse_indices(tensor: Tensor, axis: int, length: int, indices: Sequence[int]) -> None:
    if not indices:
        raise PlanError(f"{_shown(tensor)}: no indices of axis {axis} are left; leave the tensor out instead")
    ends = (indices[0], indices[-1]) if isinstance(indices, range) else indices
    outside = [str(index) for index in dict.fromkeys(ends) if not 0 <= index < length]
    if outside:
        raise PlanError(f"{_shown(tensor)}: axis {axis} has the indices 0 to {length - 1:,}, not {listed(outside, 8)}")


def _refuse_split_groups(tensor: Tensor, axis: int, runs: Iterable[tuple[int, int]], rows: int) -> None:
    """Raise `PlanError` if a run of rows would split a group of `rows` rows that are packed together."""
    parted = next((run for run in runs if run[0] % rows or run[1] % rows), None) if axis == 1 else None
    if parted is not None:
        raise PlanError(
            f"{_shown(tensor)} packs {rows} rows together: rows {parted[0]:,} to {parted[1] - 1:,} are not whole "
            f"groups of {rows}{_way_out(tensor)}"
        )


def _way_out(tensor: Tensor) -> str:
    """The way to get rows that are not packed together, if the type rearranges the rows of a plain type."""
    from gguftool.format.quants.repacks import REPACKS

    if tensor.type_name not in REPACKS:
        return ""
    name = parts_of(tensor.padded_extent)[0].source.name
    command = command_line("quantize", name, "--repack", "-o", new_name(name))
    return f". This unpacks them and changes no number: {command}"


def _refuse_unequal(axis: int, tensors: Sequence[Tensor], every: Sequence[tuple[int, ...]]) -> None:
    first, problems = tensors[0], []
    for tensor, dims in zip(tensors[1:], every[1:], strict=True):
        if tensor.info.type != first.info.type:
            problems.append(f"{_shown(tensor)} has another type than {_shown(first)}")
        if tensor.byte_order is not first.byte_order:
            problems.append(f"{_shown(tensor)} has another byte order than {_shown(first)}")
        if _without(dims, axis) != _without(every[0], axis):
            problems.append(f"{_shown(tensor)} differs from {_shown(first)} in more than axis {axis}")
    if len(problems) == 1:
        raise PlanError(problems[0])
    if problems:
        raise PlanError(f"cannot join {len(tensors):,} tensors", problems=problems)


def _without(dims: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The dims without that of `axis` and without trailing ones."""
    return _shortened((*dims[:axis], *dims[axis + 1 :]), 0)


def _shown(tensor: Tensor) -> str:
    return f"'{printable(tensor.name)}' ({type_alias(tensor.info.type)}, {shape_text(tensor.info.dims)})"
