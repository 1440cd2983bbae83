"""Which other imatrix entry an engine's llama-quantize uses for a tensor without its own.

ik_llama.cpp records fused experts under one name, and tensors that are multiplied by the same numbers share weights;
llama.cpp uses none.  Source: ik_llama.cpp src/llama-quantize.cpp (llama_model_quantize_internal).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP

# By the first part that is in the name: the parts to try in its place, in this order; the rest of the name is cut off.
_STAND_INS: Final[Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    IK_LLAMA_CPP: (
        ("ffn_up_exps.weight", ("ffn_gate_up_exps.weight",)),
        ("ffn_gate_exps.weight", ("ffn_gate_up_exps.weight", "ffn_up_exps.weight")),
        ("ffn_gate_up_exps.weight", ("ffn_up_exps.weight",)),
        ("ffn_gate.weight", ("ffn_up.weight",)),
        (".attn_v_b.weight", (".attn_kv_b.weight",)),
        (".attn_kv_b.weight", (".attn_v_b.weight",)),
    )
}


def stand_in(name: str, entries: Container[str], engine: str) -> str | None:
    """The entry among `entries` that `engine` uses for tensor `name`, which has no entry of its own, or None."""
    for part, others in _STAND_INS.get(engine, ()):
        start, found, _ = name.partition(part)
        if found:
            return next((start + other for other in others if start + other in entries), None)
    return None
