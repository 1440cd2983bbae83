"""Small GGUF files for the tests of check, with struct only: right by default, wrong where a test needs it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

# id: elements in a block, bytes of a block, bytes before each row
LAYOUTS = {
    0: (1, 4, 0),  # F32
    1: (1, 2, 0),  # F16
    8: (32, 34, 0),  # Q8_0
    9: (32, 36, 0),  # Q8_1
    12: (256, 144, 0),  # Q4_K
    14: (256, 210, 0),  # Q6_K
    16: (256, 66, 0),  # IQ2_XXS
    28: (1, 8, 0),  # F64
    29: (256, 56, 0),  # IQ1_M
    34: (256, 54, 0),  # TQ1_0
    40: (64, 36, 0),  # NVFP4
    133: (32, 26, 0),  # Q6_0
    134: (64, 13, 2),  # IQ1_BN
    144: (256, 136, 4),  # IQ4_KS
    151: (32, 32, 8),  # Q8_KV
    153: (256, 68, 4),  # IQ2_KT
    155: (256, 128, 4),  # IQ4_KT
    202: (32, 18, 0),  # Q4_0_R8
    208: (32, 34, 0),  # Q8_0_R8
    210: (256, 84, 0),  # Q2_K_R4
    212: (256, 144, 0),  # Q4_K_R4
    230: (1, 2, 0),  # BF16_R16
    398: (32, 32, 4),  # Q8_KV_R8
}
F32, Q8_0, Q4_K = 0, 8, 12
CODES = {"u8": (0, "B"), "u16": (2, "H"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "u64": (10, "Q")}


@dataclass
class T:
    """A tensor; `step` is the distance to the next one (default: the padded size), `offset` overrides it."""

    name: str | bytes
    dims: tuple[int, ...] = (32, 32)
    type: int = Q8_0
    nbytes: int | None = None
    step: int | None = None
    offset: int | None = None
    fill: bytes = b"\x11"

    @property
    def size(self) -> int:
        if self.nbytes is not None:
            return self.nbytes
        block, size, meta = LAYOUTS[self.type]
        rows = prod(self.dims[1:]) if len(self.dims) > 1 else 1
        return rows * (meta + self.dims[0] // block * size)


@dataclass
class File:
    """A GGUF file; `kvs` are (key, kind, value)."""

    tensors: list[T] = field(default_factory=list)
    kvs: list[tuple] = field(default_factory=list)
    version: int = 3
    order: str = "<"
    alignment: int = 32
    padding: bytes = b"\0"
    tail: bytes = b""
    cut: int = 0

    def bytes(self) -> bytes:
        o, width = self.order, "I" if self.version == 1 else "Q"
        head = b"GGUF" + struct.pack(f"{o}I2{width}", self.version, len(self.tensors), len(self.kvs))
        for key, kind, value in self.kvs:
            head += text(key, o, width) + value_bytes(kind, value, o, width)
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            n = len(tensor.dims)
            head += text(tensor.name, o, width)
            head += struct.pack(f"{o}I{n}{width}IQ", n, *tensor.dims, tensor.type, offset)
            body = (tensor.fill * tensor.size)[: tensor.size]
            step = -(-len(body) // self.alignment) * self.alignment if tensor.step is None else tensor.step
            data += (body + self.padding * step)[:step]
        head += bytes(-len(head) % self.alignment)
        whole = head + data + self.tail
        return whole[: len(whole) - self.cut]


def text(value: str | bytes, order: str = "<", width: str = "Q") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(order + width, len(data)) + data


def value_bytes(kind: str, value: Any, order: str, width: str) -> bytes:
    if kind == "raw":
        return value
    if kind == "str":
        return struct.pack(order + "I", 8) + text(value, order, width)
    if kind == "bool":
        return struct.pack(order + "IB", 7, value)
    number, code = CODES[kind]
    return struct.pack(f"{order}I{code}", number, value)


def model(
    *tensors: T,
    kvs: Sequence[tuple[Any, ...]] = (),
    arch: str = "llama",
    layers: int = 1,
    embd: T | None = None,
    output: bool = True,
    filler: bool = True,
    whole: bool = False,
    **head: Any,
) -> File:
    """A model without faults of its file: one token embedding, an output, a tensor in each layer that has none.

    No engine would load it, unless it is `whole`: then everything is there that both engines ask for.
    """
    if whole:
        more_kvs, more = whole_llama(tensors, (embd or T("token_embd.weight")).dims[0])
        kvs, tensors, filler = [*kvs, *more_kvs], (*tensors, *more), False
    keys = [("general.architecture", "str", arch), (f"{arch}.block_count", "u32", layers)] if arch else []
    own = [embd or T("token_embd.weight")] + ([T("output.weight")] if output else [])
    named = {tensor.name.split(".")[1] for tensor in tensors}
    fill = [T(f"blk.{n}.attn_norm.weight", (32,), F32) for n in range(layers) if filler and str(n) not in named]
    return File(tensors=[*own, *fill, *tensors], kvs=[*keys, *kvs], **head)


def whole_llama(given: Sequence[T], width: int) -> tuple[list[tuple[Any, ...]], list[T]]:
    """The keys and tensors that a llama of one layer lacks; its experts, if any, are as many as `given` has."""
    up = next((tensor for tensor in given if "ffn_up_exps" in str(tensor.name)), None)
    length, experts = (up.dims[1], up.dims[2]) if up else (width, 0)
    kvs: list[tuple[Any, ...]] = [
        ("llama.context_length", "u32", 64),
        ("llama.embedding_length", "u32", width),
        ("llama.feed_forward_length", "u32", length),
        ("llama.attention.head_count", "u32", 1),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("llama.vocab_size", "u32", 32),
        ("tokenizer.ggml.model", "str", "no_vocab"),
    ]
    square = ((role, (width, width)) for role in ("attn_q", "attn_k", "attn_v", "attn_output"))
    dims: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,), **dict(square)}
    if experts:
        kvs += [("llama.expert_count", "u32", experts), ("llama.expert_used_count", "u32", 1)]
        dims |= {"ffn_gate_inp": (width, experts), "ffn_down_exps": (length, width, experts)}
    else:
        dims |= {"ffn_gate": (width, length), "ffn_up": (width, length), "ffn_down": (length, width)}
    names = {str(tensor.name) for tensor in given}
    layer = [T(f"blk.0.{role}.weight", shape, F32) for role, shape in dims.items()]
    missing = [tensor for tensor in layer if tensor.name not in names]
    return kvs, [T("output_norm.weight", (width,), F32), *missing]


def shards(folder: Path, count: int = 3, prefix: str = "m", first: File | None = None) -> list[Path]:
    """A split set with one tensor per shard, all metadata in shard 1, as llama-gguf-split writes it."""
    names = [folder / f"{prefix}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    for n, name in enumerate(names):
        keys = [("split.no", "u16", n), ("split.count", "u16", count), ("split.tensors.count", "i32", count - 1)]
        if n == 0:
            base = first or model(layers=max(count - 2, 0))
            file = File(tensors=[], kvs=[*base.kvs, *keys])
        else:
            name_of = "token_embd.weight" if n == 1 else f"blk.{n - 2}.ffn_down.weight"
            file = File(tensors=[T(name_of)], kvs=keys)
        name.write_bytes(file.bytes())
    return names
