"""A small, deterministic mixture-of-experts model as a GGUF file, written with struct alone.

Types and dims are chosen to exercise a report: a dense first layer, experts in two types, one layer
that differs, row-metadata types (with sizes written out here, not taken from the code under test), an MTP layer.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import GOLDEN

# name -> (type id, elements of a block, bytes of a block, bytes of a row besides)
TYPES = {
    "F32": (0, 1, 4, 0),
    "Q8_0": (8, 32, 34, 0),
    "Q4_K": (12, 256, 144, 0),
    "Q6_K": (14, 256, 210, 0),
    "Q5_K": (13, 256, 176, 0),
    "IQ3_K": (138, 256, 110, 0),
    "IQ5_K": (140, 256, 176, 0),
    "IQ4_KS": (144, 256, 136, 4),
    "IQ2_KS": (145, 256, 70, 2),
}
EMBD, VOCAB, FF, EXPERTS = 256, 320, 512, 4
LAYERS = 12


@dataclass(frozen=True)
class Spec:
    """One tensor: dims in ggml order, and the name of its type."""

    name: str
    dims: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        _, block, size, row = TYPES[self.type]
        rows = 1
        for dim in self.dims[1:]:
            rows *= dim
        return rows * (row + self.dims[0] // block * size)


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def kv_text(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def kv_u32(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def gguf(kvs: list[bytes], tensors: list[Spec]) -> bytes:
    """The whole file: version 3, alignment 32, all data zero."""
    head, length = gguf_head(kvs, tensors)
    return head + bytes(length)


def gguf_head(kvs: list[bytes], tensors: list[Spec]) -> tuple[bytes, int]:
    """The head of that file, and the length of its data."""
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(kvs)), *kvs]
    offset = 0
    for tensor in tensors:
        parts += [text(tensor.name), struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)]
        parts.append(struct.pack("<IQ", TYPES[tensor.type][0], offset))
        offset += -(-tensor.nbytes // 32) * 32
    head = b"".join(parts)
    return head + bytes(-len(head) % 32), offset


def layer(number: int, down: str = "IQ4_KS") -> list[Spec]:
    blk = f"blk.{number}."
    attention = [
        Spec(f"{blk}attn_norm.weight", (EMBD,), "F32"),
        Spec(f"{blk}attn_q.weight", (EMBD, EMBD), "Q6_K"),
        Spec(f"{blk}attn_k.weight", (EMBD, EMBD // 2), "Q8_0"),
        Spec(f"{blk}attn_output.weight", (EMBD, EMBD), "Q6_K"),
        Spec(f"{blk}ffn_norm.weight", (EMBD,), "F32"),
    ]
    if number == 0:
        return [
            *attention,
            Spec(f"{blk}ffn_up.weight", (EMBD, FF), "Q6_K"),
            Spec(f"{blk}ffn_down.weight", (FF, EMBD), "Q6_K"),
        ]
    return [
        *attention,
        Spec(f"{blk}ffn_gate_inp.weight", (EMBD, EXPERTS), "F32"),
        Spec(f"{blk}ffn_up_exps.weight", (EMBD, FF, EXPERTS), "IQ3_K"),
        Spec(f"{blk}ffn_down_exps.weight", (FF, EMBD, EXPERTS), down),
        Spec(f"{blk}ffn_up_shexp.weight", (EMBD, FF), "Q6_K"),
    ]


def moe_tensors(layers: int = LAYERS) -> list[Spec]:
    """An IQ3_K mix of twelve layers, the last one for multi-token prediction."""
    tensors = [Spec("token_embd.weight", (EMBD, VOCAB), "Q4_K")]
    for number in range(layers):
        tensors += layer(number, down="IQ2_KS" if number == 5 else "IQ4_KS")
    tensors.append(Spec(f"blk.{layers - 1}.nextn.eh_proj.weight", (2 * EMBD, EMBD), "Q8_0"))
    return [*tensors, Spec("output_norm.weight", (EMBD,), "F32"), Spec("output.weight", (EMBD, VOCAB), "Q6_K")]


def moe_kvs(file_type: int = 139, name: str = "Tiny <MoE> & Sons") -> list[bytes]:
    return [
        kv_text("general.architecture", "deepseek2"),
        kv_text("general.name", name),
        kv_u32("general.file_type", file_type),
    ]


def write_moe(path: Path, *, file_type: int = 139, layers: int = LAYERS, extra: tuple[Spec, ...] = ()) -> Path:
    path.write_bytes(gguf(moe_kvs(file_type), [*moe_tensors(layers), *extra]))
    return path


def golden(name: str, found: str) -> None:
    """Compare with the file of that name in tests/golden; GGUFTOOL_UPDATE_GOLDEN=1 rewrites it."""
    path = GOLDEN / name
    if os.environ.get("GGUFTOOL_UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"differs from {path.name}; GGUFTOOL_UPDATE_GOLDEN=1 rewrites it"


def write_set(folder: Path, count: int) -> Path:
    """Write a set of `count` shards as gguf-split does: metadata in the first, one tensor in each of the others."""
    names = [Spec(f"blk.{number}.ffn_up_exps.weight", (256, 2), "IQ3_K") for number in range(count - 1)]
    for number in range(count):
        kvs = [
            text("split.no") + struct.pack("<IH", 2, number),
            text("split.count") + struct.pack("<IH", 2, count),
            text("split.tensors.count") + struct.pack("<Ii", 5, count - 1),
        ]
        data = gguf([*moe_kvs(), *kvs] if number == 0 else kvs, names[number - 1 : number] if number else [])
        (folder / f"big-{number + 1:05d}-of-{count:05d}.gguf").write_bytes(data)
    return folder / f"big-00001-of-{count:05d}.gguf"
