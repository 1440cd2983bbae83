"""The mixes of llama.cpp's llama-quantize, at b11434.

Source: src/llama-quant.cpp (llama_tensor_get_type_impl, tensor_allows_quantization, tensor_requires_imatrix),
src/models/*.cpp (which models count as 70B).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.engine_facts.presets.mix import (
    Choice,
    ModelFacts,
    Place,
    Role,
    before,
    choice,
    eight_experts,
    falcon,
    first_choice,
    first_counted,
    first_layers,
    in_engine_order,
    layer_of,
    middle_layers,
    more_bits,
    not_falcon,
    role_of,
    shares_heads,
    shares_heads_or_experts,
    with_imatrix,
    without_imatrix,
)
from gguftool.format.ftypes import FType
from gguftool.format.ggml import find_type

_LOW: Final = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_MXFP4: Final = "MXFP4_MOE"
_GLM5: Final = "glm5-next"

_MIX: Final[Mapping[Role, tuple[Choice, ...]]] = {
    Role.EMBEDDING: (
        choice("IQ1_S IQ1_M IQ2_XXS IQ2_XS", "Q2_K"),
        choice("IQ2_S IQ2_M IQ3_XXS", "IQ3_S"),
        choice("TQ1_0 TQ2_0 Q2_0", "Q4_K"),
    ),
    Role.ATTN_V: (
        choice(_LOW, "Q4_K", shares_heads_or_experts),
        choice("IQ2_S IQ2_M", "IQ3_S"),
        choice(_LOW, "Q2_K"),
        choice("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", "Q4_K", shares_heads),
        choice("Q2_K", "Q3_K"),
        choice("IQ3_XXS", "IQ3_S", without_imatrix),
        choice("IQ3_M", "Q4_K"),
        choice("Q3_K_M", "Q5_K", before(2)),
        choice("Q3_K_M", "Q4_K"),
        choice("Q3_K_L", "Q5_K"),
        choice("IQ4_NL IQ4_XS", "Q5_K", shares_heads),
        choice("Q4_K_M Q5_K_M", "Q6_K", more_bits),
        choice("Q4_K_S", "Q5_K", before(4)),
    ),
    Role.ATTN_K: (
        choice(_LOW, "Q4_K", eight_experts),
        choice("IQ3_XS", "IQ3_XXS"),
        choice("IQ3_XXS", "IQ2_S"),
    ),
    Role.ATTN_Q: (choice("IQ3_XS", "IQ3_XXS"), choice("IQ3_XXS", "IQ2_S")),
    Role.ATTN_OUTPUT: (
        choice(_LOW, "Q5_K", eight_experts),
        choice("IQ1_S IQ1_M", "IQ2_XXS"),
        choice("IQ2_S IQ2_M", "IQ3_S"),
        choice("Q3_K_L", "Q4_K", falcon),
        choice(
            "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS",
            "Q5_K",
            not_falcon,
            eight_experts,
        ),
        choice("Q2_K", "Q3_K", not_falcon),
        choice("IQ3_XXS", "IQ3_S", not_falcon),
        choice("Q3_K_M IQ3_M", "Q4_K", not_falcon),
        choice("Q3_K_L", "Q5_K", not_falcon, lambda place: not eight_experts(place)),
    ),
    Role.FFN_DOWN: (
        choice("IQ2_S IQ2_M", "IQ3_S", first_counted(8)),
        choice("IQ1_S IQ1_M IQ2_XXS IQ2_XS", "Q2_K", first_counted(8)),
        choice("Q2_K", "Q3_K"),
        choice("Q2_K_S", "Q4_K", first_layers(8)),
        choice("IQ3_XXS", "Q4_K", without_imatrix, first_layers(8)),
        choice("IQ3_XXS", "Q3_K", without_imatrix),
        choice("Q3_K_M", "Q5_K", first_layers(16)),
        choice("Q3_K_M", "Q4_K", lambda place: not_falcon(place) or more_bits(place)),
        choice("IQ3_M", "Q4_K", first_layers(8)),
        choice("IQ3_M", "Q4_K", eight_experts, more_bits),
        choice("Q3_K_L", "Q4_K", falcon),
        choice("Q3_K_L", "Q5_K"),
        choice("Q4_K_M", "Q6_K", falcon, first_layers(16)),
        choice("Q4_K_M", "Q5_K", falcon, more_bits),
        choice("Q4_K_M", "Q6_K", not_falcon, more_bits),
        choice("IQ4_NL IQ4_XS", "Q5_K", without_imatrix, first_layers(8)),
        choice("Q5_K_M", "Q6_K", more_bits),
        choice("Q4_K_S", "Q5_K", not_falcon, first_layers(8)),
        choice("Q4_0", "Q4_1", with_imatrix, first_layers(8)),
        choice("Q5_0", "Q5_1", with_imatrix, first_layers(8)),
    ),
    Role.FFN_GATE: (choice("IQ3_XS", "IQ3_XXS", middle_layers),),
    Role.FFN_UP: (choice("IQ3_XS", "IQ3_XXS", middle_layers),),
}
_FFN: Final = frozenset({Role.FFN_DOWN, Role.FFN_GATE, Role.FFN_UP})
_LOW_PRESETS: Final = frozenset(_LOW.split())
_LOW_OUTPUT: Final = (_LOW_PRESETS | {"IQ3_XXS"}, "Q5_K")
_BUMPED_70B: Final = frozenset({"Q3_K", "Q4_K"})
# Tensors that llama-quantize keeps as they are in only one architecture, by parts of names.
_KEPT: Final[Mapping[str, tuple[str, ...]]] = {
    _GLM5: (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
        *("indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight"),
        *("ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}
_EIGHT_BITS: Final[Mapping[str, tuple[str, ...]]] = {_GLM5: ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
# The layers of a model of 70B, by architecture; a llama must also share heads.
_LAYERS_70B: Final = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


def is_70b(architecture: str, layers: int, *, one_to_one: bool, experts: int) -> bool:
    """Whether llama.cpp treats a model as one of 70B; `one_to_one`: it has as many heads of K and V as of Q."""
    if _LAYERS_70B.get(architecture) != layers:
        return False
    return architecture != "llama" or not (one_to_one or experts == 8)


def needs_imatrix(preset: str, type_name: str) -> bool:
    """Whether `type_name` needs an imatrix only under `preset`."""
    return preset == "Q2_K_S" and type_name == "Q2_K"


def mix(
    preset: FType, shapes: Mapping[str, tuple[int, ...]], model: ModelFacts, ruled: Collection[str] = ()
) -> dict[str, str]:
    """Map tensor names to the types that `preset` asks for, before fallbacks; tensors that are kept are left out.

    `shapes` are the dims of all tensors in ggml order. Tensors that are `ruled` by explicit rules are left out, and
    not counted, as under llama-quantize's ``--tensor-type``. Raises `ValueError` if llama-quantize would stop.
    """
    names = in_engine_order(shapes)
    counts = dict.fromkeys(_FFN, model.layers)
    counts[Role.ATTN_V] = sum(role_of(name) is Role.ATTN_V for name in names)
    tied = not any(role_of(name) is Role.OUTPUT for name in names)
    seen: dict[Role, int] = {}
    types = {}
    for name in names:
        if name in ruled or _kept(name, shapes[name], model.architecture):
            continue
        role = role_of(name)
        is_output = role is Role.OUTPUT or (tied and role is Role.EMBEDDING)
        if not _quantized(preset.tensor_type):
            types[name] = preset.tensor_type
        elif any(part in name for part in _EIGHT_BITS.get(model.architecture, ())):
            types[name] = "Q8_0"
        elif preset.name == _MXFP4:
            experts = not is_output and _holds_experts(role, shapes[name], model.architecture)
            types[name] = "MXFP4" if experts else "Q8_0"
        elif is_output:
            types[name] = _output_type(preset, shapes[name][0], model.architecture)
        else:
            place = _place(name, role, model, seen.get(role, 0), counts.get(role, 0), preset.name)
            types[name] = _chosen(preset, role, place)
            seen[role] = seen.get(role, 0) + 1
    return types


def _kept(name: str, dims: tuple[int, ...], architecture: str) -> bool:
    return keeps_type(name, dims, engine=LLAMA_CPP) or any(part in name for part in _KEPT.get(architecture, ()))


def _quantized(type_name: str) -> bool:
    traits = find_type(type_name)
    return traits is not None and traits.is_quantized


def _holds_experts(role: Role, dims: tuple[int, ...], architecture: str) -> bool:
    """Whether a tensor has a matrix for each expert; with MLA other tensors are 3-D too; one architecture has that."""
    return len(dims) > 2 and dims[2] > 1 and (architecture != "bailingmoe3" or role in _FFN)


def _output_type(preset: FType, ne0: int, architecture: str) -> str:
    own = find_type(preset.tensor_type)
    if architecture == "falcon" or own is None or ne0 % own.block_size:
        return "Q8_0"
    if preset.name in _LOW_OUTPUT[0]:
        return _LOW_OUTPUT[1]
    return "Q8_0" if own.name == "Q8_0" else "Q6_K"


def _place(name: str, role: Role, model: ModelFacts, before: int, count: int, preset: str) -> Place:
    """The place of a tensor; with experts, its layer is the one in its name, not the number of tensors before."""
    layer = before
    if role in _FFN and model.experts > 1 and preset not in _LOW_PRESETS:
        found = layer_of(name)
        if found is None or found >= count:
            raise ValueError(f"no layer below {count} in the name, which llama-quantize needs in a model with experts")
        layer = found
    return Place(model=model, before=before, count=count, layer=layer)


def _chosen(preset: FType, role: Role, place: Place) -> str:
    found = first_choice(_MIX.get(role, ()), preset.name, place) or preset.tensor_type
    if preset.name in _LOW_PRESETS or role not in (Role.ATTN_V, Role.ATTN_K):
        return found
    if eight_experts(place):
        return "Q8_0"
    return "Q5_K" if role is Role.ATTN_V and place.model.is_70b and found in _BUMPED_70B else found
