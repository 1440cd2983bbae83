"""The role of a tensor, from its name: a table of rules, and the code that walks it.

GGUF names follow one grammar, ``[stack.]blk.N.base.weight``.  The table gives each base a role; the first rule that
matches wins, so special rules (norms, routers) come before general ones (``attn_*``, ``ffn_*``).  A name that matches
no rule is "other", never an error: names are untrusted text.

Source of the names: TENSOR_NAMES in gguf-py's gguf/constants.py, src/llama-arch.cpp of both engines; a test walks the
former and fails for a name that has no rule here and is not listed as "other" in the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from gguftool.record import record, replace


class Role(Enum):
    """A tensor's function in the model, in the order of reports."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION = "attention"
    RECURRENT = "recurrent"  # mixes tokens without attention: SSM, RWKV time mix, short convolutions
    DENSE_FFN = "dense ffn"
    ROUTED_EXPERTS = "routed experts"
    SHARED_EXPERTS = "shared experts"
    ROUTER = "router"
    NORM = "norms"
    MTP = "mtp"  # multi-token prediction: layers that predict further ahead; engines without it skip them
    MULTIMODAL = "vision/mmproj"  # all tensors of a projector file, audio too
    OTHER = "other"


@record
class Place:
    """A tensor's role and layer; `stack` is the part before the number (``blk``, ``v.blk``), empty without a layer."""

    role: Role
    stack: str = ""
    layer: int | None = None


# No engine accepts names of more than 63 bytes; the rules do not look at longer ones in hostile files.
_MAX_NAME = 255
# Numbers of seven digits or more are not layers: no model has so many, and a table by layer must stay small.
_NUMBERED = re.compile(
    r"(?P<stack>(?:(?:enc|dec|v|v\.sam|a)\.)?(?:proj_)?blk)\.(?P<layer>[0-9]{1,6})\.(?P<base>.+)", re.ASCII
)
_SUFFIX = re.compile(r"\.(?:weight|bias|scale|input_scale)$")

# Whole names, before they are split into parts.
_BY_NAME: tuple[tuple[Role, str], ...] = (
    (Role.MULTIMODAL, r"(?:v|a|mm|resampler)\..*"),
    (Role.MTP, r"(?:mtp|nextn)\..*"),
)

# Bases: names without stack, number and suffix. The first match wins.
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


def tensor_place(name: str) -> Place:
    """The role and layer of a tensor, only from its `name`."""
    if len(name) > _MAX_NAME:
        return Place(role=Role.OTHER)
    match = _NUMBERED.match(name)
    if match is None:
        return Place(role=_first(_NAME_RULES, name) or _first(_GLOBAL_RULES, _base(name)) or Role.OTHER)
    role = _first(_NAME_RULES, name) or _first(_BASE_RULES, _base(match["base"])) or Role.OTHER
    return Place(role=role, stack=match["stack"], layer=int(match["layer"]))


def tensor_places(names: Iterable[str]) -> dict[str, Place]:
    """Map each of a model's tensor names to its role and layer.

    A layer with a ``nextn.*`` tensor is an MTP layer, and all its tensors (attention and experts too) have that role:
    this separates the last layer of DeepSeek and GLM from the layers that every token passes through.
    """
    places = {name: tensor_place(name) for name in names}
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
