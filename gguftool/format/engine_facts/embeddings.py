"""Types that llama-quantize gives token embeddings and the output in a file in which all else has one type.

They matter more than others, so they get no low types.  A rule that names these tensors overrides this, and ``--pure``
turns it off, as in both engines.  In a model without `output.weight` the token embeddings are the output too, and get
its type.

The engines decide by file type; here a type stands for the file type that mostly consists of it (IQ2_XS for IQ2_XS).
Sources: llama.cpp src/llama-quant.cpp (llama_tensor_get_type_impl), ik_llama.cpp src/llama-quantize.cpp
(llama_tensor_get_type).
"""

from __future__ import annotations

from typing import Final

from gguftool.format.engine_facts.engines import ENGINES, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.ggml import TypeTraits, find_type
from gguftool.record import record

OUTPUT: Final = "output.weight"
TOKEN_EMBD: Final = "token_embd.weight"
EMBEDDINGS: Final = frozenset({TOKEN_EMBD, "per_layer_token_embd.weight"})  # rows are looked up by token
EMBEDDINGS_AND_OUTPUT: Final = EMBEDDINGS | {OUTPUT}


@record
class _Choice:
    """In a file of one of `types` the tensor gets `then`; `only_tied`: only if the embeddings are the output too."""

    types: frozenset[str]
    then: str
    tied: str = ""  # another type, if the embeddings are the output too
    only_tied: bool = False


def _choice(types: str, then: str, tied: str = "", *, only_tied: bool = False) -> _Choice:
    return _Choice(types=frozenset(types.split()), then=then, tied=tied, only_tied=only_tied)


_LOW = "IQ1_S IQ1_M IQ2_XXS IQ2_XS"
_LOW_R4 = "IQ1_S_R4 IQ1_M_R4 IQ2_XXS_R4 IQ2_XS_R4"
_LOW_IK = (
    f"{_LOW} IQ2_S IQ3_XXS IQ2_K IQ3_K IQ2_KS IQ3_KS IQ2_KL IQ1_KT IQ2_KT IQ3_KT "
    "IQ2_K_R4 IQ3_K_R4 IQ3_XXS_R4 IQ2_S_R4 IQ1_S_R4 IQ1_M_R4"
)
# For the output: the first entry that fits, else Q6_K; the types in _KEPT_OUTPUT stay as they are.
_OUTPUT_CHOICES = {
    LLAMA_CPP: (_choice("MXFP4", "Q8_0"), _choice(f"{_LOW} IQ2_S IQ3_XXS", "Q5_K")),
    IK_LLAMA_CPP: (
        _choice(_LOW_IK, "Q5_K", tied="IQ4_K"),
        _choice("IQ2_XXS_R4 IQ2_XS_R4", "Q5_K_R4", tied="IQ4_K_R4"),
        _choice("IQ3_S IQ4_XS IQ3_S_R4 IQ4_KS IQ4_KSS IQ4_KS_R4", "IQ5_K", only_tied=True),
    ),
}
_KEPT_OUTPUT = {
    LLAMA_CPP: frozenset({"Q8_0"}),
    IK_LLAMA_CPP: frozenset({"Q8_0", "Q8_0_R8", "IQ6_K", "Q6_K_R4", "Q8_K_R8", "Q8_KV", "Q8_KV_R8"}),
}
_EMBEDDING_CHOICES = {
    LLAMA_CPP: (
        _choice("MXFP4", "Q8_0"),
        _choice(_LOW, "Q2_K"),
        _choice("IQ2_S IQ3_XXS", "IQ3_S"),
        _choice("TQ1_0 TQ2_0 Q2_0", "Q4_K"),
    ),
    IK_LLAMA_CPP: (
        _choice(f"{_LOW} {_LOW_R4}", "Q2_K"),
        _choice("IQ2_S IQ2_S_R4 IQ3_XXS IQ3_KT", "IQ3_S"),
        _choice("IQ3_XXS_R4", "IQ3_K"),
        _choice("IQ1_BN IQ2_BN IQ2_BN_R4", "IQ4_NL"),
    ),
}
# Tensors that llama-quantize makes without an imatrix even in types that want one.
_WITHOUT_IMATRIX = {
    LLAMA_CPP: EMBEDDINGS_AND_OUTPUT,
    IK_LLAMA_CPP: frozenset({OUTPUT, TOKEN_EMBD}),
}


def may_lack_imatrix(name: str, engine: str) -> bool:
    """Whether the llama-quantize of `engine` makes tensor `name` without an imatrix in a type that wants one."""
    return name in _WITHOUT_IMATRIX.get(engine, ())


def default_type(name: str, traits: TypeTraits, ne0: int, engine: str, *, tied: bool) -> TypeTraits:
    """Return the type that tensor `name` with rows of `ne0` gets in a file of `traits`; `traits` for all others.

    `tied`: the model has no `output.weight`.
    """
    if not traits.is_quantized:
        return traits
    if name == OUTPUT or (tied and name == TOKEN_EMBD):
        found = _output_type(traits, ne0, engine, tied=tied)
    elif name in EMBEDDINGS:
        found = next(
            (rule.then for rule in _EMBEDDING_CHOICES.get(engine, ()) if traits.name in rule.types), traits.name
        )
    else:
        found = traits.name
    return find_type(found) or traits


def _output_type(traits: TypeTraits, ne0: int, engine: str, *, tied: bool) -> str:
    if ne0 % (ENGINES[engine].output_multiple or traits.block_size):
        return "Q8_0"
    for rule in _OUTPUT_CHOICES.get(engine, ()):
        if traits.name in rule.types and (tied or not rule.only_tied):
            return rule.tied if tied and rule.tied else rule.then
    return traits.name if traits.name in _KEPT_OUTPUT.get(engine, ()) else "Q6_K"
