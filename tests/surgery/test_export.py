"""Export: what other programs read of it is what the tensors hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.errors import FormatError, PlanError
from gguftool.format.ggml import TYPES
from gguftool.format.safetensors import SafeTensor, head_length, parse_safetensors
from gguftool.model.model import Model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.surgery.dequantized_source import FloatType
from gguftool.surgery.export import plan_export
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.mix_models import SHAPES, quant
from tests.support.paths import FIXTURES
from tests.support.peak_memory import MEASURED

MIB = 1 << 20
FLOATS = tuple(FloatType)


def export(model: Model, patterns: list[str], path: Path, dtype: FloatType | None = None) -> bytes:
    execute(plan_export(model, patterns, path, dtype), Options(sync=False))
    return path.read_bytes()


def entries(raw: bytes) -> dict[str, SafeTensor]:
    length = head_length(raw[:8], len(raw))
    return {entry.name: entry for entry in parse_safetensors(raw[:length], len(raw))}


def read_by_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def test_raw_bytes_are_read_by_the_real_package(tmp_path: Path) -> None:
    model = gguftool.open_model(quant(tmp_path / "m.gguf", "IQ4_KS"))
    raw = export(model, ["blk"], tmp_path / "x.safetensors")
    arrays, metadata = read_by_safetensors(tmp_path / "x.safetensors")
    names = [name for name in SHAPES if "blk" in name]
    assert sorted(arrays) == sorted(names)
    for name in names:
        assert arrays[name].dtype == "uint8"
        assert arrays[name].tobytes() == model.tensors[name].extent.read()
        assert f"gguftool.{name}" in metadata
        assert entries(raw)[name].dims == SHAPES[name]
        assert entries(raw)[name].type_id == model.tensors[name].info.type


def test_raw_types_and_dims_come_back_of_real_ones(tmp_path: Path) -> None:
    model = gguftool.open_model(FIXTURES / "engines" / "zoo" / "zoo-ik.gguf")
    found = entries(export(model, ["."], tmp_path / "x.safetensors"))
    assert {name: (entry.type_id, entry.dims) for name, entry in found.items()} == {
        name: (tensor.info.type, tensor.info.dims) for name, tensor in model.tensors.items()
    }


def _finite_blocks(type_id: int, kind: str, blocks: int) -> bytes:
    """Random blocks; those of float types without infinities and NaN, which compare badly."""
    raw = bytearray(b.filler(kind, TYPES[type_id].type_size * blocks))
    if kind in ("F32", "F16", "BF16"):
        width = TYPES[type_id].type_size
        for at in range(width - 1, len(raw), width):
            raw[at] &= 0x3F
    return bytes(raw)


def _dequantizable() -> list[tuple[int, str]]:
    """Every type that gguf knows how to dequantize: found out with a block of zeros, as nobody lists them."""
    import gguf
    import numpy as np
    from gguf.quants import dequantize

    found = []
    for kind in gguf.GGMLQuantizationType:
        size = gguf.GGML_QUANT_SIZES[kind][1]
        try:
            dequantize(np.zeros(size, dtype=np.uint8), kind)
        except (NotImplementedError, ValueError):
            continue
        found.append((int(kind), kind.name))
    return found


KNOWN = _dequantizable()


def test_gguf_knows_the_usual_types() -> None:
    assert {"F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_XXS"} <= {name for _, name in KNOWN}


@pytest.mark.parametrize(("type_id", "kind"), KNOWN, ids=[name for _, name in KNOWN])
def test_floats_are_those_of_gguf_and_numpy(tmp_path: Path, type_id: int, kind: str) -> None:
    import gguf
    import numpy as np

    traits = TYPES[type_id]
    row = traits.block_size * 3
    raw = _finite_blocks(type_id, kind, 3 * 5)
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("x.weight", (row, 5), type_id, raw),)))
    model = gguftool.open_model(path)
    quantized: Any = np.frombuffer(raw, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType(type_id)).astype(np.float32)
    for dtype in FLOATS:
        out = tmp_path / f"{dtype.value}.safetensors"
        found = entries(export(model, ["x.weight"], out, dtype))["x.weight"]
        assert (found.dims, found.dtype) == ((row, 5), dtype.name)
        data = out.read_bytes()[-(found.end - found.begin) :]
        assert _same(data, expected.reshape(-1), dtype)


def _same(data: bytes, expected: Any, dtype: FloatType) -> bool:
    """Whether `data` is `expected` in `dtype`: f32 and f16 by numpy, bf16 by gguf's own rounding; NaN equals NaN."""
    import gguf
    import numpy as np

    with np.errstate(all="ignore"):
        if dtype is FloatType.BF16:
            coded = gguf.quants.quantize(expected, gguf.GGMLQuantizationType.BF16)
            mine: Any = np.frombuffer(data, dtype="<u2")
            theirs: Any = coded.view("<u2").reshape(-1)
            nan = np.isnan(expected)
            quiet = (mine[nan] & 0x7FFF) > 0x7F80
            return bool(np.array_equal(mine[~nan], theirs[~nan]) and quiet.all())
        kind = "<f4" if dtype is FloatType.F32 else "<f2"
        return bool(np.array_equal(np.frombuffer(data, dtype=kind), expected.astype(kind), equal_nan=True))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F80),  # a tie goes to the even neighbour, down
        (0x3F818000, 0x3F82),  # and up
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest float is nearer to infinity
        (0x7F800000, 0x7F80),
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # NaN stays NaN, though its bits are cut off
        (0xFFFFFFFF, 0xFFFF),
        (0x00000001, 0x0000),
        (0x80000000, 0x8000),
    ],
)
def test_bf16_rounds_to_nearest_even(tmp_path: Path, bits: int, expected: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("x", (1,), 0, bits.to_bytes(4, "little")),)))
    raw = export(gguftool.open_model(path), ["x"], tmp_path / "x.safetensors", FloatType.BF16)
    assert int.from_bytes(raw[-2:], "little") == expected


def test_shapes_are_the_reverse_and_scalars_and_empty_tensors_pass(tmp_path: Path) -> None:
    tensors = (
        b.Tensor("scalar", (), 0, bytes(4)),
        b.Tensor("empty", (32, 0), 8, b""),
        b.tensor("three", "Q8_0", (32, 2, 3)),
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), tensors))
    for dtype in (None, *FLOATS):
        export(gguftool.open_model(path), ["."], tmp_path / f"{dtype}.safetensors", dtype)
        arrays, _ = read_by_safetensors_any(tmp_path / f"{dtype}.safetensors")
        if dtype is not None:
            assert arrays == {"scalar": [], "empty": [0, 32], "three": [3, 2, 32]}


def read_by_safetensors_any(path: Path) -> tuple[dict[str, list[int]], None]:
    """Shapes as the real package sees them: numpy has no bf16 to give the values in."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}, None  # noqa: SIM118


@pytest.mark.parametrize(("kind", "type_id", "size"), [("I2_S", 36, 96), ("Q8_0_X4", 97, 272)])
def test_types_that_cannot_be_dequantized_are_refused_by_name(
    tmp_path: Path, kind: str, type_id: int, size: int
) -> None:
    tensors = (
        b.Tensor("blk.0.attn_q.weight", (32, 8), type_id, bytes(size)),
        b.Tensor("output.weight", (32, 8), 9, bytes(288)),
        b.Tensor("token_embd.weight", (32,), 0, bytes(128)),
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), tensors))
    model = gguftool.open_model(path)
    with pytest.raises(PlanError) as caught:
        plan_export(model, ["."], tmp_path / "x", FloatType.F32)
    said = str(caught.value)
    assert f"'blk.0.attn_q.weight' is {kind}, which cannot be dequantized" in said
    assert "'output.weight' is Q8_1, which cannot be dequantized" in said
    assert "--dtype raw" in said
    assert "token_embd" not in said


def test_interleaved_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("output.weight", (32, 6), 220, bytes(108)),)))
    with pytest.raises(PlanError, match=r"'output.weight' is IQ4_NL_R4, and its rows .* in the shape \(32, 6\)"):
        plan_export(gguftool.open_model(path), ["."], tmp_path / "x", FloatType.F32)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("x.weight", (33, 2), 8, bytes(96)),)))
    for dtype in (None, FloatType.F32):
        with pytest.raises(PlanError, match=r"'x\.weight'"):
            plan_export(gguftool.open_model(path), ["x.weight"], tmp_path / "x", dtype)


@pytest.mark.parametrize("name", ["", "__metadata__", "a\x1b[2J", b"\xff"])
def test_names_that_safetensors_cannot_say_are_refused(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), (b.tensor(name, "F32", (4,)),)))
    with pytest.raises(PlanError, match="cannot be a tensor name"):
        plan_export(gguftool.open_model(path), [".*"], tmp_path / "x")


def test_a_changed_offset_in_an_export_is_found(tmp_path: Path) -> None:
    raw = export(gguftool.open_model(quant(tmp_path / "m.gguf", "Q8_0")), ["attn_q"], tmp_path / "x.safetensors")
    with pytest.raises(FormatError):
        entries(raw[:-1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_range_of_the_floats_is_that_range_of_all(tmp_path: Path, dtype: FloatType) -> None:
    model = gguftool.open_model(quant(tmp_path / "m.gguf", "Q6_K"))
    (copy,) = plan_export(model, ["attn_q"], tmp_path / "x", dtype).outputs[0].copies
    source = copy.extent.source
    whole = source.read_at(0, source.size)
    assert len(whole) == source.size == 256 * 6 * dtype.nbytes
    for start, length in ((0, 1), (1, 1), (511, 514), (1023, 2), (source.size - 1, 1), (700, 1000), (5, 0)):
        assert source.read_at(start, length) == whole[start : start + length]


def test_the_identity_of_computed_bytes_says_what_they_are(tmp_path: Path) -> None:
    model = gguftool.open_model(quant(tmp_path / "m.gguf", "Q6_K"))
    identities = {
        plan_export(model, [name], tmp_path / "x", dtype).outputs[0].copies[0].extent.source.identity
        for name in ("attn_q", "attn_output")
        for dtype in FLOATS
    }
    assert len(identities) == 6


@pytest.mark.slow
def test_streaming_a_gibibyte_takes_little_memory(tmp_path: Path) -> None:
    """1 GiB of F32, a hole in the file, as f16."""
    tensor = b.Tensor("x.weight", (1 << 14, 1 << 14), 0)
    head = b.head(b.llama_kvs(), (tensor,))
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(b.round_up(len(head), 32) + (1 << 30))
    arguments = (
        "export",
        path,
        "--tensor",
        "x.weight",
        "--dtype",
        "f16",
        "-o",
        tmp_path / "x.safetensors",
        "--no-sync",
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.safetensors").stat().st_size > 1 << 29
    assert int(done.stderr.splitlines()[-1]) < 300 * MIB


def test_the_command(tmp_path: Path) -> None:
    data = bytes(288)
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "output.weight")
    path = tmp_path / "m.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(), tuple(b.Tensor(name, (32, 8), 9, data) for name in names)))
    out = tmp_path / "x.safetensors"
    bad = run_gguftool("export", path, "--tensor", "attn", "--dtype", "f32", "-o", out)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 3  # two tensors
    assert not out.exists()
    usage = run_gguftool("export", path, "--tensor", "attn", "--dtype", "f64", "-o", out)
    assert (usage.returncode, b"raw, f32, f16 or bf16" in usage.stderr) == (2, True)
    assert run_gguftool("export", path, "--tensor", "attn", "-o", out).returncode == 0
    assert run_gguftool("export", path, "--tensor", "attn", "-o", out).returncode == 2  # it exists
