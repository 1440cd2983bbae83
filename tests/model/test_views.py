"""Views: tensors made of parts of others, for every type, compared with NumPy's slices of bytes and of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np  # noqa: TID253 - slices are compared with its own
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguftool import cat
from gguftool.format.ggml import TYPES, Formula, TypeTraits, find_type, nbytes
from gguftool.format.header import TensorInfo
from gguftool.model.model import Sizing, Tensor
from gguftool.storage.sources.source import Extent
from tests.support import builders as b
from tests.support.memory_source import MemorySource

CUTTABLE = [traits for traits in TYPES.values() if traits.formula is Formula.STD]
PLAIN = [traits for traits in CUTTABLE if traits.dtype]


def type_named(name: str) -> TypeTraits:
    found = find_type(name)
    assert found
    return found


def tensor_of(traits: TypeTraits | str, dims: Sequence[int], name: str = "t", *, before: int = 64) -> Tensor:
    """A tensor of random bytes, padded to 32, that starts `before` bytes into its file."""
    traits = type_named(traits) if isinstance(traits, str) else traits
    size = nbytes(traits.id, tuple(dims))
    assert size is not None
    padded = b.round_up(size, 32)
    source = MemorySource(f"{name}.gguf", bytes(before) + b.filler(name, size) + b"\xee" * (padded - size) + b"more")
    return Tensor(
        info=TensorInfo(name=name, dims=tuple(dims), type=traits.id, offset=before),
        padded_extent=Extent(source=source, offset=before, length=padded),
        type_nbytes=size,
        sizing=Sizing.EXACT,
        alignment=32,
    )


def units_of(tensor: Tensor, data: bytes | None = None) -> Any:
    """The bytes as an array [axis 3, axis 2, groups of rows, bytes of a group]."""
    rows = TYPES[tensor.info.type].interleaved_rows
    dims = (*tensor.info.dims, 1, 1, 1)
    raw = np.frombuffer(tensor.raw() if data is None else data, dtype=np.uint8)
    return raw.reshape(math.prod(dims[3:]), dims[2], dims[1] // rows, -1)


@st.composite
def small_tensors(draw: st.DrawFn, types: Sequence[TypeTraits] = CUTTABLE, name: str = "t") -> Tensor:
    traits = draw(st.sampled_from(types))
    width = traits.block_size * draw(st.integers(1, 2))
    rows = traits.interleaved_rows * draw(st.integers(1, 4))
    deep = draw(st.lists(st.integers(1, 4), max_size=2))
    return tensor_of(traits, (width, rows, *deep), name)


def chosen(data: st.DataObject, count: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))


@settings(max_examples=300)
@given(st.data())
def test_takes_are_numpys_slices_of_the_bytes(data: st.DataObject) -> None:
    tensor = data.draw(small_tensors())
    wanted = units_of(tensor)
    for _ in range(data.draw(st.integers(1, 3))):  # views of views
        axis = data.draw(st.integers(1, 3))
        rows = TYPES[tensor.info.type].interleaved_rows if axis == 1 else 1
        groups = chosen(data, wanted.shape[3 - axis])
        wanted = wanted.take(groups, axis=3 - axis)
        tensor = tensor.take(axis, [group * rows + row for group in groups for row in range(rows)])
        assert (*tensor.info.dims, 1, 1)[axis] == len(groups) * rows
    assert tensor.raw() == wanted.tobytes()
    assert tensor.nbytes == wanted.nbytes == nbytes(tensor.info.type, tensor.info.dims)
    assert b"".join(extent.read() for extent in tensor.extents) == wanted.tobytes()
    assert not any(one.end == two.offset for one, two in pairwise(tensor.extents))


@settings(max_examples=200)
@given(st.data())
def test_parts_put_together_are_the_tensor_that_they_were_taken_from(data: st.DataObject) -> None:
    tensor = data.draw(small_tensors())
    axis = data.draw(st.integers(1, 3))
    count = (*tensor.info.dims, 1, 1)[axis]
    step = TYPES[tensor.info.type].interleaved_rows if axis == 1 else 1
    cuts = sorted({0, count, *(place * step for place in data.draw(st.lists(st.integers(1, count // step))))})
    parts = [tensor.take(axis, range(start, stop)) for start, stop in pairwise(cuts)]
    assert cat(axis, parts) == tensor


@settings(max_examples=200)
@given(st.data())
def test_cat_is_numpys_concatenation(data: st.DataObject) -> None:
    first = data.draw(small_tensors())
    axis = data.draw(st.integers(1, 3))
    dims = [*first.info.dims, *(1 for _ in range(4 - len(first.info.dims)))]
    rows = TYPES[first.info.type].interleaved_rows if axis == 1 else 1
    others = []
    for number in range(data.draw(st.integers(1, 3))):
        dims[axis] = rows * data.draw(st.integers(1, 3))
        others.append(tensor_of(TYPES[first.info.type], tuple(dims), f"other {number}"))
    every = [first, *others]
    whole = cat(axis, every)
    assert whole.raw() == np.concatenate([units_of(tensor) for tensor in every], axis=3 - axis).tobytes()
    assert whole.name == first.name
    start = 0
    for tensor in every:  # and apart again
        count = (*tensor.info.dims, 1, 1)[axis]
        assert whole.take(axis, range(start, start + count)).raw() == tensor.raw()
        start += count


@settings(max_examples=100)
@given(st.data())
def test_lists_of_plain_numbers_are_cut_along_axis_0(data: st.DataObject) -> None:
    traits = data.draw(st.sampled_from(PLAIN))
    count = data.draw(st.integers(1, 20))
    tensor = tensor_of(traits, (count,))
    indices = chosen(data, count)
    numbers = np.frombuffer(tensor.raw(), dtype=f"V{traits.type_size}")
    taken = tensor.take(0, indices)
    assert (taken.raw(), taken.info.dims) == (numbers[indices].tobytes(), (len(indices),))
    assert cat(0, [taken, tensor]).raw() == numbers[[*indices, *range(count)]].tobytes()


@given(small_tensors(), st.integers(1, 3))
def test_all_indices_in_order_are_the_tensor_itself(tensor: Tensor, axis: int) -> None:
    count = (*tensor.info.dims, 1, 1)[axis]
    assert tensor.take(axis, range(count)) is tensor
    assert tensor.take(axis, list(range(count))) is tensor
    assert tensor.reshape(tensor.info.dims) is tensor
    assert tensor.named(tensor.name) is tensor
    assert cat(axis, [tensor]) is tensor


@pytest.mark.parametrize("traits", CUTTABLE, ids=lambda traits: traits.name)
def test_stacks_of_matrices_are_unstacked_and_stacked(traits: TypeTraits) -> None:
    stack = tensor_of(traits, (traits.block_size * 2, traits.interleaved_rows * 2, 5), "blk.0.ffn_up_exps.weight")
    matrices = [
        stack.take(2, [index]).reshape(stack.info.dims[:2]).named(f"blk.0.ffn_up.{index}.weight") for index in range(5)
    ]
    assert [len(matrix.extents) for matrix in matrices] == [1] * 5
    assert [matrix.info.dims for matrix in matrices] == [stack.info.dims[:2]] * 5
    assert cat(2, matrices).named(stack.name) == stack
    turned = cat(2, matrices[::-1])
    assert turned.take(2, range(4, -1, -1)).raw() == stack.raw()
