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


@pytest.mark.parametrize(("n_tensors", "n_kvs", "least"), [(0, 10, 90), (10, 0, 200), (3, 5, 105)])
def test_counts_of_version_1_need_less_room(n_tensors: int, n_kvs: int, least: int) -> None:
    """Its lengths have four bytes: a KV takes 9 bytes at least, a tensor info 20."""
    start = b"GGUF" + struct.pack("<III", 1, n_tensors, n_kvs)
    with pytest.raises(NeedMoreData):
        parse(start, len(start) + least)
    with pytest.raises(FormatError, match="counts"):
        parse(start, len(start) + least - 1)


# --- what errors say, exactly ----------------------------------------------------------------------------------------


def refusal(data: bytes, size: int | None = None) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse(data, len(data) if size is None else size)
    return caught.value


def placed(error: FormatError) -> tuple[str | None, int | None]:
    return error.where, error.offset


@pytest.mark.parametrize(
    ("count", "limit", "place"),
    [("number of tensors", 1_048_576, 8), ("number of metadata KV", 65_536, 16)],
)
def test_counts_up_to_a_limit_are_read(count: str, limit: int, place: int) -> None:
    def start(number: int) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, *((number, 0) if place == 8 else (0, number)))

    with pytest.raises(NeedMoreData):
        parse(start(limit), 1 << 30)
    error = refusal(start(limit + 1), 1 << 30)
    assert placed(error) == (count, place)
    assert f"is {limit + 1:,}; gguftool reads at most {limit:,}" in str(error)


def test_a_wrong_magic_is_at_the_start() -> None:
    error = refusal(b"GGML" + bytes(100))
    assert placed(error) == ("magic", 0)
    assert "'GGML', expected 'GGUF'" in str(error)
    assert r"'a\x00bc', expected" in str(refusal(b"a\0bc" + bytes(100)))


@pytest.mark.parametrize(("order", "number"), [("<", 4), (">", 4), ("<", 0), ("<", 0x10001), ("<", 0x8001)])
def test_an_unknown_version_is_named_with_its_place(order: str, number: int) -> None:
    error = refusal(b"GGUF" + struct.pack(f"{order}I", number) + bytes(100))
    assert placed(error) == ("version", 4)
    assert f"GGUF version {number} is not known" in str(error)


_TWO = (b.KV("first", b.U8, 1), b.KV("second", b.U32, 5))


def after(data: bytes, *words: bytes) -> int:
    """The offset behind the last of `words`, which follow each other."""
    at = 0
    for word in words:
        at = data.index(word, at) + len(word)
    return at


def test_an_unknown_value_type_has_the_place_of_its_number() -> None:
    data = bytearray(b.gguf(_TWO))
    at = after(data, b"second")
    data[at] = 13
    error = refusal(bytes(data))
    assert placed(error) == ("metadata KV 1, 'second'", at)
    assert "value type 13" in str(error)


@pytest.mark.parametrize("alignment", [b.KV("general.alignment", b.U32, 33), b.KV("general.alignment", b.F32, 32.0)])
def test_a_bad_alignment_has_the_place_of_its_entry(alignment: b.KV) -> None:
    data = b.gguf((_TWO[0], alignment), alignment=32)
    error = refusal(data)
    assert placed(error) == ("metadata KV 1", data.index(b"general.alignment") - 8)
    assert f"is {'33' if alignment.type == b.U32 else 'FLOAT32'}; expected a power of two" in str(error)


def test_the_first_alignment_counts() -> None:
    good, bad = (b.KV("general.alignment", b.U32, number) for number in (64, 3))
    assert parsed(b.gguf((good, bad), alignment=64)).alignment == 64
    with pytest.raises(FormatError):
        parsed(b.gguf((bad, good), alignment=64))


@pytest.mark.parametrize("alignment", [1, 2, 1 << 20])
def test_any_power_of_two_is_an_alignment(alignment: int) -> None:
    assert parsed(b.gguf((b.KV("general.alignment", b.U32, alignment),))).alignment == alignment


def test_too_deep_nesting_has_the_place_where_it_is_too_deep() -> None:
    item: Any = b.Array(b.U8, [7])
    for _ in range(8):
        item = b.Array(b.ARR, [item])
    data = b.gguf([b.KV("deep", b.ARR, item)])
    assert placed(refusal(data)) == ("metadata KV 0, 'deep'", after(data, b"deep") + 4 + 9 * 12)


def test_a_name_that_stands_twice_names_both_places() -> None:
    names = ("a", "b", "c", "b")
    data = b.gguf((), [b.tensor(name, "F32", (8,)) for name in names])
    error = refusal(data)
    assert placed(error) == ("tensor info 3", data.rindex(b.string("b")))
    assert "'b' is used twice (first as tensor info 1)" in str(error)


def test_too_many_dims_have_the_place_of_their_count() -> None:
    data = bytearray(b.gguf((), [b.tensor("x", "F32", (8,))]))
    at = after(data, b.string("x"))
    data[at] = 33
    error = refusal(bytes(data))
    assert placed(error) == ("tensor info 0, 'x'", at)
    assert "33 dimensions" in str(error)


_MOST = (1 << 63) - 1


@pytest.mark.parametrize("dims", [(_MOST,), (_MOST, 1), (_MOST, 0), (1 << 62, 1), (7, _MOST // 7)])
def test_as_many_elements_are_read_as_ggml_counts(dims: tuple[int, ...]) -> None:
    assert parsed(b.head((), [b.Tensor("x", dims, 0)]) + bytes(64)).tensors[0].dims == dims


@pytest.mark.parametrize("dims", [(_MOST + 1,), (1 << 62, 2), (_MOST + 1, 0), (0, _MOST + 1)])
def test_more_elements_are_refused_at_the_first_dim(dims: tuple[int, ...]) -> None:
    data = b.head((), [b.Tensor("x", dims, 0)]) + bytes(64)
    error = refusal(data)
    assert placed(error) == ("tensor info 0, 'x'", after(data, b.string("x")) + 4)
    assert " x ".join(map(str, dims)) in str(error)


@pytest.mark.parametrize("what", ["key", "name"])
def test_long_names_are_cut_in_the_place_of_an_error(what: str) -> None:
    name = "n" * 500
    if what == "key":
        data = b.head(n_kvs=1) + b.string(name) + struct.pack("<I", 99) + bytes(64)
    else:
        data = b.head(n_tensors=1) + b.string(name) + struct.pack("<I", 99) + bytes(64)
    where = refusal(data).where or ""
    assert "n" * 60 in where
    assert "n" * 81 not in where


# --- arrays at the end of a buffer or of the file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "least", "version"),
    [(b.STR, 8, 3), (b.STR, 4, 1), (b.ARR, 12, 3), (b.ARR, 8, 1), (b.U16, 2, 3), (b.F64, 8, 1)],
)
def test_an_array_that_the_file_cannot_hold_is_refused_at_once(element: int, least: int, version: int) -> None:
    """Its elements take `least` bytes each: a length, a type and a length, or a number."""
    start = b.head(n_kvs=1, version=version) + b.string("k", version) + struct.pack("<II", b.ARR, element)
    start += struct.pack("<I" if version == 1 else "<Q", 10)
    with pytest.raises(NeedMoreData):
        parse(start, len(start) + 10 * least)
    assert refusal(start, len(start) + 10 * least - 1).offset == len(start)


def test_strings_may_end_with_the_buffer_and_with_the_file() -> None:
    data = b.head((b.KV("k", b.ARR, b.Array(b.STR, ["ab", "c", ""])),))
    assert parse(data, len(data)).kvs[0].value() == ["ab", "c", ""]
    assert parse(data, len(data) + 100).kvs[0].value() == ["ab", "c", ""]


def strings_of_four(count: int) -> tuple[bytes, int]:
    """A head that ends with an array of `count` strings of 12 bytes each, and where these start."""
    data = b.head((b.KV("k", b.ARR, b.Array(b.STR, ["text"] * count)),))
    return data, len(data) - 12 * count


def test_strings_beyond_the_buffer_ask_for_the_first_that_is_cut() -> None:
    data, start = strings_of_four(10)
    for size, needed in ((46, 56), (36, 44), (41, 44), (47, 56), (56, 68), (0, 8), (119, 120)):
        with pytest.raises(NeedMoreData) as signal:
            parse(data[: start + size], len(data))
        assert signal.value.needed == start + min(needed, 120), size


def test_strings_beyond_the_file_are_refused_where_they_begin() -> None:
    data, start = strings_of_four(10)
    error = refusal(data[: start + 46])
    assert error.offset is not None
    assert error.offset <= start + 46
    longer = bytearray(data)
    longer[start + 12 * 9] = 5  # the last one
    error = refusal(bytes(longer))
    assert placed(error) == ("metadata KV 0, 'k'", start + 12 * 9 + 8)
    assert "5 bytes expected here" in str(error)


def likely_end(data: bytes, total: int = 1 << 20) -> tuple[int, int]:
    with pytest.raises(NeedMoreData) as signal:
        parse(data, total)
    return signal.value.needed, signal.value.likely


def test_the_rest_of_an_array_of_strings_is_guessed_by_what_was_read() -> None:
    """Five of ten strings are known to take 56 bytes with the next length: the other five take as much and a fifth."""
    data, start = strings_of_four(10)
    assert likely_end(data[: start + 46]) == (start + 56, start + 56 + 56 + 11)


def test_after_a_vocabulary_another_array_of_its_length_is_guessed() -> None:
    many = b.head((b.KV("k", b.ARR, b.Array(b.U8, [1] * 999)),))
    assert likely_end(many[:-1]) == (len(many), len(many))
    many = b.head((b.KV("k", b.ARR, b.Array(b.U8, [1] * 1000)),))
    assert likely_end(many[:-1]) == (len(many), len(many) + len(many) * 2 // 5)
    wide = b.head((b.KV("k", b.ARR, b.Array(b.U64, [1] * 4000)),))
    assert likely_end(wide[:-1]) == (len(wide), len(wide) + len(wide) * 2 // 5)


def test_tensor_infos_to_come_are_guessed_by_their_number() -> None:
    """72 bytes each; a vocabulary that was read before adds nothing now."""
    vocabulary = b.KV("k", b.ARR, b.Array(b.U8, [1] * 2000))
    tensors = [b.tensor(f"t{number}", "F32", (8,)) for number in range(4)]
    data = b.head((vocabulary,), tensors)
    before, third = data.index(b"t0") - 8, data.index(b"t2")
    needed, likely = likely_end(data[: before + 4])
    assert (needed, likely) == (before + 8, before + 8 + 4 * 72)
    assert likely_end(data[: third + 1]) == (third + 2, third + 2 + 2 * 72)
    assert likely_end(data[: third + 1], len(data) + 10) == (third + 2, len(data) + 10)


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        (b.KV("general.type", b.STR, "imatrix"), True),
        (b.KV("general.type", b.STR, "model"), False),
        (b.KV("general.name", b.STR, "imatrix"), False),
        (b.KV("general.type", b.U32, 5), False),
    ],
)
def test_an_imatrix_says_so_in_its_type(entry: b.KV, answer: bool) -> None:
    assert h.is_imatrix(parsed(b.gguf((_TWO[0], entry, _TWO[1]))).kvs) is answer


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_length_ends_with_the_last_tensor_info(version: int) -> None:
    tensors = [b.tensor("a", "F32", (8,)), b.tensor("größe", "F32", (8, 2))]
    data = b.head((*_TWO, b.KV("größe", b.STR, "é")), tensors, version=version)
    assert parse(data, len(data)).length == len(data)
