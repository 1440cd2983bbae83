"""Which type llama-quantize really writes: which tensors it keeps, and its fallbacks for rows of odd lengths.

The two engines differ: for Q5_K in a row of 576 elements llama.cpp takes Q5_1 and ik_llama.cpp Q6_0, which llama.cpp
cannot load.  Sources: llama.cpp src/llama-quant.cpp (tensor_type_fallback, tensor_allows_quantization);
ik_llama.cpp src/llama-quantize.cpp (change_type_if_necessary, interleaved_properties, the `quantize` conditions).
"""

from __future__ import annotations

from gguftool.format.engine_facts.engines import ENGINES, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.types import THROWS, UNCHECKED, type_facts_of, written_type
from gguftool.format.ggml import find_type

# Tensors that llama-quantize keeps as they are, by parts of their names; also all names that do not end in "weight".
_KEPT_BY_BOTH = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight", "attn_rel_b.weight")
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT: dict[str, tuple[str, ...]] = {
    LLAMA_CPP: (
        *_KEPT_BY_BOTH,
        *("ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight"),
        *("indexer.k_proj.weight", "indexer.q_proj.weight"),
        *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
        *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
        *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
        *("a.rvq.codebook", "mm.a.code_embd"),
    ),
    IK_LLAMA_CPP: (*_KEPT_BY_BOTH, "ssm_x.weight", "ssm_dt.weight"),
}


def fallback_type(type_name: str, ne0: int, engine: str) -> str | None:
    """The type that the llama-quantize of `engine` writes for rows of `ne0` elements: `type_name` if it fits.

    None if it writes nothing valid: the engine lacks the type, stops, or does not check; see `explain_fallback`.
    If the fallback does not fit either, llama.cpp takes F16; ik_llama.cpp does not check a second time.
    """
    traits = find_type(type_name)
    if traits is None or engine not in traits.engines or type_facts_of(traits.name) is None:
        return None
    written = written_type(traits.name, ne0, engine)
    return None if written in {THROWS, UNCHECKED} else written


def explain_fallback(type_name: str, ne0: int, engine: str) -> str:
    """Describe what `engine` does with rows of `ne0` elements that are not whole blocks of `type_name`."""
    traits = find_type(type_name)
    if traits is None or engine not in traits.engines:
        return f"{engine} has no such type"
    fallback = fallback_type(type_name, ne0, engine)
    if fallback is not None:
        return f"{engine} falls back to {fallback}"
    if type_facts_of(traits.name) and written_type(traits.name, ne0, engine) == THROWS:
        return f"{engine} stops"
    return f"{engine} does not check it (an assertion, or garbage)"


def rows_fallback(type_name: str) -> str | None:
    """The type that ik_llama.cpp's llama-quantize takes if the rows of an expert do not divide by the interleave.

    None for types that pack no rows together, and for run-time types.  token_embd gets it too, because its rows are
    looked up one by one.
    """
    rules = type_facts_of(type_name)
    return rules.row_fallback if rules else None


def keeps_type(name: str, dims: tuple[int, ...], type_name: str = "", engine: str | None = None) -> bool:
    """Whether llama-quantize leaves a tensor as it is: 1-D tensors, norms, routers, convolutions, integers.

    Without `engine`: whether all do. `dims` may have trailing 1s.
    """
    traits = find_type(type_name)
    if traits is not None and traits.kind == "integer":
        return True
    if name in _KEPT_NAMES or not name.endswith("weight"):
        return True
    if not any(dim != 1 for dim in dims[1:]):
        return True
    engines = ENGINES if engine is None else (engine,)
    return all(any(part in name for part in _KEPT.get(each, _KEPT_BY_BOTH)) for each in engines)
