"""Generate the models for the benchmarks."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

F32, F16, Q4_K, Q6_K = 0, 1, 12, 14
_BLOCKS = {F32: (4, 1), F16: (2, 1), Q4_K: (144, 256), Q6_K: (210, 256)}  # bytes of a block, and its elements
_U32, _I32, _FLOAT, _STRING, _ARRAY = 4, 5, 6, 8, 9
_ALIGNMENT = 32


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(element: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IQ", element, count) + body


def _write_head(path: Path, kvs: list[tuple[str, int, bytes]], tensors: list[tuple[str, tuple[int, ...], int]]) -> int:
    """Write a head for dense `tensors` (name, dims, type); return the size of the whole file."""
    offset = 0
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(kvs))]
    parts += [_text(key) + struct.pack("<I", kind) + raw for key, kind, raw in kvs]
    for name, dims, kind in tensors:
        parts += [_text(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)]
        nbytes, elements = _BLOCKS[kind]
        size = math.prod(dims) // elements * nbytes
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    head = b"".join(parts)
    head += bytes(-len(head) % _ALIGNMENT)
    path.write_bytes(head)
    return len(head) + offset


def vocabulary_model(path: Path, n_tokens: int = 262_144) -> None:
    """Make a model with a large vocabulary (tokens, scores and token types) and one block of tensors."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = b"".join(_text("\u2581" + "".join(rng.choices(letters, k=rng.randint(1, 9)))) for _ in range(n_tokens))
    kvs = [
        ("general.architecture", _STRING, _text("llama")),
        ("tokenizer.ggml.model", _STRING, _text("llama")),
        ("tokenizer.ggml.tokens", _ARRAY, _array(_STRING, n_tokens, tokens)),
        ("tokenizer.ggml.scores", _ARRAY, _array(_FLOAT, n_tokens, struct.pack("<f", -1.0) * n_tokens)),
        ("tokenizer.ggml.token_type", _ARRAY, _array(_I32, n_tokens, struct.pack("<i", 1) * n_tokens)),
    ]
    names = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
    tensors = [(f"blk.0.{name}.weight", (64, 64), F32) for name in names]
    _fill(path, _write_head(path, kvs, tensors), b"")


def big_model(path: Path, n_tensors: int, tensor_bytes: int) -> None:
    """Make a model of `n_tensors` F16 tensors of `tensor_bytes` each (a multiple of 8 KiB), all bytes written."""
    kvs = [("general.architecture", _STRING, _text("llama")), ("llama.block_count", _U32, struct.pack("<I", n_tensors))]
    tensors = [(f"blk.{n}.ffn_up.weight", (4096, tensor_bytes // 8192), F16) for n in range(n_tensors)]
    size = _write_head(path, kvs, tensors)
    _fill(path, size, random.Random(2).randbytes(1 << 20))


def tensor_model(path: Path, rows: int, width: int, *, noise: bool = True) -> None:
    """Make a model of one F32 tensor: normal numbers that repeat after 1 MiB, or zeros in a sparse file."""
    kvs = [("general.architecture", _STRING, _text("llama")), ("llama.block_count", _U32, struct.pack("<I", 1))]
    size = _write_head(path, kvs, [("blk.0.ffn_up.weight", (width, rows), F32)])
    rng = random.Random(3)
    _fill(path, size, struct.pack("<262144f", *(rng.gauss(0, 0.1) for _ in range(1 << 18))) if noise else b"")


def moe_model(path: Path, layers: int = 48, *, noise: bool = False) -> None:
    """Make a model with the experts of Qwen3-30B-A3B: 128 in each of `layers`; zeros in a sparse file unless `noise`.

    48 layers take 19.4 GB.
    """
    width, inner, experts, tokens = 2048, 768, 128, 4096
    kvs = [
        ("general.architecture", _STRING, _text("qwen3moe")),
        ("qwen3moe.block_count", _U32, struct.pack("<I", layers)),
        ("qwen3moe.expert_count", _U32, struct.pack("<I", experts)),
    ]
    tensors: list[tuple[str, tuple[int, ...], int]] = [("token_embd.weight", (width, tokens), Q6_K)]
    for layer in range(layers):
        shapes = {
            "attn_norm": ((width,), F32),
            "attn_q": ((width, 2 * width), Q4_K),
            "attn_k": ((width, 512), Q4_K),
            "attn_v": ((width, 512), Q6_K),
            "attn_output": ((2 * width, width), Q4_K),
            "ffn_norm": ((width,), F32),
            "ffn_gate_inp": ((width, experts), F32),
            "ffn_gate_exps": ((width, inner, experts), Q4_K),
            "ffn_up_exps": ((width, inner, experts), Q4_K),
            "ffn_down_exps": ((inner, width, experts), Q6_K),
        }
        tensors += [(f"blk.{layer}.{role}.weight", dims, kind) for role, (dims, kind) in shapes.items()]
    size = _write_head(path, kvs, tensors)
    _fill(path, size, random.Random(4).randbytes(1 << 20) if noise else b"")


def _fill(path: Path, size: int, block: bytes) -> None:
    """Make the file `size` bytes long: with copies of `block`, or sparse if it is empty."""
    with path.open("r+b") as file:
        if not block:
            file.truncate(size)
            return
        file.seek(0, 2)
        left = size - path.stat().st_size
        while left:
            left -= file.write(block[: min(left, len(block))])
