"""Models with NVFP4 weights and scales, made with struct only."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.support import builders as b

NVFP4, F32, Q8_0 = 40, 0, 8
WIDTH, ROWS = 256, 4
NORM = "blk.0.attn_norm.weight"


def nvfp4(name: str, rows: int = ROWS) -> b.Tensor:
    """A weight with finite numbers: in each block of 64, four scales and 32 bytes of 4-bit numbers."""
    noise = b.filler(name, rows * WIDTH // 64 * 32)
    data = b"".join(b"\x38\x3a\x3c\x30" + noise[at : at + 32] for at in range(0, len(noise), 32))
    return b.Tensor(name, (WIDTH, rows), NVFP4, data)


def f32(name: str, dims: Sequence[int], numbers: Sequence[float]) -> b.Tensor:
    return b.Tensor(name, tuple(dims), F32, struct.pack(f"<{len(numbers)}f", *numbers))


def floats(name: str, dims: Sequence[int] = (WIDTH, ROWS)) -> b.Tensor:
    count = 1
    for dim in dims:
        count *= dim
    return f32(name, dims, [(byte - 128) / 64 for byte in b.filler(name, count)])


def with_scales(weight: b.Tensor, *scale: float, input_scale: bool = True) -> list[b.Tensor]:
    """`weight` and its scales."""
    stem = str(weight.name).removesuffix("weight")
    scales = [f32(f"{stem}scale", (len(scale),), scale)]
    return [weight, *scales, *([f32(f"{stem}input_scale", (1,), [0.5])] if input_scale else [])]


def write(path: Path, *tensors: b.Tensor, arch: str = "llama") -> str:
    kvs = [b.KV("general.architecture", b.STR, arch), b.KV(f"{arch}.block_count", b.U32, 1)]
    kvs.append(b.KV("general.quantization_version", b.U32, 2))
    path.write_bytes(b.gguf(kvs, [floats("token_embd.weight"), f32(NORM, (WIDTH,), [1.0] * WIDTH), *tensors]))
    return str(path)


UP, GATE = "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"
SCALES = ["blk.0.ffn_up.scale", "blk.0.ffn_up.input_scale", "blk.0.ffn_gate.scale", "blk.0.ffn_gate.input_scale"]


def scaled(path: Path) -> str:
    """A model with two NVFP4 weights and their scales, 3 and 7."""
    return write(path, *with_scales(nvfp4(UP), 3.0), *with_scales(nvfp4(GATE), 7.0))


def plain(path: Path, kind: str = "Q8_0") -> str:
    """The same model in a type without scales."""
    return write(path, b.tensor(UP, kind, (WIDTH, ROWS)), b.tensor(GATE, kind, (WIDTH, ROWS)))
