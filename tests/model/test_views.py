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
from gguftool.errors import PlanError
from gguftool.format.dequantize import decoded_by
from gguftool.format.ggml import TYPES, Formula, TypeTraits, find_type, nbytes
from gguftool.format.header import TensorInfo
from gguftool.format.kv import ByteOrder
from gguftool.format.quants.repacks import REPACKS
from gguftool.model import views
from gguftool.model.model import Sizing, Tensor
from gguftool.model.opening import open_model
from gguftool.record import replace
from gguftool.storage.sources.source import Extent
from tests.support import builders as b
from tests.support.memory_source import MemorySource
from tests.support.paths import FIXTURES

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
    source = MemorySource(
        label=f"{name}.gguf", data=bytes(before) + b.filler(name, size) + b"\xee" * (padded - size) + b"more"
    )
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


# --- numbers: what dequantizing gives ---------------------------------------------------------------------------------

DECODED = [traits for traits in CUTTABLE if decoded_by(traits.id)]


def bits(array: Any) -> Any:
    """Floats as integers: random bytes hold NaN, too."""
    return array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("traits", DECODED, ids=lambda traits: traits.name)
def test_slices_of_every_type_are_slices_of_its_numbers(traits: TypeTraits) -> None:
    rows = traits.interleaved_rows
    tensor = tensor_of(traits, (traits.block_size * 2, rows * 3, 4, 2))
    whole = bits(tensor.numpy())
    for axis, groups in ((1, [2, 0, 0]), (2, [3, 1, 2]), (3, [1, 0])):
        step = rows if axis == 1 else 1
        indices = [group * step + row for group in groups for row in range(step)]
        assert np.array_equal(bits(tensor.take(axis, indices).numpy()), whole.take(indices, axis=3 - axis)), axis
    half = tensor.take(3, [1]).take(2, range(1, 3))
    assert np.array_equal(bits(half.numpy()), whole[1:2, 1:3])
    both = cat(1, [tensor, tensor.take(1, range(rows))])
    assert np.array_equal(bits(both.numpy()), np.concatenate([whole, whole[:, :, :rows]], axis=2))


ZOO = {
    f"{engine} {tensor.type_name}": tensor
    for engine in ("ml", "ik")
    for tensor in open_model(FIXTURES / "engines" / "zoo" / f"zoo-{engine}.gguf").tensors.values()
}


def test_the_zoo_has_the_types_of_both_engines() -> None:
    assert len({tensor.info.type for tensor in ZOO.values()}) >= 75


@pytest.mark.parametrize("name", ZOO)
def test_tensors_that_the_engines_made_are_cut_right(name: str) -> None:
    """The same numbers, whether a tensor is decoded and then cut, or cut and then decoded."""
    tensor = ZOO[name]
    if not decoded_by(tensor.info.type):
        with pytest.raises(PlanError):
            tensor.take(1, [0])
        return
    rows = TYPES[tensor.info.type].interleaved_rows
    width, height = tensor.info.dims[0], tensor.info.dims[1]
    whole = tensor.numpy()
    turned = [start + row for start in range(height - rows, -1, -rows) for row in range(rows)]
    assert np.array_equal(tensor.take(1, turned).numpy(), whole[turned])
    assert tensor.take(1, turned).take(1, turned).raw() == tensor.raw()
    stack = tensor.reshape((width, rows, height // rows))
    assert np.array_equal(
        stack.take(2, [0, height // rows - 1]).numpy().reshape(-1, width), whole[[*range(rows), *turned[:rows]]]
    )


@pytest.mark.parametrize("name", ["F32", "F16", "I32", "I64", "BF16", "F64"])
def test_big_endian_numbers_are_cut_too(name: str) -> None:
    tensor = replace(tensor_of(name, (4, 3, 2)), byte_order=ByteOrder.BIG)
    whole = bits(np.ascontiguousarray(tensor.numpy()))
    assert np.array_equal(bits(tensor.take(1, [2, 0]).numpy()), whole[:, [2, 0]])
    assert tensor.take(2, [1]).byte_order is ByteOrder.BIG


# --- what cannot be done ---------------------------------------------------------------------------------------------


def whole_only() -> dict[str, tuple[Tensor, str]]:
    """Tensors that can only be moved as a whole, and the reason."""
    plain = tensor_of("Q4_K", (256, 4), "t")
    unknown = replace(plain, info=replace(plain.info, type=38), type_nbytes=None, sizing=Sizing.GAP)  # TL1
    ragged = replace(unknown, info=replace(plain.info, dims=(100, 4)))
    return {
        "unknown": (unknown, "of a type that gguftool does not know"),
        "ragged": (ragged, "not made of whole blocks of 256 elements"),
        "conflict": (replace(plain, sizing=Sizing.CONFLICT), "576 bytes long by its type, but its place has 576"),
        "I2_S": (tensor_of("I2_S", (256, 4)), "of a type that has one scale after all data"),
    }


@pytest.mark.parametrize("name", whole_only())
def test_what_has_no_known_rows_moves_as_a_whole(name: str) -> None:
    tensor, why = whole_only()[name]
    width, rows = tensor.info.dims
    for refused in (
        lambda: tensor.take(1, [0]),
        lambda: tensor.take(2, [0, 0]),
        lambda: cat(1, [tensor, tensor]),
        lambda: cat(2, [tensor, tensor]),
        lambda: tensor.reshape((width, 2, rows // 2)),
    ):
        with pytest.raises(PlanError, match=why):
            refused()
    assert tensor.take(1, range(rows)) is tensor
    assert tensor.named("other").padded_extent == tensor.padded_extent
    assert tensor.reshape((width, rows, 1)).info.dims == (width, rows, 1)


@pytest.mark.parametrize("traits", [traits for traits in CUTTABLE if traits.interleaved_rows > 1], ids=lambda t: t.name)
def test_rows_that_are_packed_together_stay_together(traits: TypeTraits) -> None:
    rows = traits.interleaved_rows
    tensor = tensor_of(traits, (traits.block_size, rows * 2, 3))
    for indices in ([0], range(1, rows + 1), range(rows - 1), [*range(rows), 0], [*range(rows), *range(rows)][::-1]):
        with pytest.raises(PlanError, match=f"packs {rows} rows together"):
            tensor.take(1, indices)
    with pytest.raises(PlanError, match=f"packs {rows} rows together"):
        tensor.reshape((traits.block_size, rows // 2, 12))
    with pytest.raises(PlanError) as error:
        tensor.take(1, [0])
    assert ("quantize t.gguf --repack -o" in error.value.message) == (traits.name in REPACKS)
    assert tensor.take(1, [*range(rows), *range(rows)]).info.dims[1] == 2 * rows
    assert tensor.reshape((traits.block_size, rows, 6)).take(2, [5]).nbytes == tensor.nbytes // 6


@pytest.mark.parametrize(
    ("kind", "dims", "why"),
    [
        ("F32", (8, 2), "it has more than one row"),
        ("Q8_0", (64,), "rows of blocks share scales"),
        ("IQ4_KS", (256, 2), "rows of blocks share scales"),
        ("BF16_R16", (8, 16), "it has more than one row"),
        ("I32", (8, 2), "it has more than one row"),
    ],
)
def test_rows_are_not_cut(kind: str, dims: tuple[int, ...], why: str) -> None:
    tensor = tensor_of(kind, dims)
    with pytest.raises(PlanError, match=f"cannot be cut along axis 0, within its rows: {why}"):
        tensor.take(0, [0])
    with pytest.raises(PlanError, match=why):
        cat(0, [tensor, tensor])


@pytest.mark.parametrize(
    ("indices", "shown"),
    [
        ([4], "not 4"),
        ([-1], "not -1"),
        (range(2, 5), "not 4"),
        (range(3, -2, -1), "not -1"),
        ([9, 1, 9, 7], "not 9, 7"),
    ],
)
def test_indices_out_of_range(indices: Sequence[int], shown: str) -> None:
    tensor = tensor_of("Q4_0", (32, 2, 4), "up")
    with pytest.raises(PlanError) as error:
        tensor.take(2, indices)
    assert error.value.message == f"'up' (q4_0, 32 x 2 x 4): axis 2 has the indices 0 to 3, {shown}"


def test_an_endless_range_is_refused_at_once() -> None:
    with pytest.raises(PlanError, match="axis 2 has the indices 0 to 3"):
        tensor_of("Q4_0", (32, 2, 4)).take(2, range(1 << 70))


def test_no_index_and_no_such_axis() -> None:
    tensor = tensor_of("Q4_0", (32, 2, 4))
    with pytest.raises(PlanError, match="leave the tensor out instead"):
        tensor.take(2, [])
    for axis in (-1, 4):
        with pytest.raises(PlanError, match=f"has no axis {axis}; its axes are 0 .along a row. to 3$"):
            tensor.take(axis, [0])
        with pytest.raises(PlanError, match=f"has no axis {axis}; its axes are 0 .along a row. to 3$"):
            cat(axis, [tensor, tensor])
    with pytest.raises(PlanError, match="at least one"):
        cat(2, [])
    with pytest.raises(TypeError):
        tensor.take(2, [0.0])  # type: ignore[list-item]


@pytest.mark.parametrize("dims", [(), (32, 9), (64, 4), (32, -2, -4), (32,), (16, 16), (32, 8, 2)])
def test_reshape_keeps_rows_and_elements(dims: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="the length of a row, and the number of elements must stay"):
        tensor_of("Q4_0", (32, 8)).reshape(dims)


def test_reshape_parts_and_joins_axes() -> None:
    tensor = tensor_of("Q4_0", (32, 8, 3))
    for dims in ((32, 24), (32, 2, 12), (32, 2, 4, 3), (32, 8, 3, 1)):
        assert tensor.reshape(dims).padded_extent == tensor.padded_extent
        assert tensor.reshape(dims).info.dims == dims


def test_all_that_does_not_fit_is_said_at_once() -> None:
    first = tensor_of("Q4_0", (32, 8), "a")
    others = [
        tensor_of("Q8_0", (32, 8), "b"),
        tensor_of("Q4_0", (64, 8), "c"),
        replace(tensor_of("Q4_0", (32, 8), "d"), byte_order=ByteOrder.BIG),
        tensor_of("Q4_0", (32, 8, 2), "e"),
    ]
    with pytest.raises(PlanError) as error:
        cat(1, [first, *others])
    assert error.value.problems == (
        "'b' (q8_0, 32 x 8) has another type than 'a' (q4_0, 32 x 8)",
        "'c' (q4_0, 64 x 8) differs from 'a' (q4_0, 32 x 8) in more than axis 1",
        "'d' (q4_0, 32 x 8) has another byte order than 'a' (q4_0, 32 x 8)",
        "'e' (q4_0, 32 x 8 x 2) differs from 'a' (q4_0, 32 x 8) in more than axis 1",
    )


@pytest.mark.parametrize("kinds", [("Q8_0", "Q4_0"), ("Q4_0", "Q8_0"), ("F16", "BF16")])
def test_types_are_never_mixed(kinds: tuple[str, str]) -> None:
    """Whichever comes first, and also where both take as many bytes."""
    with pytest.raises(PlanError, match="has another type than"):
        cat(1, [tensor_of(kind, (32, 2)) for kind in kinds])


def test_pieces_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = tensor_of("F32", (1, 4, 8))
    monkeypatch.setattr(views, "MAX_PIECES", 15)
    with pytest.raises(PlanError, match="16 pieces"):
        tensor.take(1, [0, 2])
    with pytest.raises(PlanError, match="16 pieces"):
        cat(1, [tensor, tensor])
    assert len(tensor.take(1, [1]).extents) == 8


@pytest.mark.parametrize("dims", [(32, 0, 4), (32, 0, 4, 1 << 40), (32, 4, 0)])
def test_tensors_without_elements(dims: tuple[int, ...]) -> None:
    tensor = tensor_of("Q4_0", dims)
    axis = 2 if dims[2] else 1
    assert (tensor.take(axis, [3, 1]).raw(), tensor.take(axis, [3, 1]).info.dims[axis]) == (b"", 2)
    assert cat(axis, [tensor, tensor]).info.dims[axis] == 8
    assert cat(axis, [tensor, tensor]).raw() == b""


def test_dims_keep_their_spelling() -> None:
    """Files leave out trailing ones, or not; a view does as its tensor, but for the axis that is cut or joined."""
    flat, spelled = tensor_of("Q4_0", (32, 2)), tensor_of("Q4_0", (32, 2, 1, 1))
    assert flat.take(2, [0, 0]).info.dims == (32, 2, 2)
    assert flat.take(2, [0, 0]).take(2, [1]).info.dims == (32, 2, 1)
    assert flat.take(1, [1]).info.dims == (32, 1)
    assert spelled.take(1, [1]).info.dims == (32, 1, 1, 1)
    assert cat(2, [flat, flat]).info.dims == (32, 2, 2)
    assert cat(2, [flat, spelled]).info.dims == (32, 2, 2, 1)
    assert cat(0, [tensor_of("F32", (2,)), tensor_of("F32", (3, 1))]).info.dims == (5, 1)
