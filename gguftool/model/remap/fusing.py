"""Which tensors make up one fused tensor, in which order, and which engine reads which form.

Sources: create_tensor_qkv and create_tensor_gate_up_exps in src/llama-model.cpp of llama.cpp b11434 (2026-10),
src/llama-load-tensors.cpp of ik_llama.cpp 8337e4cd (2026-08-15); which architecture reads it is in the facts of heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.engine_facts.heads import TensorFact, head_facts
from gguftool.format.kv import KV
from gguftool.model.model import Tensor
from gguftool.model.remap.head_values import HeadValues
from gguftool.model.scales import SUFFIXES
from gguftool.record import record


@record
class Fusion:
    """One fused tensor of a layer; `parts` are its rows, in this order (for experts: the rows of each expert)."""

    kind: str
    fused: str
    parts: tuple[str, ...]
    suffixes: Mapping[str, int]  # suffix of the names -> axis along which the parts are joined
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


# The stacks of experts, and the base of a tensor of one expert: `blk.0.ffn_up.3.weight` is row 3 of `ffn_up_exps`.
STACKS: Final = {"ffn_gate_exps": "ffn_gate", "ffn_up_exps": "ffn_up", "ffn_down_exps": "ffn_down"}

# Read in ways that the facts of heads do not show. Source: ik_llama.cpp src/llama-load-tensors.cpp:4262.
_READ_ELSEWHERE: Final = frozenset({("gate_up", "gpt-oss", IK_LLAMA_CPP)})


def reads_fused(kind: str, architecture: str, engine: str) -> bool | None:
    """Whether `engine` reads the fused tensor of `kind`; None if its architecture is not known there.

    `kind` is a key of `FUSIONS`, or "experts" for one stack of all experts.
    """
    asked = _asked(architecture, engine)
    if asked is None:
        return None
    part, fused = _names(kind)
    if kind == "experts" or fused not in asked or part not in asked:
        return fused in asked or (kind, architecture, engine) in _READ_ELSEWHERE
    return any(one.fused == fused or _is_alternative(asked[fused], one) for one in asked[part])


def reads_parts(kind: str, architecture: str, engine: str) -> bool | None:
    """Whether `engine` reads the parts of `kind` one by one; None if the architecture is not known there."""
    asked = _asked(architecture, engine)
    return None if asked is None else _names(kind)[0] in asked


def _names(kind: str) -> tuple[str, str]:
    """A part and the fused tensor of `kind`, as the facts name them."""
    if kind == "experts":
        return "blk.%d.ffn_up.%d.weight", "blk.%d.ffn_up_exps.weight"
    fusion = FUSIONS[kind]
    return f"blk.%d.{fusion.parts[0]}.weight", f"blk.%d.{fusion.fused}.weight"


def _is_alternative(fused: Sequence[TensorFact], part: TensorFact) -> bool:
    """Whether the engine asks for the part in the same layers as the fused tensor; hybrids have one form per kind."""
    return any(frozenset(one.conditions) <= frozenset(part.conditions) for one in fused)


def _asked(architecture: str, engine: str) -> dict[str, list[TensorFact]] | None:
    """The tensors that the engine asks for, by name."""
    facts = head_facts(engine)
    known = facts.architectures.get(architecture) if facts is not None else None
    if known is None:
        return None
    asked: dict[str, list[TensorFact]] = {}
    for tensor in known.tensors:
        asked.setdefault(tensor.name, []).append(tensor)
    return asked


def is_fusible(kind: str, layer: Sequence[str]) -> bool:
    """Whether the fused tensor of `kind` in a layer with tensors of the bases `layer` is made from the parts.

    In layers of linear attention `attn_qkv` is something else.
    """
    return kind != "qkv" or not any(base.startswith("ssm_") for base in layer)


def qkv_rows(kvs: Sequence[KV], layer: int, rows: int) -> tuple[int, int, int] | None:
    """How the `rows` of an `attn_qkv` divide into those of q, k and v; None if the metadata does not say.

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
    """Why the scales of the weights `parts` prevent fusing; empty if they do not.

    llama.cpp reads no scale for `ffn_gate_up_exps`; that of `attn_qkv` is one number, so its parts need equal scales
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
            return f"{name}: llama.cpp reads no scale for a fused ffn_gate_up_exps; leave this layer as it is"
        if len(there) < len(stems) or len({scale.raw() for scale in there}) > 1:
            return f"{name}: the parts have different scales, but attn_qkv has one; leave this layer as it is"
    return ""
