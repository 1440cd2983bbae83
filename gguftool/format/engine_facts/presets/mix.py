"""The inputs of a mix: the preset, a tensor's role, its place among the tensors of that role, a few model numbers.

A mix is a table of `Choice` for each `Role`; the first choice that fits decides, else the tensor gets the preset's own
type.  Conditions are small functions of a `Place`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum

from gguftool.format.engine_facts.embeddings import EMBEDDINGS, OUTPUT
from gguftool.record import record

_LAYER = re.compile(r"blk\.([0-9]{1,9})")


class Role(Enum):
    """The function of a tensor, as far as llama-quantize distinguishes tensors."""

    OUTPUT = "output"
    EMBEDDING = "embedding"
    ATTN_V = "attn_v"  # including tensors that hold V and others
    ATTN_K = "attn_k"
    ATTN_Q = "attn_q"
    ATTN_QKV = "attn_qkv"  # if an engine distinguishes it from ATTN_V
    ATTN_OUTPUT = "attn_output"
    FFN_UP = "ffn_up"
    FFN_GATE = "ffn_gate"
    FFN_DOWN = "ffn_down"
    FIRST_FFN = "first_ffn"  # of layer 0, if an engine distinguishes it from the others
    SHARED_EXPERT = "shared_expert"  # the same
    OTHER = "other"


# The first part that is in a name decides. Source: llama.cpp src/llama-quant.cpp (tensor_get_category).
_PARTS = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_q.weight", Role.ATTN_Q),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)


@record
class ModelFacts:
    """The facts about a model that mixes use; `gqa`: query heads per head of K and V, 0 if unknown.

    `is_70b`: the engine treats it as a model of 70B; `imatrix`: an importance matrix is given; `is_llama3`: it is of 8B
    or 70B with as many tokens as Llama 3; `tied`: the output is the token embeddings.
    """

    architecture: str
    layers: int
    gqa: int
    experts: int
    is_70b: bool
    imatrix: bool
    is_llama3: bool = False
    tied: bool = False


@record
class Place:
    """One tensor's place: the number of tensors of its role `before` it, of `count`; `layer` is its effective layer."""

    model: ModelFacts
    before: int
    count: int
    layer: int


Condition = Callable[[Place], bool]


@record
class Choice:
    """Under one of `presets`, if all of `when` are true, a tensor gets type `then`."""

    presets: frozenset[str]
    then: str
    when: tuple[Condition, ...] = ()


def choice(presets: str, then: str, *when: Condition) -> Choice:
    """Build a `Choice`; `presets` are separated by blanks."""
    return Choice(presets=frozenset(presets.split()), then=then, when=when)


def first_choice(choices: Iterable[Choice], preset: str, place: Place) -> str | None:
    """The type of the first choice that fits, or None."""
    return next(
        (each.then for each in choices if preset in each.presets and all(test(place) for test in each.when)), None
    )


def role_of(name: str) -> Role:
    """The role of tensor `name`."""
    if name == OUTPUT:
        return Role.OUTPUT
    if name in EMBEDDINGS:
        return Role.EMBEDDING
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def layer_of(name: str) -> int | None:
    """The layer that `name` starts with (``blk.7.``), or None."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def in_engine_order(names: Iterable[str]) -> list[str]:
    """Sort names as llama.cpp's loader does: by layer, names without one first. Source: src/llama-model-loader.h."""

    def place(name: str) -> tuple[int, bytes]:
        layer = layer_of(name)
        return -1 if layer is None else layer, name.encode("utf-8", "surrogateescape")

    return sorted(names, key=place)


# --- conditions ---


def shares_heads(place: Place) -> bool:
    """Four or more query heads share one of K and V."""
    return place.model.gqa >= 4


def eight_experts(place: Place) -> bool:
    """The model has exactly 8 experts, as Mixtral."""
    return place.model.experts == 8


def shares_heads_or_experts(place: Place) -> bool:
    """Heads are shared, or the model has four or more experts."""
    return shares_heads(place) or place.model.experts >= 4


def without_imatrix(place: Place) -> bool:
    """No importance matrix is given."""
    return not place.model.imatrix


def with_imatrix(place: Place) -> bool:
    """An importance matrix is given."""
    return place.model.imatrix


def falcon(place: Place) -> bool:
    """The model is a Falcon."""
    return place.model.architecture == "falcon"


def not_falcon(place: Place) -> bool:
    """The model is not a Falcon."""
    return not falcon(place)


def before(limit: int) -> Condition:
    """Fewer than `limit` tensors of the role came before."""
    return lambda place: place.before < limit


def first_counted(fraction: int) -> Condition:
    """It is among the first 1/`fraction` of its role by count, whatever its layer."""
    return lambda place: place.before < place.count // fraction


def first_layers(fraction: int) -> Condition:
    """Its layer is in the first 1/`fraction`."""
    return lambda place: place.layer < place.count // fraction


def middle_layers(place: Place) -> bool:
    """Its layer is neither in the first nor in the last eighth."""
    return place.count // 8 <= place.layer < 7 * place.count // 8


def more_bits(place: Place) -> bool:
    """Its layer is in the first or last eighth, or every third one between. Source: use_more_bits."""
    eighth = place.count // 8
    return place.layer < eighth or place.layer >= 7 * place.count // 8 or (place.layer - eighth) % 3 == 2
