"""Write GGUF files with `struct` only.

This module shares no code with gguftool.format on purpose: files made here reveal a misread grammar there. It writes
what a test wants, valid or not: any version, byte order, offset, alignment, padding, duplicate keys, bytes as names.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}

# Tensor types that tests use: name -> (id, elements per block, bytes per block, bytes in front of each row)
TYPES = {
    "F32": (0, 1, 4, 0),
    "F16": (1, 1, 2, 0),
    "Q4_0": (2, 32, 18, 0),
    "Q4_1": (3, 32, 20, 0),
    "Q5_0": (6, 32, 22, 0),
    "Q8_0": (8, 32, 34, 0),
    "Q4_K": (12, 256, 144, 0),
    "Q6_K": (14, 256, 210, 0),
    "IQ4_NL": (20, 32, 18, 0),
    "IQ4_XS": (23, 256, 136, 0),
    "I32": (26, 1, 4, 0),
    "BF16": (30, 1, 2, 0),
    "IQ4_KS": (144, 256, 136, 4),
    "IQ2_KS": (145, 256, 70, 2),
    "Q8_KV": (151, 32, 32, 8),
    "IQ5_KS": (152, 256, 168, 4),
}


@dataclass(frozen=True)
class Array:
    """An array value: the element type and the elements, which are arrays if `element` is ARR."""

    element: int
    items: Sequence[Any]


@dataclass(frozen=True)
class KV:
    key: str | bytes
    type: int
    value: Any


@dataclass(frozen=True)
class Tensor:
    """With `offset` None it directly follows the one before; `data` is without padding."""

    name: str | bytes
    dims: tuple[int, ...]
    type: int
    data: bytes = b""
    offset: int | None = None


def size_of(type_name: str, dims: Sequence[int]) -> int:
    _, block, nbytes, row_meta = TYPES[type_name]
    rows = 1
    for dim in dims[1:]:
        rows *= dim
    return (row_meta + dims[0] // block * nbytes) * rows if dims[0] else 0


def filler(name: str | bytes, length: int) -> bytes:
    """Bytes that look random, the same for the same name."""
    return hashlib.shake_128(_bytes(name)).digest(length)


def tensor(name: str | bytes, type_name: str, dims: Sequence[int], offset: int | None = None) -> Tensor:
    """A tensor of a known type with data of the right size."""
    return Tensor(name, tuple(dims), TYPES[type_name][0], filler(name, size_of(type_name, dims)), offset)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _length(number: int, version: int, order: str) -> bytes:
    return struct.pack(order + ("I" if version == 1 else "Q"), number)


def string(text: str | bytes, version: int = 3, order: str = "<") -> bytes:
    data = _bytes(text)
    return _length(len(data), version, order) + data


def value(kind: int, item: Any, version: int = 3, order: str = "<") -> bytes:
    """Encode one value as in a file."""
    if kind == STR:
        return string(item, version, order)
    if kind == ARR:
        head = struct.pack(order + "I", item.element) + _length(len(item.items), version, order)
        return head + b"".join(value(item.element, part, version, order) for part in item.items)
    return struct.pack(order + SCALARS[kind], item)


def head(
    kvs: Sequence[KV] = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
    magic: bytes = b"GGUF",
    n_kvs: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """The head without padding; `n_kvs` and `n_tensors` are the counts to write, by default the true ones."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(kvs) if n_kvs is None else n_kvs)
    parts = [magic, struct.pack(order + "I", version), *(_length(count, version, order) for count in counts)]
    for kv in kvs:
        parts += [string(kv.key, version, order), struct.pack(order + "I", kv.type)]
        parts.append(value(kv.type, kv.value, version, order))
    for item, offset in zip(tensors, offsets(tensors, alignment), strict=True):
        dims = b"".join(_length(dim, version, order) for dim in item.dims)
        parts += [string(item.name, version, order), struct.pack(order + "I", len(item.dims)), dims]
        parts.append(struct.pack(order + "IQ", item.type, offset))
    return b"".join(parts)


def offsets(tensors: Sequence[Tensor], alignment: int) -> list[int]:
    """The offsets for the infos: as given, else dense."""
    placed, dense = [], 0
    for item in tensors:
        placed.append(dense if item.offset is None else item.offset)
        dense = round_up(placed[-1] + len(item.data), alignment)
    return placed


def round_up(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment


def gguf(
    kvs: Sequence[KV] = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    order: str = "<",
    alignment: int | None = None,
    padding: bytes = b"\0",
    pad_last: bool = True,
    **claims: Any,
) -> bytes:
    """A whole file. `alignment` is that of the `general.alignment` among `kvs`, else 32; `padding` is repeated."""
    if alignment is None:
        alignment = next((int(kv.value) for kv in kvs if kv.key == "general.alignment"), 32)
    start = head(kvs, tensors, version=version, order=order, alignment=alignment, **claims)
    data = bytearray(start.ljust(round_up(len(start), alignment), b"\0"))
    data_start, end = len(data), len(data)
    for item, offset in zip(tensors, offsets(tensors, alignment), strict=True):
        at = data_start + offset
        if len(data) < at:
            data += (padding * (at - len(data)))[: at - len(data)]
        data[at : at + len(item.data)] = item.data
        end = len(data)
    if pad_last:
        missing = round_up(end, alignment) - end
        data += (padding * missing)[:missing]
    return bytes(data)


def llama_kvs(*more: KV, layers: int = 1, vocabulary: int = 4) -> tuple[KV, ...]:
    """The metadata of a small llama, with a vocabulary of `vocabulary` tokens."""
    return (
        KV("general.architecture", STR, "llama"),
        KV("general.name", STR, "Tiny"),
        KV("llama.block_count", U32, layers),
        KV("llama.rope.freq_base", F32, 10000.0),
        *more,
        KV("tokenizer.ggml.tokens", ARR, Array(STR, [f"t{index}" for index in range(vocabulary)])),
        KV("tokenizer.ggml.scores", ARR, Array(F32, [-0.5 * index for index in range(vocabulary)])),
        KV("tokenizer.ggml.add_bos_token", BOOL, 1),
    )


def llama_tensors(layers: int = 1) -> tuple[Tensor, ...]:
    """Tensors of mixed types and sizes, some with padding; every engine and gguf-py know the types."""
    blocks = [
        part
        for layer in range(layers)
        for part in (
            tensor(f"blk.{layer}.attn_norm.weight", "F32", (9,)),
            tensor(f"blk.{layer}.attn_q.weight", "Q8_0", (32, 7)),
            tensor(f"blk.{layer}.ffn_down.weight", "Q6_K", (256, 3)),
            tensor(f"blk.{layer}.ffn_up.weight", "Q4_K", (256, 2)),
        )
    ]
    return (tensor("token_embd.weight", "F16", (32, 4)), *blocks, tensor("output_norm.weight", "F32", (32,)))


def small_model(*more: KV, layers: int = 1, **options: Any) -> bytes:
    """A small whole model of mixed types."""
    return gguf(llama_kvs(*more, layers=layers), llama_tensors(layers), **options)


def split_kvs(number: int, count: int, n_tensors: int) -> tuple[KV, ...]:
    """The keys of shard `number`, which counts from 1 (`split.no` counts from 0)."""
    return (
        KV("split.no", U16, number - 1),
        KV("split.count", U16, count),
        KV("split.tensors.count", I32, n_tensors),
    )


def shard_name(prefix: str, number: int, count: int) -> str:
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def shard_set(prefix: str, shards: Sequence[Sequence[Tensor]], **options: Any) -> dict[str, bytes]:
    """Name and bytes of each shard of a set; the metadata is in the first."""
    count, n_tensors = len(shards), sum(map(len, shards))
    return {
        shard_name(prefix, number, count): gguf(
            (*(llama_kvs() if number == 1 else ()), *split_kvs(number, count, n_tensors)), tensors, **options
        )
        for number, tensors in enumerate(shards, start=1)
    }
