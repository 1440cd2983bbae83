"""Token embeddings and the output: the tensors that engines treat by their names.

Sources: llama.cpp src/llama-quant.cpp, ik_llama.cpp src/llama-quantize.cpp.
"""

from __future__ import annotations

from typing import Final

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP

OUTPUT: Final = "output.weight"
TOKEN_EMBD: Final = "token_embd.weight"
EMBEDDINGS: Final = frozenset({TOKEN_EMBD, "per_layer_token_embd.weight"})  # rows are looked up by token
EMBEDDINGS_AND_OUTPUT: Final = EMBEDDINGS | {OUTPUT}

# Tensors that llama-quantize makes without an imatrix even in types that need one.
_WITHOUT_IMATRIX = {
    LLAMA_CPP: EMBEDDINGS_AND_OUTPUT,
    IK_LLAMA_CPP: frozenset({OUTPUT, TOKEN_EMBD}),
}


def may_lack_imatrix(name: str, engine: str) -> bool:
    """Whether the llama-quantize of `engine` makes tensor `name` without an imatrix in a type that needs one."""
    return name in _WITHOUT_IMATRIX.get(engine, ())
