"""The mixes of ik_llama.cpp's llama-quantize, at 8337e4cd.

Source: src/llama-quantize.cpp (llama_tensor_get_type, llama_model_quantize_internal).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gguftool.errors import printable
from gguftool.format.engine_facts.embeddings import OUTPUT, TOKEN_EMBD
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.engine_facts.fallback import keeps_type
from gguftool.format.engine_facts.presets.ik_models import ARCHITECTURES
from gguftool.format.engine_facts.presets.mix import (
    Choice,
    ModelFacts,
    Place,
    Role,
    before,
    choice,
    falcon,
    first_choice,
    first_counted,
    first_layers,
    layer_of,
    middle_layers,
    more_bits,
    not_falcon,
    role_of,
    shares_heads,
    with_imatrix,
    without_imatrix,
)
from gguftool.format.ftypes import FType, all_ftypes
from gguftool.format.ggml import find_type

_ALL: Final = " ".join(each.name for each in all_ftypes(IK_LLAMA_CPP))
_OWN: Final = ""  # the preset's own type, whatever follows
_ROW_1: Final = "IQ1_S_R4 IQ1_M_R4"
_BY_ONE_TABLE: Final = f"{_ROW_1} IQ2_KT"  # these three check names in an order of their own
_IQ2_S: Final = "IQ2_S IQ2_M IQ2_M_R4"
_IQ2_X: Final = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_KS IQ2_XXS_R4 IQ2_XS_R4"
_LOW: Final = f"{_IQ2_S} {_IQ2_X}"
_IQ4: Final = "IQ4_NL IQ4_XS IQ4_KS IQ4_KSS IQ4_NL_R4 IQ4_XS_R8"
_OUTPUT_Q5_K: Final = (
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ2_K IQ2_KS IQ2_KL IQ3_K IQ3_KS IQ3_XXS IQ2_K_R4 IQ3_K_R4 IQ3_XXS_R4 "
    "IQ2_M_R4 IQ1_S_R4 IQ1_M_R4 IQ1_KT IQ2_KT IQ3_KT"
)


def _tied(place: Place) -> bool:
    return place.model.tied


def _four_experts(place: Place) -> bool:
    return place.model.experts >= 4


def _eight_or_more_experts(place: Place) -> bool:
    return place.model.experts >= 8


def _experts(place: Place) -> bool:
    return place.model.experts >= 2


def _two_share(place: Place) -> bool:
    return place.model.gqa >= 2


def _is_70b(place: Place) -> bool:
    return place.model.is_70b


def _is_llama3(place: Place) -> bool:
    return place.model.is_llama3


def _no_draft(place: Place) -> bool:
    return place.model.architecture != "dflash-draft"


_EMBEDDING: Final = (
    choice("IQ2_XXS IQ2_XS IQ1_S IQ1_M IQ2_XXS_R4 IQ2_XS_R4 IQ1_S_R4 IQ1_M_R4", "Q2_K"),
    choice(f"{_IQ2_S} IQ3_XXS IQ3_KT", "IQ3_S"),
    choice("IQ3_XXS_R4", "IQ3_K"),
    choice("IQ1_BN IQ2_BN IQ2_BN_R4", "IQ4_NL"),
)
_ATTN_Q: Final = (
    choice(_ROW_1, "Q4_K_R4", _eight_or_more_experts),
    choice(f"IQ2_KT {_LOW}", "Q4_K", _eight_or_more_experts),
    choice("IQ3_XS", "IQ3_XXS"),
    choice("IQ3_XXS IQ3_XXS_R4", "IQ2_S"),
    choice("Q5_K_S", "Q4_K", _is_llama3),
    choice("IQ5_K", "IQ4_K", _is_llama3),
    choice("IQ5_KS", "IQ4_KS", _is_llama3),
)
_MIX: Final[Mapping[Role, tuple[Choice, ...]]] = {
    Role.OUTPUT: (
        choice(_ALL, "Q8_0", falcon),
        choice(_OUTPUT_Q5_K, "IQ4_K", _tied),
        choice(_OUTPUT_Q5_K, "Q5_K"),
        choice("IQ2_XXS_R4 IQ2_XS_R4", "IQ4_K_R4", _tied),
        choice("IQ2_XXS_R4 IQ2_XS_R4", "Q5_K_R4"),
        choice("IQ3_S IQ3_M IQ3_KL IQ4_XS IQ3_S_R4 IQ4_KS IQ4_KSS IQ4_KS_R4", "IQ5_K", _tied),
        choice("Q8_0 Q8_0_R8 IQ6_K Q6_K_R4 Q8_K_R8 Q8_KV Q8_KV_R8", _OWN),
        choice(_ALL, "Q6_K"),
    ),
    Role.EMBEDDING: _EMBEDDING,
    Role.ATTN_V: (
        choice(_ROW_1, "IQ4_K_R4", _four_experts),
        choice(_ROW_1, "IQ4_K_R4", shares_heads),
        choice(_ROW_1, "IQ3_K_R4", _two_share),
        choice(_ROW_1, "Q2_K_R4"),
        choice(f"IQ2_KT {_LOW}", "IQ4_K", _four_experts),
        choice(f"IQ2_KT {_LOW}", "IQ4_K", shares_heads),
        choice(f"IQ2_KT {_LOW}", "IQ3_K", _two_share),
        choice(_LOW, "IQ3_K", _experts),
        choice(_IQ2_S, "IQ3_S"),
        choice(f"IQ2_KT {_IQ2_X}", "Q2_K"),
        choice(_ALL, "Q8_0", _four_experts),
        choice("Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M", "Q5_K", _is_70b),
        choice("IQ3_K IQ3_KL", "IQ5_K", _is_70b),
        choice(_ALL, _OWN, _is_70b),
        choice("Q2_K Q2_K_S IQ3_XXS", "Q4_K", shares_heads),
        choice("Q2_K", "Q3_K"),
        choice("Q2_K_R4 IQ3_XXS_R4", "Q4_K_R4", shares_heads),
        choice("IQ3_KT", "IQ4_K", shares_heads),
        choice("IQ3_KT", "IQ3_K"),
        choice("IQ4_KT", "IQ5_K", shares_heads),
        choice("IQ4_KT", "IQ4_K"),
        choice("IQ2_K IQ3_XS IQ3_S IQ3_K", "IQ4_K", _two_share),
        choice("IQ2_K_R4 IQ3_S_R4 IQ3_K_R4", "IQ4_K_R4", _two_share),
        choice("IQ3_XXS", "IQ3_K", _two_share),
        choice("IQ3_XXS_R4", "IQ3_K_R4", _two_share),
        choice("IQ2_K", "IQ3_K"),
        choice("IQ2_K_R4", "IQ3_K_R4"),
        choice("IQ3_XXS", "IQ3_S", without_imatrix),
        choice("IQ3_XXS_R4", "IQ3_K_R4", without_imatrix),
        choice("IQ3_KS IQ2_KL", "IQ4_KS", _two_share),
        choice("IQ3_KL IQ3_M", "IQ5_K", _two_share),
        choice("IQ3_KL IQ3_M", "IQ4_K"),
        choice("Q3_K_M", "Q5_K", before(2)),
        choice("Q3_K_M", "Q4_K"),
        choice("Q3_K_L", "Q5_K"),
        choice(f"{_IQ4} IQ4_K IQ4_K_R4", "IQ5_K", _two_share),
        choice("IQ4_KS_R4", "IQ5_K_R4", _two_share),
        choice("Q4_K_M Q5_K_M", "Q6_K", more_bits),
        choice("Q4_K_S Q4_K_R4", "Q5_K", before(4)),
        choice("Q5_K_S", "Q6_K", _is_llama3),
        choice("IQ5_K IQ5_KS", "IQ6_K", _is_llama3),
        choice("Q3_K_S", "Q4_K", shares_heads),
        choice("Q3_K_R4", "Q4_K_R4", shares_heads),
        choice("Q4_K_S", "Q5_K", shares_heads),
        choice("Q4_K_M", "Q5_K", shares_heads, _no_draft),
        choice("Q5_K_M", "Q6_K", shares_heads, _no_draft),
    ),
    Role.ATTN_K: (
        choice(_ROW_1, "Q4_K_R4", _eight_or_more_experts),
        choice(f"IQ2_KT {_LOW}", "Q4_K", _eight_or_more_experts),
        choice(f"{_BY_ONE_TABLE} {_LOW}", _OWN),
        choice(_ALL, "Q8_0", _four_experts),
        choice("IQ3_XS", "IQ3_XXS"),
        choice("IQ3_XXS IQ3_XXS_R4", "IQ2_S"),
    ),
    Role.ATTN_Q: _ATTN_Q,
    Role.ATTN_QKV: (
        *_ATTN_Q,
        choice(_ROW_1, "IQ2_K_R4"),
        choice("IQ2_KT", "IQ3_K"),
        choice(_IQ2_S, "IQ3_XXS"),
        choice(_IQ2_X, "IQ2_K"),
    ),
    Role.ATTN_OUTPUT: (
        choice(_ROW_1, "Q5_K_R4", _four_experts),
        choice(_ROW_1, "IQ2_K_R4"),
        choice(f"IQ2_KT {_LOW}", "Q5_K", _four_experts),
        choice("IQ2_KT", "IQ3_K"),
        choice("IQ1_S IQ1_M", "IQ2_K"),
        choice(_IQ2_S, "IQ3_S"),
        choice("Q3_K_L", "Q4_K", falcon),
        choice(_ALL, _OWN, falcon),
        choice(
            "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS IQ4_K IQ4_KSS IQ4_KS IQ4_KS_R4 "
            "IQ5_KS IQ5_KS_R4 IQ2_K IQ3_K IQ3_KL Q4_K_R4 IQ4_NL_R4 IQ4_XS_R8 Q3_K_R4 IQ3_KT IQ3_KS Q2_K_R4 IQ4_K_R4 "
            "IQ3_K_R4 IQ2_K_R4 IQ3_XXS_R4 IQ3_S_R4",
            "Q5_K",
            _four_experts,
        ),
        choice("IQ2_KL", "IQ4_KS", _four_experts),
        choice(_ALL, _OWN, _four_experts),
        choice("Q2_K", "Q3_K"),
        choice("IQ3_XXS", "IQ3_S"),
        choice("IQ3_KT", "IQ3_K", shares_heads),
        choice("IQ3_XXS_R4 IQ2_K_R4", "IQ3_K_R4"),
        choice("Q3_K_M", "Q4_K"),
        choice("Q3_K_L", "Q5_K"),
        choice("IQ3_M", "IQ4_K"),
        choice("IQ2_K", "IQ3_K"),
        choice("IQ3_KL", "IQ4_KS"),
    ),
    Role.SHARED_EXPERT: (choice(_ROW_1, "IQ4_K_R4"), choice("IQ2_KT", "IQ4_K")),
    Role.FIRST_FFN: (choice(_ROW_1, "IQ3_K_R4"), choice("IQ2_KT", "IQ3_K")),
    Role.FFN_DOWN: (
        choice(_ROW_1, "Q2_K_R4", first_layers(8)),
        choice("IQ2_KT", "IQ3_K", first_layers(8)),
        choice(_IQ2_S, "IQ3_S", first_counted(8)),
        choice(_IQ2_X, "Q2_K", first_counted(8)),
        choice("Q2_K", "Q3_K"),
        choice("Q2_K_S", "Q4_K", first_layers(8)),
        choice("Q2_K_R4", "Q4_K_R4", first_layers(8)),
        choice("IQ3_XXS", "Q4_K", without_imatrix, first_layers(8)),
        choice("IQ3_XXS", "Q3_K", without_imatrix),
        choice("IQ3_KT", "IQ4_K", without_imatrix, first_layers(8)),
        choice("IQ3_KT", "IQ3_K", without_imatrix),
        choice("IQ3_XXS_R4", "Q4_K_R4", without_imatrix, first_layers(8)),
        choice("IQ3_XXS_R4", "IQ3_K_R4", without_imatrix),
        choice("Q3_K_M", "Q5_K", first_layers(16)),
        choice("Q3_K_M", "Q4_K", lambda place: not_falcon(place) or more_bits(place)),
        choice("IQ3_M", "IQ4_K", first_layers(8)),
        choice("IQ3_M", "IQ4_K", _four_experts, more_bits),
        choice("Q3_K_L", "Q4_K", falcon),
        choice("Q3_K_L", "Q5_K"),
        choice("IQ3_KL", "IQ4_KS", more_bits),
        choice("Q4_K_M", "Q6_K", falcon, first_layers(16)),
        choice("Q4_K_M", "Q5_K", falcon, more_bits),
        choice("Q4_K_M", "Q6_K", not_falcon, more_bits),
        choice(_IQ4, "Q5_K", without_imatrix, first_layers(8)),
        choice("IQ4_KS_R4", "Q5_K_R4", without_imatrix, first_layers(8)),
        choice("Q5_K_M", "Q6_K", more_bits),
        choice("Q4_K_S Q4_K_R4", "Q5_K", not_falcon, first_layers(8)),
        choice("Q4_0", "Q4_1", with_imatrix, first_layers(8)),
        choice("Q5_0", "Q5_1", with_imatrix, first_layers(8)),
        choice("Q4_0_R8", "IQ4_NL_R4", with_imatrix, first_layers(8)),
    ),
    Role.FFN_GATE: (choice("IQ3_XS", "IQ3_XXS", middle_layers), choice("IQ3_KL", "IQ4_KS", more_bits)),
    Role.FFN_UP: (choice("IQ3_XS", "IQ3_XXS", middle_layers), choice("IQ3_KL", "IQ4_KS", more_bits)),
}
# The first part that is in a name decides; a name with attn_q may be attn_qkv.
_PARTS: Final = (
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k", Role.ATTN_K),
    ("attn_qkv.weight", Role.ATTN_QKV),
    ("attn_q", Role.ATTN_Q),
    ("ffn_down", Role.FFN_DOWN),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_up", Role.FFN_UP),
)
_FFN: Final = frozenset({Role.FFN_DOWN, Role.FFN_GATE, Role.FFN_UP})
_FIRST_FFN: Final = tuple(f"blk.0.{part}" for part in ("ffn_down", "ffn_gate", "ffn_up"))
_COUNTED_PRESETS: Final = frozenset(_LOW.split())
_NAMED_PRESETS: Final = frozenset(_BY_ONE_TABLE.split())
_ANY_V_COUNT: Final = frozenset({"deci", "gemma4"})


def mix(
    preset: FType, shapes: Mapping[str, tuple[int, ...]], model: ModelFacts, ruled: Collection[str] = ()
) -> dict[str, str]:
    """Map tensor names to the types that `preset` asks for, before fallbacks; tensors that are kept are left out.

    `shapes` are the dims of all tensors in ggml order, in the order of the file. Tensors that are `ruled` by explicit
    rules are left out, but counted, as under llama-quantize's ``--custom-q``. Raises `ValueError` if llama-quantize
    would stop.
    """
    counts = dict.fromkeys(_FFN, model.layers)
    counts[Role.ATTN_V] = _count_of_v(shapes, model)
    seen: dict[Role, int] = {}
    types = {}
    plain = not _quantized(preset.tensor_type)
    for name, dims in shapes.items():
        if keeps_type(name, dims, engine=IK_LLAMA_CPP):
            continue
        if plain:
            types[name] = preset.tensor_type
            continue
        role = _role(name, preset.name, model)
        place = _place(name, role, model, seen.get(role, 0), counts.get(role, 0), preset.name)
        seen[role] = seen.get(role, 0) + 1
        types[name] = _chosen(preset, role, place, dims[0])
    return {name: chosen for name, chosen in types.items() if name not in ruled}


def _count_of_v(shapes: Mapping[str, tuple[int, ...]], model: ModelFacts) -> int:
    """The number of tensors that hold V; llama-quantize aborts if it does not expect that number."""
    if model.architecture not in ARCHITECTURES:
        name = printable(model.architecture, 80)
        raise ValueError(f"{IK_LLAMA_CPP} does not know the architecture '{name}'; --tensor PATTERN=TYPE works")
    count = sum("attn_v.weight" in name or "attn_qkv.weight" in name for name in shapes)
    if count not in {0, model.layers, 3 * model.layers} and model.architecture not in _ANY_V_COUNT:
        raise ValueError(
            f"{count:,} tensors are attn_v or attn_qkv, but {IK_LLAMA_CPP} stops unless there is one for each of the "
            f"{model.layers:,} layers; --tensor PATTERN=TYPE works"
        )
    return count


def _role(name: str, preset: str, model: ModelFacts) -> Role:
    if name == OUTPUT or (model.tied and name == TOKEN_EMBD):
        return Role.OUTPUT
    if role_of(name) is Role.EMBEDDING:
        return Role.EMBEDDING
    if preset in _NAMED_PRESETS:
        if model.experts >= 8 and any(part in name for part in _FIRST_FFN):
            return Role.FIRST_FFN
        if "_shexp.weight" in name:
            return Role.SHARED_EXPERT
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def _place(name: str, role: Role, model: ModelFacts, before: int, count: int, preset: str) -> Place:
    """The place of a tensor; with experts, its layer is the one in its name, not the number of tensors before."""
    layer = before
    looks = role is Role.FFN_DOWN if preset in _NAMED_PRESETS else role in _FFN and preset not in _COUNTED_PRESETS
    if looks and model.experts > 1:
        found = layer_of(name)
        if found is None or found >= count:
            raise ValueError(f"no layer below {count} in the name, which llama-quantize needs in a model with experts")
        layer = found
    return Place(model=model, before=before, count=count, layer=layer)


def _quantized(type_name: str) -> bool:
    traits = find_type(type_name)
    return traits is not None and traits.is_quantized


def _chosen(preset: FType, role: Role, place: Place, ne0: int) -> str:
    if role is Role.OUTPUT and ne0 % 256:
        return "Q8_0"
    return first_choice(_MIX.get(role, ()), preset.name, place) or preset.tensor_type
