"""The head of a file: round trips, hostile bytes, every value type, laziness."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import FormatError
from gguftool.format import header as h
from gguftool.format.cursor import NeedMoreData
from gguftool.format.header import Header, parse, serialize
from gguftool.format.kv import ByteOrder, ValueType, make_kv
from tests.support import builders as b
from tests.support import strategies as own
from tests.support.counted_work import calls_of
from tests.support.hostile_heads import HOSTILE, _raw_kv


def parsed(data: bytes) -> Header:
    return parse(data, len(data))


# --- properties ------------------------------------------------------------------------------------------------------


@given(own.headers())
def test_parse_inverts_serialize(header: Header) -> None:
    data = serialize(header)
    again = parsed(data)
    assert again == header
    assert serialize(again) == data
    assert len(data) == header.data_offset
    assert header.length <= len(data) < header.length + header.alignment


@given(own.model_files())
def test_a_head_that_others_wrote_is_written_back_as_it_was(data: bytes) -> None:
    head = parsed(data)
    assert serialize(head) == data[: head.data_offset]


@given(own.headers())
def test_every_proper_prefix_asks_for_more(header: Header) -> None:
    data = serialize(header)
    for size in range(header.length):
        with pytest.raises(NeedMoreData) as signal:
            parse(data[:size], len(data))
        assert size < signal.value.needed <= header.length
    assert parse(data[: header.length], len(data)) == header


@given(own.headers(), st.data())
def test_every_truncated_file_is_a_format_error_with_an_offset(header: Header, data: st.DataObject) -> None:
    whole = serialize(header)
    size = data.draw(st.integers(0, header.length - 1))
    with pytest.raises(FormatError) as error:
        parse(whole[:size], size)
    assert error.value.offset is not None
    assert error.value.offset <= size


@given(own.headers(), st.data())
def test_any_mutated_byte_is_a_header_or_a_format_error(header: Header, data: st.DataObject) -> None:
    whole = bytearray(serialize(header))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, header.length - 1))] = data.draw(st.integers(0, 255))
    try:
        mutated = parsed(bytes(whole))
    except FormatError:
        return
    for kv in mutated.kvs:
        kv.value()
    assert parsed(serialize(mutated)) == mutated


def test_every_byte_of_a_small_head_set_to_every_edge_value() -> None:
    data = b.small_model()
    for at in range(parsed(data).length):
        for byte in (0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1):
            mutated = data[:at] + bytes([byte]) + data[at + 1 :]
            try:
                for kv in parsed(mutated).kvs:
                    kv.value()
            except FormatError:
                continue


# --- values ----------------------------------------------------------------------------------------------------------

_VALUES: list[tuple[int, Any]] = [
    (b.U8, 255),
    (b.I8, -128),
    (b.U16, 65535),
    (b.I16, -32768),
    (b.U32, 2**32 - 1),
    (b.I32, -(2**31)),
    (b.F32, 0.5),
    (b.BOOL, True),
    (b.STR, "größe\n"),
    (b.U64, 2**64 - 1),
    (b.I64, -(2**63)),
    (b.F64, -math.inf),
]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(("kind", "item"), _VALUES)
def test_values_of_every_type_alone_and_in_arrays(kind: int, item: Any, version: int, order: str) -> None:
    kvs = (
        b.KV("one", kind, item),
        b.KV("some", b.ARR, b.Array(kind, [item] * 3)),
        b.KV("none", b.ARR, b.Array(kind, [])),
    )
    header = parsed(b.gguf(kvs, version=version, order=order))
    one, some, none = header.kvs
    assert (one.value(), one.count, one.element_type) == (item, 1, kind)
    assert (some.value(), some.count, some.element_type) == ([item] * 3, 3, kind)
    assert (none.value(), none.count, none.element_type) == ([], 0, kind)
    assert some.value(2) == [item] * 2
    assert (header.version, header.byte_order) == (version, ByteOrder(order))


@pytest.mark.parametrize("version", [1, 3])
def test_nested_arrays(version: int) -> None:
    inner = [
        b.Array(b.STR, ["a", "bc"]),
        b.Array(b.U8, [1]),
        b.Array(b.ARR, [b.Array(b.I16, [-1, 5])]),
        b.Array(b.STR, []),
    ]
    kvs = (b.KV("deep", b.ARR, b.Array(b.ARR, inner)), b.KV("after", b.U8, 7))
    header = parsed(b.gguf(kvs, version=version))
    assert header.kvs[0].value() == [["a", "bc"], [1], [[-1, 5]], []]
    assert header.kvs[0].value(1) == [["a", "bc"]]
    assert header.kvs[1].value() == 7


@pytest.mark.parametrize(("kind", "item"), [*_VALUES, (b.F32, 0.1)])
@pytest.mark.parametrize("order", list(ByteOrder))
def test_make_kv_encodes_as_the_builder_does(kind: int, item: Any, order: ByteOrder) -> None:
    made = make_kv("k", ValueType(kind), item, byte_order=order)
    assert made.raw == b.value(kind, item, 3, order.value)
    array = make_kv("k", ValueType.ARRAY, [item, item], element=ValueType(kind), byte_order=order)
    assert array.raw == b.value(b.ARR, b.Array(kind, [item, item]), 3, order.value)


@pytest.mark.parametrize(
    ("kind", "item", "element"),
    [
        (ValueType.UINT8, 256, None),
        (ValueType.UINT8, "x", None),
        (ValueType.STRING, 5, None),
        (ValueType.STRING, "\ud800", None),
        (ValueType.FLOAT32, 1e300, None),
        (ValueType.ARRAY, [1], None),
        (ValueType.ARRAY, [[1]], ValueType.ARRAY),
        (ValueType.ARRAY, 5, ValueType.UINT8),
    ],
)
def test_make_kv_refuses_what_does_not_fit(kind: ValueType, item: Any, element: ValueType | None) -> None:
    with pytest.raises(FormatError, match="is not a"):
        make_kv("k", kind, item, element=element)


def test_text_that_is_not_utf8_keeps_its_bytes() -> None:
    data = b.gguf((b.KV(b"\xffkey", b.STR, b"\xc3\x28"),), (b.tensor(b"\x80.weight", "F32", (8,)),))
    header = parsed(data)
    assert header.kvs[0].key.encode("utf-8", "surrogateescape") == b"\xffkey"
    assert header.kvs[0].value().encode("utf-8", "surrogateescape") == b"\xc3\x28"
    assert serialize(header) == data[: header.data_offset]


def test_duplicate_keys_are_kept_and_reported_and_the_first_counts() -> None:
    kvs = (b.KV("a", b.U8, 1), b.KV("b", b.U8, 2), b.KV("a", b.STR, "x"), b.KV("b", b.U8, 2), b.KV("a", b.U8, 3))
    header = parsed(b.gguf(kvs))
    assert [kv.key for kv in header.kvs] == ["a", "b", "a", "b", "a"]
    assert header.duplicate_keys() == ("a", "b")
    first = header.get("a")
    assert first is not None
    assert first.value() == 1
    assert header.get("c") is None


@pytest.mark.parametrize(("dims", "shape"), [((4, 1, 1), (4,)), ((1, 1), (1,)), ((1, 2, 1), (1, 2)), ((), ())])
def test_trailing_ones_do_not_make_another_shape(dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert h.TensorInfo(name="t", dims=dims, type=0, offset=0).shape == shape


@pytest.mark.parametrize(("kind", "item"), [(b.U32, 64), (b.U64, 64), (b.I32, 64), (b.U8, 64)])
def test_alignment_may_be_of_any_integer_type(kind: int, item: int) -> None:
    assert parsed(b.gguf((b.KV("general.alignment", kind, item),))).alignment == 64


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_heads_name_place_and_offset_with_little_work(case: str) -> None:
    data, where = HOSTILE[case]
    errors: list[FormatError] = []

    def refuse() -> None:
        with pytest.raises(FormatError) as caught:
            parsed(data)
        errors.append(caught.value)

    assert calls_of(refuse) < 1000
    tracemalloc.start()
    try:
        refuse()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    for error in errors:
        assert (error.where or "").startswith(where)
        assert error.offset is not None
        assert error.offset <= len(data)


def test_a_claim_beyond_the_file_is_refused_before_more_is_asked_for() -> None:
    data, _ = HOSTILE["a string of 2^60 bytes"]
    with pytest.raises(FormatError):
        parse(data[:60], len(data))


# --- laziness --------------------------------------------------------------------------------------------------------


def test_a_large_vocabulary_is_stepped_over_not_decoded() -> None:
    count = 262_144
    tokens = struct.pack("<IQ", b.STR, count) + b"".join(b.string(f"token{index}") for index in range(count))
    data = _raw_kv("tokenizer.ggml.tokens", b.ARR, tokens)[:-64]
    tracemalloc.start()
    try:
        header = parsed(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (kv,) = header.kvs
    assert peak < 2 * len(tokens), "one object a token would take five times as much"
    assert kv.raw == tokens
    assert (kv.count, kv.value(2)) == (count, ["token0", "token1"])
    assert kv.value()[-1] == "token262143"


@pytest.mark.parametrize("depth", [1, 8])
def test_arrays_may_be_nested_eight_deep(depth: int) -> None:
    item: Any = b.Array(b.U8, [7])
    for _ in range(depth - 1):
        item = b.Array(b.ARR, [item])
    wanted: Any = [7]
    for _ in range(depth - 1):
        wanted = [wanted]
    assert parsed(b.gguf([b.KV("deep", b.ARR, item)])).kvs[0].value() == wanted


def test_arrays_nested_nine_deep_are_refused() -> None:
    item: Any = b.Array(b.U8, [7])
    for _ in range(8):
        item = b.Array(b.ARR, [item])
    with pytest.raises(FormatError, match="nested deeper than 8"):
        parsed(b.gguf([b.KV("deep", b.ARR, item)]))


@pytest.mark.parametrize(("n_dims", "is_read"), [(5, True), (32, True), (33, False), (1 << 31, False)])
def test_dims_are_a_count_within_a_bound(n_dims: int, is_read: bool) -> None:
    data = b.head((), [b.Tensor("x", (1,) * min(n_dims, 64), 0, bytes(4))])
    at = data.index(b"x") + 1
    data = data[:at] + struct.pack("<I", n_dims) + data[at + 4 :] + bytes(4096)
    if is_read:
        assert parse(data, len(data)).tensors[0].dims == (1,) * n_dims
    else:
        with pytest.raises(FormatError, match="at most 32"):
            parse(data, len(data))


@pytest.mark.parametrize(("n_tensors", "n_kvs", "least"), [(0, 10, 130), (10, 0, 240), (3, 5, 137)])
def test_counts_that_the_file_cannot_hold_are_refused_at_once(n_tensors: int, n_kvs: int, least: int) -> None:
    """A KV takes 13 bytes at least, a tensor info 24."""
    start = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kvs)
    with pytest.raises(NeedMoreData):
        parse(start, len(start) + least)
    with pytest.raises(FormatError, match="counts"):
        parse(start, len(start) + least - 1)
