"""Hypothesis strategies: heads as gguftool represents them, and small files from the struct-only builder."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gguftool.format.header import Header, TensorInfo
from gguftool.format.kv import KV, ByteOrder, ValueType
from tests.support import builders as b

_RANGES = {
    b.U8: (0, 0xFF),
    b.I8: (-0x80, 0x7F),
    b.U16: (0, 0xFFFF),
    b.I16: (-0x8000, 0x7FFF),
    b.U32: (0, 2**32 - 1),
    b.I32: (-(2**31), 2**31 - 1),
    b.U64: (0, 2**64 - 1),
    b.I64: (-(2**63), 2**63 - 1),
    b.BOOL: (0, 1),
}

names = st.one_of(st.text(max_size=12), st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
# A file cannot hold lone surrogates that stand for no byte.
names = names.filter(lambda text: text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text)
names = names.filter(lambda text: text != "general.alignment")


def scalars(kind: int) -> st.SearchStrategy[Any]:
    if kind == b.STR:
        return names
    if kind in (b.F32, b.F64):
        return st.floats(width=32 if kind == b.F32 else 64)
    return st.integers(*_RANGES[kind])


_kinds = st.sampled_from([*b.SCALARS, b.STR])
_flat_arrays = _kinds.flatmap(lambda kind: st.lists(scalars(kind), max_size=4).map(lambda items: b.Array(kind, items)))
arrays = st.recursive(
    _flat_arrays,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: b.Array(b.ARR, items)),
    max_leaves=4,
)


@st.composite
def values(draw: st.DrawFn) -> tuple[int, Any]:
    """A value type, and a value of that type."""
    kind = draw(st.sampled_from([*b.SCALARS, b.STR, b.ARR]))
    return kind, draw(arrays if kind == b.ARR else scalars(kind))


@st.composite
def kv_lists(draw: st.DrawFn) -> list[b.KV]:
    """Metadata entries, duplicate and odd keys included."""
    return [b.KV(draw(names), *draw(values())) for _ in range(draw(st.integers(0, 5)))]


alignments = st.sampled_from([1, 8, 32, 64, 256])
orders = st.sampled_from(["<", ">"])


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Heads of every version, byte order and alignment; dims, types and offsets are arbitrary, as no data follows."""
    version, order = draw(st.sampled_from([1, 2, 3])), draw(orders)
    kvs = draw(kv_lists())
    if draw(st.booleans()):
        kvs.insert(draw(st.integers(0, len(kvs))), b.KV("general.alignment", b.U32, draw(alignments)))
    u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
    infos = tuple(
        TensorInfo(
            name=name, dims=tuple(draw(st.lists(st.integers(0, 9), max_size=4))), type=draw(u32), offset=draw(u64)
        )
        for name in draw(st.lists(names, max_size=5, unique=True))
    )
    return Header(
        version=version,
        byte_order=ByteOrder(order),
        kvs=tuple(
            KV(
                key=str(kv.key),
                type=ValueType(kv.type),
                raw=b.value(kv.type, kv.value, 3, order),
                byte_order=ByteOrder(order),
            )
            for kv in kvs
        ),
        tensors=infos,
    )


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[b.Tensor]:
    """Tensors of known types with data, under odd but distinct names."""
    picked = draw(st.lists(names, max_size=7, unique=True))
    out = []
    for name in picked:
        kind = draw(st.sampled_from(sorted(b.TYPES)))
        rows = draw(st.lists(st.integers(1, 3), max_size=3))
        out.append(b.tensor(name, kind, (b.TYPES[kind][1] * draw(st.integers(1, 2)), *rows)))
    return out


@st.composite
def model_files(draw: st.DrawFn) -> bytes:
    """Small whole files, dense and in order: split and merge restore them byte for byte."""
    kvs = [b.KV("general.architecture", b.STR, "llama"), *draw(kv_lists())]
    kvs = [kv for kv in kvs if kv.key not in ("gguftool.tensor_order", "gguftool.padding")]
    if draw(st.booleans()):
        kvs.append(b.KV("general.alignment", b.U32, draw(alignments)))
    tensors = draw(tensor_lists())
    return b.gguf(
        kvs,
        tensors,
        version=draw(st.sampled_from([1, 2, 3])),
        order=draw(orders),
        padding=draw(st.sampled_from([b"\0", b"\xa5"])),
        pad_last=not tensors or draw(st.booleans()),
    )
