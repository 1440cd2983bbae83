"""Which tensors are the parts of one fused tensor, in which order, and which engine reads which form.

Sources: create_tensor_qkv and create_tensor_gate_up_exps in src/llama-model.cpp of llama.cpp b11434 (2026-10),
src/llama-load-tensors.cpp of ik_llama.cpp 8337e4cd (2026-08-15); which architecture reads it is in the facts of heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gguftool.errors import printable
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.kv import KV
from gguftool.model.model import Tensor
from gguftool.model.remap.head_values import HeadValues
from gguftool.model.scales import SUFFIXES
from gguftool.record import record


@record
class Fusion:
    """One fused tensor of a layer: `parts` are its rows, in this order (for experts: of each expert)."""

    kind: str
    fused: str
    parts: tuple[str, ...]
    suffixes: Mapping[str, int]  # of the names, and the axis along which the parts follow one another
    source: str

    def parts_of(self, layer: int, suffix: str, stack: str = "blk") -> tuple[str, ...]:
        """The names of the parts in `layer`."""
        return tuple(f"{stack}.{layer}.{part}{suffix}" for part in self.parts)

    def fused_of(self, layer: int, suffix: str, stack: str = "blk") -> str:
        """The name of the fused tensor in `layer`."""
        return f"{stack}.{layer}.{self.fused}{suffix}"


FUSIONS: Final[dict[str, Fusion]] = {
    "qkv": Fusion(
        kind="qkv",
        fused="attn_qkv",
        parts=("attn_q", "attn_k", "attn_v"),
        suffixes={".weight": 1, ".bias": 0},
        source="llama.cpp src/llama-model.cpp, create_tensor_qkv; src/llama-graph.cpp, build_qkv",
    ),
    "gate_up": Fusion(
        kind="gate_up",
        fused="ffn_gate_up_exps",
        parts=("ffn_gate_exps", "ffn_up_exps"),
        suffixes={".weight": 1, ".bias": 0},
        source="llama.cpp src/llama-model.cpp, create_tensor_gate_up_exps; ik_llama.cpp PR #1408",
    ),
}


def reads_fused(kind: str, architecture: str, engine: str) -> bool | None:
    """Whether `engine` reads the fused form of `kind` where it also reads the parts; None if nothing is known."""
    fusion = FUSIONS[kind]
    asked = _asked(architecture, engine)
    if asked is None:
        return None
    part, fused = f"blk.%d.{fusion.parts[0]}.weight", f"blk.%d.{fusion.fused}.weight"
    return fused in asked.get(part, ()) or (fused in asked and part in asked)


def reads_parts(kind: str, architecture: str, engine: str) -> bool | None:
    """Whether `engine` reads the parts of `kind` one by one; None if nothing is known."""
    asked = _asked(architecture, engine)
    return None if asked is None else f"blk.%d.{FUSIONS[kind].parts[0]}.weight" in asked


def _asked(architecture: str, engine: str) -> dict[str, set[str]] | None:
    """The tensors that are asked for, each with those that may stand for it."""
    facts = head_facts(engine)
    known = facts.architectures.get(architecture) if facts is not None else None
    if known is None:
        return None
    asked: dict[str, set[str]] = {}
    for tensor in known.tensors:
        asked.setdefault(tensor.name, set()).add(tensor.fused)
    return asked


def is_fusible(kind: str, layer: Sequence[str]) -> bool:
    """Whether the fused tensor of `kind` in a layer with tensors of the bases `layer` is made of the parts.

    In layers of linear attention `attn_qkv` is something else.
    """
    return kind != "qkv" or not any(base.startswith("ssm_") for base in layer)


def qkv_rows(kvs: Sequence[KV], layer: int, rows: int) -> tuple[int, int, int] | None:
    """How the `rows` of an `attn_qkv` divide into those of q, k and v; None if the metadata does not tell.

    A gate that shares the tensor of the queries doubles their rows (Qwen 3.5).
    """
    values = HeadValues(kvs)
    heads = _at(values, "attention.head_count", layer, 0)
    heads_kv = _at(values, "attention.head_count_kv", layer, heads)
    default = values.number("embedding_length", 0) // heads if heads else 0
    found = set()
    for end in ("", "_swa"):
        key = values.number(f"attention.key_length{end}", default)
        value = values.number(f"attention.value_length{end}", default)
        for queries in (heads * key, 2 * heads * key):
            split = (queries, heads_kv * key, heads_kv * value)
            if sum(split) == rows and all(split):
                found.add(split)
    return found.pop() if len(found) == 1 else None


def _at(values: HeadValues, key: str, layer: int, default: int) -> int:
    kv = values.kvs.get(f"{values.architecture}.{key}")
    if kv is None:
        return default
    value = values.value(kv)
    entry = value[layer] if isinstance(value, list) and layer < len(value) else value
    return int(entry) if isinstance(entry, int) else default


def scales_problem(kind: str, tensors: Mapping[str, Tensor], parts: Sequence[str]) -> str:
    """Why the scales of the weights `parts` do not let them be fused; empty if they do.

    llama.cpp makes no scale for `ffn_gate_up_exps`; that of `attn_qkv` is one number, so its parts need equal ones
    (src/llama-model.cpp, load_tensors).
    """
    stems = [part.removesuffix(".weight") for part in parts]
    for suffix in SUFFIXES:
        found = [tensors.get(stem + suffix) for stem in stems]
        there = [scale for scale in found if scale is not None]
        if not there:
            continue
        name = f"'{printable(there[0].name, 80)}'"
        if kind == "gate_up":
            return f"{name}: llama.cpp reads no scale of a fused ffn_gate_up_exps; leave this layer as it is"
        if len(there) < len(stems) or len({scale.raw() for scale in there}) > 1:
            return f"{name}: the parts have different scales, and attn_qkv has one; leave this layer as it is"
    return ""
