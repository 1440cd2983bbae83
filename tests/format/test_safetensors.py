"""Heads of safetensors files, also those that strangers made to do harm."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import FormatError, GGUFToolError, SourceError
from gguftool.format.safetensors import SafeTensor, head_length, parse_safetensors, serialize_safetensors
from gguftool.surgery.inputs import open_donor
from tests.support.counted_work import LINEAR, growth


def head(listing: object) -> bytes:
    text = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parse(listing: object, data: int = 24) -> tuple[SafeTensor, ...]:
    whole = head(listing)
    return parse_safetensors(whole, len(whole) + data)


def test_shapes_are_reversed_and_types_are_those_of_ggml() -> None:
    (found,) = parse({"a.weight": entry()})
    assert (found.name, found.dims, found.type_id, found.begin, found.end) == ("a.weight", (3, 2), 0, 0, 24)


def test_scalars_and_empty_tensors() -> None:
    scalar, empty = parse({"s": entry(shape=[], offsets=[0, 4]), "e": entry(shape=[0, 7], offsets=[4, 4])})
    assert (scalar.dims, empty.dims) == ((), (7, 0))


def test_a_dtype_that_ggml_lacks_is_listed_without_a_type() -> None:
    (found,) = parse({"a": entry(dtype="F8_E4M3", shape=[24])})
    assert found.type_id is None


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (b"", "is not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{" * 50_000, "is not JSON"),
        (b'{"a":' + b"[" * 100_000, "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ({"a": 1}, "expected dtype"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "expected dtype"),
        ({"a": entry(offsets=[0, 24, 3])}, "expected dtype"),
        ({"a": entry(offsets=[0, 25])}, "are not inside"),
        ({"a": entry(offsets=[24, 0])}, "are not inside"),
        ({"a": entry(offsets=[-1, 23])}, "are not inside"),
        ({"a": entry(offsets=[0, 24.0])}, "are not inside"),
        ({"a": entry(offsets=[False, 24])}, "are not inside"),
        ({"a": entry(shape=[2, -3])}, "are not inside"),
        ({"a": entry(shape="23")}, "are not inside"),
        ({"a": entry(shape={"2": 3})}, "are not inside"),
        ({"a": entry(shape=[1 << 63, 2, 1 << 63])}, "does not take"),
        ({"a": entry(shape=[5])}, "does not take 24 bytes"),
        ({"a": entry(dtype=["F32"])}, "are not inside"),
        ({"__metadata__": {"gguftool.a": "{}"}, "a": entry(dtype="U8", shape=[24])}, "does not give type and dims"),
        ({"__metadata__": {"gguftool.a": "["}, "a": entry(dtype="U8", shape=[24])}, "does not give type and dims"),
        (
            {"__metadata__": {"gguftool.a": '{"type": 8, "dims": [32]}'}, "a": entry(dtype="U8", shape=[24])},
            "takes 34 bytes",
        ),
        (
            {"__metadata__": {"gguftool.a": '{"type": true, "dims": [32]}'}, "a": entry(dtype="U8", shape=[24])},
            "does not give type and dims",
        ),
    ],
)
def test_bad_heads_are_refused(listing: object, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        parse(listing)


@pytest.mark.parametrize("first", [b"", b"\0" * 7, struct.pack("<Q", 1 << 63), struct.pack("<Q", 93), b"GGUF\3\0\0\0"])
def test_a_length_beyond_the_file_is_refused(first: bytes) -> None:
    with pytest.raises(FormatError):
        head_length(first, 100)


def test_a_shape_of_a_million_large_numbers_takes_no_time() -> None:
    def parse_shapes(size: int) -> None:
        shape = [10**18 + 9] * size
        raw = json.dumps({"type": 8, "dims": shape})
        assert parse({"a": entry(shape=shape)})[0].type_id is None
        with pytest.raises(FormatError, match="does not give type and dims"):
            parse({"__metadata__": {"gguftool.a": raw}, "a": entry(dtype="U8", shape=[24])})

    assert growth(parse_shapes, 25_000, runs=3) < LINEAR


@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 9), max_size=4)), max_size=5))
def test_parse_reads_what_serialize_wrote(shapes: list[tuple[str, list[int]]]) -> None:
    tensors, at = [], 0
    for name, dims in {name: dims for name, dims in shapes if name != "__metadata__"}.items():
        size = 4
        for dim in dims:
            size *= dim
        tensors.append(SafeTensor(name=name, dims=tuple(dims), type_id=0, dtype="F32", begin=at, end=at + size))
        at += size
    written = serialize_safetensors(tensors)
    assert len(written) % 8 == 0
    assert head_length(written[:8], len(written) + at) == len(written)
    assert parse_safetensors(written, len(written) + at) == tuple(tensors)


@given(st.binary(max_size=120), st.integers(0, 200))
def test_any_bytes_are_tensors_or_a_format_error(data: bytes, more: int) -> None:
    try:
        length = head_length(data[:8], len(data))
        parse_safetensors(data[:length], len(data) + more)
    except FormatError:
        pass


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_tensors_or_a_format_error(place: int, byte: int) -> None:
    data = bytearray(head({"__metadata__": {"gguftool.b": '{"type":8,"dims":[32]}'}, "a": entry(), "b": entry("U8")}))
    data[place % len(data)] = byte
    try:
        length = head_length(bytes(data[:8]), len(data) + 24)
        parse_safetensors(bytes(data[:length]), len(data) + 24)
    except FormatError:
        pass


def test_a_donor_names_the_file_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        open_donor(str(path))
    with pytest.raises(SourceError, match="cannot open"):
        open_donor(str(tmp_path / "none.safetensors"))
    (tmp_path / "short.safetensors").write_bytes(b"\1")
    with pytest.raises(GGUFToolError, match="too short"):
        open_donor(str(tmp_path / "short.safetensors"))
