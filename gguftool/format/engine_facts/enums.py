"""Names of numbers in metadata: file types, pooling, the function that weighs experts.

Source: llama.cpp b11434 (2026-10), include/llama.h (llama_pooling_type), src/llama-hparams.h
(llama_expert_gating_func_type).
"""

from __future__ import annotations

from typing import Final

from gguftool.format.ftypes import FILE_TYPE_KEY, ftype_name, ftypes_of

_BY_END: Final = {
    "pooling_type": {-1: "unspecified", 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"},
    "expert_gating_func": {0: "none", 1: "softmax", 2: "sigmoid", 3: "softmax of the weights", 4: "sqrt softplus"},
}


def enum_name(key: str, number: int) -> str:
    """The name of `number` under `key`; empty if the key holds no enumeration, or the number is unknown."""
    if key == FILE_TYPE_KEY:
        return ftype_name(number) if ftypes_of(number) else ""
    return _BY_END.get(key.rpartition(".")[2], {}).get(number, "")
