"""The decoders of ik_llama.cpp's types and of interleaved rows, against the engines' own files and by their structure.

The reference files hold each type as written by the engine's llama-quantize, and the floats it was made from.
Quantizers choose codes that come close under the right reading, so any other reading (a field in another place, swapped
nibbles, a wrong table, a missing sign) is farther off, mostly by a lot.  Each type is held to within 3 % of the error
found; that this is the right reading, not one that is off everywhere alike, follows from
`test_errors_fall_as_bits_grow` and from the exact comparisons with base types and other packages.
"""

from __future__ import annotations

import math
import tracemalloc
from functools import cache
from typing import Any

import pytest

import gguftool
from gguftool.analysis.diff.data import DataOptions, DataVerdict
from gguftool.analysis.diff.models import DiffOptions, diff_headers
from gguftool.format import dequantize
from gguftool.format.dequantize import MAX_UNIT, decoded_by, decoder_of
from gguftool.format.ggml import TYPES, find_type
from gguftool.format.ggml import nbytes as nbytes_of
from gguftool.format.kv import ByteOrder
from gguftool.format.quants.repacks import REPACKS
from gguftool.format.quants.types import LOOKUPS
from tests.support import builders as b
from tests.support.paths import FIXTURES

np = pytest.importorskip("numpy")

LITTLE = ByteOrder.LITTLE
DIMS = (256, 16)

# Relative RMS error of each type in the reference file, in percent, as its own llama-quantize wrote it.
ERRORS = {
    "F32": 0,
    "F16": 0.0207,
    "BF16": 0.165,
    "Q4_0": 8.15,
    "Q4_1": 7.03,
    "Q5_0": 4.14,
    "Q5_1": 3.41,
    "Q8_0": 0.54,
    "Q2_K": 27.4,
    "Q3_K": 14.1,
    "Q4_K": 7.14,
    "Q5_K": 3.55,
    "Q6_K": 1.72,
    "IQ2_XXS": 34.9,
    "IQ2_XS": 30.8,
    "IQ3_XXS": 19,
    "IQ1_S": 49.9,
    "IQ4_NL": 7.49,
    "IQ3_S": 14.2,
    "IQ2_S": 25.9,
    "IQ4_XS": 7.5,
    "IQ1_M": 46.2,
    "TQ1_0": 79.6,
    "TQ2_0": 80.2,
    "MXFP4": 11.8,
    "NVFP4": 9.55,
    "Q1_0": 60.2,
    "Q2_0": 71.9,
    "Q6_0": 2.03,
    "Q2_K_R4": 27.6,
    "Q3_K_R4": 14.7,
    "Q4_K_R4": 7.18,
    "Q5_K_R4": 3.66,
    "Q6_K_R4": 1.75,
    "Q8_K_R8": 0.714,
    "IQ2_XXS_R4": 35.9,
    "IQ2_XS_R4": 31,
    "IQ3_XXS_R4": 19,
    "IQ3_S_R4": 13.9,
    "IQ2_S_R4": 25.5,
    "IQ1_S_R4": 48.7,
    "IQ1_M_R4": 45.1,
    "IQ1_BN": 79.5,
    "IQ2_BN": 79.7,
    "IQ2_BN_R4": 80.9,
    "MXFP4_R8": 11.6,
    "IQ4_KS": 7.38,
    "IQ4_KS_R4": 7.34,
    "IQ5_KS_R4": 3.53,
    "IQ4_KSS": 9.42,
    "IQ5_KS": 3.55,
    "Q8_KV": 0.674,
    "Q8_KV_R8": 0.697,
    "BF16_R16": 0.329,
    "IQ2_K": 28.4,
    "IQ2_K_R4": 28.6,
    "IQ2_KS": 31.3,
    "IQ1_KT": 42,
    "IQ2_KT": 32.3,
    "IQ3_KT": 17.2,
    "IQ4_KT": 10,
    "IQ3_K": 13.3,
    "IQ3_KS": 15.2,
    "IQ2_KL": 23.2,
    "IQ4_K": 6.31,
    "IQ4_K_R4": 6.33,
    "IQ3_K_R4": 13.4,
    "IQ5_K": 3.22,
    "IQ5_K_R4": 3.19,
    "IQ6_K": 1.54,
    "IQ4_NL_R4": 7.5,
    "IQ4_XS_R8": 7.55,
    "Q4_0_R8": 8.33,
    "Q8_0_R8": 0.538,
    "Q5_0_R4": 4.01,
    "Q6_0_R4": 2.02,
}
# Written by the reference engine, but its bytes depend on the machine that wrote them: no decoder.
WITHOUT = {"Q8_K_R16"}


def traits_of(name: str) -> Any:
    traits = find_type(name)
    assert traits is not None
    return traits


def decode(name: str, data: bytes, dims: tuple[int, ...] = DIMS) -> Any:
    decoder = decoder_of(traits_of(name).id, LITTLE, dims)
    assert decoder is not None, name
    return decoder.decode(data)


def relative(x: Any, y: Any) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(np.linalg.norm(x - y) / np.linalg.norm(x))


@cache
def zoo() -> dict[str, tuple[bytes, Any]]:
    """Type name to the quantized bytes and the floats that they were made from."""
    found = {}
    for engine in ("ml", "ik"):
        quantized, source = (
            gguftool.open_model(FIXTURES / "engines" / "zoo" / f"zoo-{kind}{engine}.gguf") for kind in ("", "f32-")
        )
        for name, tensor in quantized.tensors.items():
            assert tensor.info.dims == DIMS
            floats = np.frombuffer(data_of(source.tensors[name]), dtype="<f4")
            found[TYPES[tensor.info.type].name] = data_of(tensor), floats
    return found


def data_of(tensor: Any) -> bytes:
    data: bytes = tensor.extent.source.read_at(tensor.extent.offset, tensor.type_nbytes)
    return data


# --- against the engines' files --------------------------------------------------------------------------------------


def test_all_types_of_the_reference_files_are_here() -> None:
    assert set(zoo()) == {*ERRORS, *WITHOUT}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_a_right_decoder(name: str) -> None:
    data, floats = zoo()[name]
    assert 100 * relative(floats, decode(name, data)) == pytest.approx(ERRORS[name], rel=0.03)


@pytest.mark.parametrize("name", [name for name in ERRORS if ERRORS[name] < 40])
def test_any_other_order_of_the_bytes_is_far_off(name: str) -> None:
    """The bound above means something: the same bytes in a slightly other place are no match."""
    data, floats = zoo()[name]
    right = relative(floats, decode(name, data))
    row = len(data) // DIMS[1] * traits_of(name).interleaved_rows
    shifted = np.frombuffer(data, dtype=np.uint8).reshape(-1, row).copy()
    rest = shifted[:, row // 2 :]
    shifted[:, row // 2 :] = np.roll(rest, 1, axis=1)  # scales of rows stay
    with np.errstate(all="ignore"):
        wrong = relative(floats, decode(name, shifted.tobytes()))
    assert not wrong < 1.5 * right


def test_errors_fall_as_bits_grow() -> None:
    """No decoder loses what its bits could hold: none is worse than one of a bit less.

    Types of three or four fixed steps, whose error says little, have a test of their own below.
    """
    bits = {name: traits_of(name).bits_per_weight for name in ERRORS if name not in {*STEPS, "TQ1_0", "TQ2_0"}}
    assert not [(x, y) for x in bits for y in bits if bits[x] >= bits[y] + 1 and ERRORS[x] > ERRORS[y]]


# Types whose numbers are a few whole multiples of a scale, and elements that share it in the reference files.
STEPS = {"Q2_0": 64, "IQ1_BN": 256, "IQ2_BN": 256, "IQ2_BN_R4": 256}


@pytest.mark.parametrize("name", STEPS)
def test_few_steps_are_the_nearest(name: str) -> None:
    """Every element is the multiple of its scale that is nearest to the float it was made from."""
    data, floats = zoo()[name]
    numbers, floats = (array.reshape(-1, STEPS[name]) for array in (decode(name, data), floats))
    scale = np.abs(np.where(numbers == 0, np.inf, numbers)).min(axis=1, keepdims=True)
    steps = floats / scale
    top = 2 if name == "Q2_0" else 1
    assert np.abs(numbers / scale - np.clip(steps, -1, top)).max() <= 0.501


# --- interleaved rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPACKS)
def test_every_bit_moves_to_one_place(name: str) -> None:
    """Each bit of the group is one bit of the plain rows: nothing is lost, nothing read twice."""
    repack = REPACKS[name]
    order = repack.bit_order()
    assert sorted(order.ravel().tolist()) == list(range(8 * repack.rows * repack.base_bytes))


def packed(name: str, plain: bytes, dims: tuple[int, ...]) -> bytes:
    """Return plain rows interleaved, bit by bit by the documented places: slow, and nothing like the code tested."""
    repack, traits = REPACKS[name], traits_of(name)
    base = traits_of(repack.base) if repack.base != name else traits
    per_row = dims[0] // base.block_size if base.block_size > 1 else dims[0] // 2
    meta = base.row_meta_size
    rows = np.frombuffer(plain, dtype=np.uint8).reshape(-1, repack.rows, meta + per_row * repack.base_bytes)
    order = repack.bit_order().ravel()
    out = b""
    for group in rows:
        out += b"".join(row[: traits.row_meta_size].tobytes() for row in group)
        for block in range(per_row):
            at = meta + block * repack.base_bytes
            bits = np.unpackbits(group[:, at : at + repack.base_bytes], axis=1, bitorder="little").ravel()
            mixed = np.empty_like(bits)
            mixed[order] = bits
            out += np.packbits(mixed, bitorder="little").tobytes()
    return out


_SCRAMBLED = {name for name, repack in REPACKS.items() if repack.finish and repack.base != "Q4_0"}
_OF_OTHERS = [name for name, repack in REPACKS.items() if not repack.finish and repack.base != name]


@pytest.mark.parametrize("name", _OF_OTHERS)
def test_interleaved_rows_give_exactly_the_floats_of_their_base_type(name: str) -> None:
    base = REPACKS[name].base
    plain = zoo()[base][0]
    expected = decode(base, plain)
    found = decode(name, packed(name, plain, DIMS))
    assert found.tobytes() == expected.tobytes()


# Some of the engine's table of scrambled signs (ggml/src/iqk/iqk_quantize.cpp, `scrambled_sign`).
_SIGNS = {0: 0x00, 1: 0x7F, 2: 0x7E, 3: 0x01, 4: 0x7C, 8: 0x78, 16: 0x70, 32: 0x60, 64: 0x40}


@pytest.mark.parametrize("name", sorted(_SCRAMBLED))
def test_scrambled_signs_give_exactly_the_floats_of_their_base_type(name: str) -> None:
    base, repack = REPACKS[name].base, REPACKS[name]
    plain = np.frombuffer(zoo()[base][0], dtype=np.uint8).reshape(-1, repack.base_bytes).copy()
    data = packed(name, scrambled(base, plain).tobytes(), DIMS)
    assert decode(name, data).tobytes() == decode(base, plain.tobytes()).tobytes()


def scrambled(base: str, plain: Any) -> Any:
    """Return plain blocks with each 7-bit sign field s replaced by the t for which t ^ (t << 1) is s, by trying."""
    table = np.empty(128, dtype=np.uint32)
    for t in range(128):
        table[(t ^ (t << 1)) & 127] = t
    assert all(table[s] == t for s, t in _SIGNS.items())
    blocks = plain.copy()
    if base == "IQ2_XS":
        words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
        blocks[:, 2:66] = ((words & 511) | (table[words >> 9] << 9).astype("<u2")).view(np.uint8)
        return blocks
    where = slice(2, 66) if base == "IQ2_XXS" else slice(66, 98)
    words = np.ascontiguousarray(blocks[:, where]).view("<u4")
    fields = words[:, 1::2] if base == "IQ2_XXS" else words
    for field in range(4):
        sign = (fields >> (7 * field)) & 127
        fields ^= (sign ^ table[sign]) << np.uint32(7 * field)
    blocks[:, where] = words.view(np.uint8)
    return blocks


# --- against other packages ------------------------------------------------------------------------------------------


def random_blocks(name: str, rows: int, seed: int = 1) -> bytes:
    size = nbytes_of(traits_of(name).id, (traits_of(name).block_size * 4, rows))
    assert size is not None
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def _types_of_gguf() -> list[str]:
    from gguf import GGMLQuantizationType

    return [kind.name for kind in GGMLQuantizationType if decoded_by(int(kind)) == "gguf"]


def test_what_gguf_dequantizes_is_written_down() -> None:
    from gguf import GGMLQuantizationType

    known = {kind.name for kind in GGMLQuantizationType if decoded_by(int(kind)) == "gguf"}
    asked = {kind.name for kind in GGMLQuantizationType if dequantize._by_gguf(traits_of(kind.name)) is not None}
    assert {name for name in asked if decoded_by(traits_of(name).id) != "numpy"} == known


@pytest.mark.parametrize("name", _types_of_gguf())
def test_libgguf_gives_the_same_floats_as_gguf(name: str) -> None:
    """Bit for bit but for which NaN it is; zeros too, with their signs where gguf keeps them."""
    pytest.importorskip("libgguf", reason="no libgguf: pip install -e '.[quantize]'")
    native = dequantize._by_libgguf(traits_of(name))
    slow = dequantize._by_gguf(traits_of(name))
    assert native is not None
    assert slow is not None
    for data in (random_blocks(name, 64), bytes(traits_of(name).type_size * 3)):
        assert np.array_equal(native(data), slow(data), equal_nan=True)


def test_without_libgguf_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = {name: decode(name, data) for name, (data, _) in zoo().items() if name not in WITHOUT}
    monkeypatch.setattr(dequantize, "_by_libgguf", lambda traits: None)
    decoder_of.cache_clear()
    try:
        for name, floats in with_it.items():
            assert np.array_equal(floats, decode(name, zoo()[name][0]), equal_nan=True), name
    finally:
        decoder_of.cache_clear()


def test_q1_0_is_that_of_libgguf() -> None:
    """The one type that libgguf knows and gguf does not: the table here must give the same."""
    pytest.importorskip("libgguf", reason="no libgguf: pip install -e '.[quantize]'")
    data = random_blocks("Q1_0", 64)
    native, table = (make(traits_of("Q1_0")) for make in (dequantize._by_libgguf, dequantize._by_lookup))
    assert native is not None
    assert table is not None
    assert np.array_equal(native(data), table(data), equal_nan=True)


# --- any bytes, any size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*LOOKUPS, *REPACKS}))
@pytest.mark.parametrize("fill", [b"\xff", b"\x7c", b"\x00", None])
def test_any_bytes_give_as_many_numbers(name: str, fill: bytes | None) -> None:
    dims = (traits_of(name).block_size * 4, 16)
    size = nbytes_of(traits_of(name).id, dims)
    assert size is not None
    numbers = decode(name, fill * size if fill else random_blocks(name, 16), dims)
    assert (numbers.dtype, numbers.shape) == (np.float32, (math.prod(dims),))
    assert fill != b"\x00" or not numbers.any()


@pytest.mark.parametrize("name", sorted({*LOOKUPS, *REPACKS}))
def test_units_are_independent(name: str) -> None:
    """Whole units at any place give what the whole gives there."""
    dims = (traits_of(name).block_size * 4, 48)
    decoder = decoder_of(traits_of(name).id, LITTLE, dims)
    assert decoder is not None
    data = random_blocks(name, 48)
    whole = decoder.decode(data)
    assert len(data) * decoder.unit == whole.size * decoder.unit_bytes
    part = decoder.decode(data[decoder.unit_bytes : 3 * decoder.unit_bytes])
    assert part.tobytes() == whole[decoder.unit : 3 * decoder.unit].tobytes()
    assert decoder.decode(b"").size == 0


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("IQ4_KS", (255, 4)),
        ("IQ4_KS", ()),
        ("IQ4_KS_R4", (256, 6)),
        ("IQ4_KS_R4", (256,)),
        ("IQ2_K_R4", (256, 3, 4)),  # rows of an expert, not of all experts
        ("IQ4_KS", (MAX_UNIT + 256, 1)),
        ("BF16_R16", (MAX_UNIT // 16 + 2, 16)),
        ("BF16_R16", (257, 16)),  # numbers are interleaved by twos
        ("Q4_0_4_4", (32, 6)),
        ("I2_S", (256, 4)),
    ],
)
def test_shapes_without_a_decoder(name: str, dims: tuple[int, ...]) -> None:
    assert decoder_of(traits_of(name).id, LITTLE, dims) is None


def test_big_endian_blocks_have_no_decoder() -> None:
    assert decoder_of(traits_of("IQ4_KS").id, ByteOrder.BIG, DIMS) is None
    assert decoder_of(traits_of("IQ2_K").id, ByteOrder.BIG, DIMS) is None


# --- where it is used ------------------------------------------------------------------------------------------------


def test_diff_measures_all_types_of_the_reference_file() -> None:
    models = [gguftool.open_model(FIXTURES / "engines" / "zoo" / f"zoo-{kind}ik.gguf") for kind in ("f32-", "")]
    report = diff_headers(*models, DiffOptions(data=DataOptions()))
    assert report.data is not None
    notes = {one.new_type: one.note for one in report.data.tensors if one.note}
    assert notes == {"Q8_K_R16": "no dequantizer for Q8_K_R16"}
    for one in report.data.tensors:
        assert one.verdict is DataVerdict.OTHER_TYPE
        if one.errors is not None and one.errors.relative_rmse is not None:
            expected = relative(zoo()[one.new_type][1], decode(one.new_type, zoo()[one.new_type][0]))
            assert one.errors.relative_rmse == pytest.approx(expected, rel=1e-6)


def test_floats_of_interleaved_rows_come_in_any_range(tmp_path: Any) -> None:
    from gguftool.surgery.dequantized_source import FloatType, dequantized

    data = random_blocks("IQ4_KS_R4", 32)
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("x.weight", (1024, 32), traits_of("IQ4_KS_R4").id, data),)))
    source = dequantized(gguftool.open_model(path).tensors["x.weight"], FloatType.F32, LITTLE)
    whole = source.read_at(0, source.size)
    assert whole == decode("IQ4_KS_R4", data, (1024, 32)).tobytes()
    for begin, length in ((0, 1), (4095, 3), (16383, 2), (16384, 16384), (131071, 1), (5, 100_000), (7, 0)):
        assert source.read_at(begin, length) == whole[begin : begin + length]
        assert b"".join(source.stream(begin, length)) == whole[begin : begin + length]


def test_memory_follows_the_rows(tmp_path: Any) -> None:
    from gguftool.surgery.dequantized_source import FloatType, dequantized

    rows, width = 512, 8192
    size = nbytes_of(traits_of("IQ4_K_R4").id, (width, rows))
    assert size is not None
    path = tmp_path / "m.gguf"
    tensor = b.Tensor("x.weight", (width, rows), traits_of("IQ4_K_R4").id, bytes(size))
    path.write_bytes(b.gguf(b.llama_kvs(), (tensor,)))
    source = dequantized(gguftool.open_model(path).tensors["x.weight"], FloatType.F16, LITTLE)
    assert source.size == 2 * rows * width
    tracemalloc.start()
    try:
        assert sum(map(len, source.stream(0, source.size))) == source.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20  # the tensor is 16 MiB as floats
