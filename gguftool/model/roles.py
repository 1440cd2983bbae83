"""What a tensor is for, told from its name: a table of rules, and the code that walks it.

GGUF names follow one grammar, ``[stack.]blk.N.base.weight``.  The table gives each base a role; the first rule that
fits wins, so the special (norms, routers) stand before the general (``attn_*``, ``ffn_*``).  A name that fits no rule
is "other", never an error: names are a stranger's text.

Source of the names: TENSOR_NAMES in gguf-py's gguf/constants.py, src/llama-arch.cpp of both engines; a test walks the
former and fails for a name that is neither ruled here nor written down as "other" there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from gguftool.record import record, replace


class Role(Enum):
    """What a tensor does in the model, in the order in which reports list roles."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION = "attention"
    RECURRENT = "recurrent"  # what mixes tokens without attention: SSM, RWKV time mix, short convolutions
    DENSE_FFN = "dense ffn"
    ROUTED_EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    ROUTER = "router"
    NORM = "norms"
    MTP = "mtp"  # multi-token prediction: layers that guess ahead, left out by engines that do not
    MULTIMODAL = "vision/mmproj"  # all of a projector file, audio too
    OTHER = "other"


@record
class Place:
    """A tensor's role and layer; `stack` is what stands before the number (``blk``, ``v.blk``), empty without one."""

    role: Role
    stack: str = ""
    layer: int | None = None


# No engine takes names of more than 63 bytes; the rules need not look at what a hostile file makes longer.
_MAX_NAME = 255
# Numbers of seven digits and more are no layers: nothing counts that far, and a table by layer must stay small.
_NUMBERED = re.compile(
    r"(?P<stack>(?:(?:enc|dec|v|v\.sam|a)\.)?(?:proj_)?blk)\.(?P<layer>[0-9]{1,6})\.(?P<base>.+)", re.ASCII
)
_SUFFIX = re.compile(r"\.(?:weight|bias|scale|input_scale)$")

# Whole names, before they are taken apart.
_BY_NAME: tuple[tuple[Role, str], ...] = (
    (Role.MULTIMODAL, r"(?:v|a|mm|resampler)\..*"),
    (Role.MTP, r"(?:mtp|nextn)\..*"),
)

# Bases: names without stack, number and suffix. First match wins.
_BY_BASE: tuple[tuple[Role, str], ...] = (
    (Role.MULTIMODAL, r"vis_.*"),  # CogVLM's visual experts live in the text layers
    (Role.MTP, r"nextn\..*"),
    (Role.OTHER, r"altup_.*|laurel_.*"),  # side paths of Gemma 3n
    (Role.NORM, r".*norm(?:_\w+)?|.*_ln|layer_output_scale"),
    (Role.ROUTER, r"ffn_gate_inp(?:_\w+)?|exp_probs_b|ffn_gate_tid2eid"),
    (Role.SHARED_EXPERTS, r"ffn_\w+_shexps?"),
    (Role.ROUTED_EXPERTS, r"ffn_\w+_(?:ch)?exps?(?:_b)?|ffn_(?:gate|up|down)\.[0-9]+"),
    (Role.DENSE_FFN, r"ffn(?:_\w+|\.act)?|channel_mix_\w+"),
    (Role.RECURRENT, r"ssm_\w+|time_mix_\w+|shortconv\..*"),
    (Role.ATTENTION, r"(?:cross_|self_)?attn_.*|indexer\..*|rope_(?:freqs|factors_\w+)"),
)

# Bases of tensors that belong to no layer.
_BY_GLOBAL: tuple[tuple[Role, str], ...] = (
    (Role.EMBEDDING, r"token_embd|token_types|position_embd|per_layer_token_embd|per_layer_model_proj"),
    (Role.OUTPUT, r"output|cls(?:\.output)?|dense_[23]"),
)

_Rules = tuple[tuple[Role, re.Pattern[str]], ...]


def _compiled(rules: tuple[tuple[Role, str], ...]) -> _Rules:
    return tuple((role, re.compile(pattern, re.ASCII)) for role, pattern in rules)


_NAME_RULES, _BASE_RULES = _compiled(_BY_NAME), _compiled(_BY_BASE)
_GLOBAL_RULES = _compiled(_BY_GLOBAL) + _BASE_RULES


def place_of(name: str) -> Place:
    """Return the role and the layer that `name` tells by itself."""
    if len(name) > _MAX_NAME:
        return Place(role=Role.OTHER)
    match = _NUMBERED.match(name)
    if match is None:
        return Place(role=_first(_NAME_RULES, name) or _first(_GLOBAL_RULES, _base(name)) or Role.OTHER)
    role = _first(_NAME_RULES, name) or _first(_BASE_RULES, _base(match["base"])) or Role.OTHER
    return Place(role=role, stack=match["stack"], layer=int(match["layer"]))


def places_of(names: Iterable[str]) -> dict[str, Place]:
    """Return the place of each of a model's tensors.

    A layer that holds a ``nextn.*`` tensor is an MTP layer, and all of it (its attention and experts too) has that
    role: so DeepSeek's and GLM's last layer is told from those that every token passes.
    """
    places = {name: place_of(name) for name in names}
    mtp = {
        (place.stack, place.layer) for place in places.values() if place.role is Role.MTP and place.layer is not None
    }
    if not mtp:
        return places
    return {
        name: replace(place, role=Role.MTP) if (place.stack, place.layer) in mtp else place
        for name, place in places.items()
    }


def _first(rules: _Rules, text: str) -> Role | None:
    return next((role for role, pattern in rules if pattern.fullmatch(text)), None)


def _base(name: str) -> str:
    return _SUFFIX.sub("", name)
