"""Which axis of a tensor counts experts, tokens, layers or heads: a table by name, and the code that walks it.

An axis is never guessed from a dim that happens to equal a count: in small models, counts and widths collide.  A tensor
is unknown if it is neither in the table nor among those that the engines ask for; `unknown_with_axis` finds unknown
tensors that may have the axis that an operation is about to cut, so that it can stop and name them.

Axes count as in the file's dims: axis 0 is within a row.
Sources: src/models/*.cpp and src/llama-model.cpp of llama.cpp b11434 (2026-10), src/llama-load-tensors.cpp of
ik_llama.cpp 8337e4cd (2026-08-15); `tests/model/test_axes.py` walks what both ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final

from gguftool.errors import PlanError, printable
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.header import TensorInfo
from gguftool.model.model import Model
from gguftool.model.roles import tensor_place
from gguftool.model.scales import SUFFIXES
from gguftool.record import record


class AxisKind(Enum):
    """The things that an axis counts; the value is the word for messages."""

    EXPERTS = "experts"
    VOCABULARY = "tokens"
    LAYERS = "layers"
    HEADS = "heads"


@record
class Axes:
    """The axes of one tensor; None if it has no such axis.

    `expert` is the number of the expert in the name of a tensor of one expert (``blk.0.ffn_up.3.weight``).
    `chunks`: the axis of experts counts groups of adjacent experts, ``experts_per_group`` each.
    `draft`: in a file with `d2t` the axis of tokens counts the draft's own, shorter vocabulary.
    `holds` names the numbers in the tensor ("expert ids", "token ids"): if those change, cutting the tensor is not
    enough. `reason` says why that, or cutting the axis of layers, is impossible; empty if it is possible.
    """

    experts: int | None = None
    vocabulary: int | None = None
    layers: int | None = None
    heads: int | None = None
    expert: int | None = None
    chunks: bool = False
    draft: bool = False
    holds: str = ""
    reason: str = ""
    source: str = ""

    def of(self, kind: AxisKind) -> int | None:
        """The axis that counts `kind`, or None."""
        return {
            AxisKind.EXPERTS: self.experts,
            AxisKind.VOCABULARY: self.vocabulary,
            AxisKind.LAYERS: self.layers,
            AxisKind.HEADS: self.heads,
        }[kind]


@record
class _Row:
    """Axes of the tensors called `bases` + `suffix`, without stack and number; `only` and `but` are architectures."""

    bases: tuple[str, ...]
    axes: Axes
    suffix: str = ".weight"
    only: frozenset[str] = frozenset()
    but: frozenset[str] = frozenset()


_MODELS: Final = "llama.cpp src/models"
_EXPERTS: Final = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")
_CHUNKS: Final = ("ffn_gate_chexps", "ffn_up_chexps", "ffn_down_chexps")
_PER_LAYER: Final = frozenset({"gemma3n", "gemma4"})
_INSIDE_ROWS: Final = (
    "its rows hold the layers one after another: cutting inside rows is not possible without decoding them"
)


def _rows(*bases: str, suffix: str = ".weight", only: Iterable[str] = (), but: Iterable[str] = (), **axes: Any) -> _Row:
    return _Row(bases=bases, suffix=suffix, only=frozenset(only), but=frozenset(but), axes=Axes(**axes))


_TABLE: Final[tuple[_Row, ...]] = (
    # experts
    _rows(*_EXPERTS, experts=2, source=f"{_MODELS}/*.cpp, create_tensor_gate_up_exps"),
    _rows(*_EXPERTS, suffix=".bias", experts=1, source=f"{_MODELS}/openai-moe.cpp"),
    _rows(*_EXPERTS, suffix=".scale", experts=0, source="llama.cpp src/llama-model.cpp, load_tensors"),
    _rows(*_EXPERTS, suffix=".input_scale", experts=0, source="llama.cpp src/llama-model.cpp, load_tensors"),
    _rows(*_CHUNKS, experts=2, chunks=True, source=f"{_MODELS}/grovemoe.cpp"),
    _rows("ffn_gate_inp", experts=1, source=f"{_MODELS}/*.cpp"),
    _rows("ffn_gate_inp", suffix=".bias", experts=0, source=f"{_MODELS}/openai-moe.cpp"),
    _rows("exp_probs_b", "exp_probs_b_vl", suffix=".bias", experts=0, source=f"{_MODELS}/deepseek2.cpp, deepseek4.cpp"),
    _rows("exp_probs_b", suffix="", experts=0, source=f"{_MODELS}/hy-v3.cpp"),
    _rows(
        "ffn_gate_tid2eid",
        vocabulary=1,
        holds="expert ids",
        reason="it lists experts by number for each token, and these numbers would have to be computed again",
        source=f"{_MODELS}/deepseek4.cpp",
    ),
    # vocabulary
    _rows("token_embd", vocabulary=1, source=f"{_MODELS}/*.cpp"),
    _rows("output", vocabulary=1, draft=True, but=("wavtokenizer-dec",), source=f"{_MODELS}/*.cpp"),
    _rows("output", suffix=".bias", vocabulary=0, but=("wavtokenizer-dec",), source=f"{_MODELS}/qwen2.cpp"),
    _rows("nextn.embed_tokens", "nextn.shared_head_head", vocabulary=1, source=f"{_MODELS}/deepseek2.cpp"),
    _rows("d2t", suffix="", vocabulary=0, draft=True, holds="token ids", source=f"{_MODELS}/eagle3.cpp, dflash.cpp"),
    _rows("markov_w1", "selector_predecessor", "selector_successor", vocabulary=1, source=f"{_MODELS}/dflash.cpp"),
    _rows("markov_w2", vocabulary=1, draft=True, source=f"{_MODELS}/dflash.cpp"),
    _rows(
        "masked_embd_ordering",
        suffix="",
        vocabulary=0,
        holds="token ids",
        reason="it orders the tokens by number",
        source=f"{_MODELS}/gemma4-assistant.cpp",
    ),
    _rows(
        "mtp_token_ordering",
        vocabulary=0,
        holds="token ids",
        reason="it orders the tokens by number",
        source="ik_llama.cpp src/llama-load-tensors.cpp",
    ),
    # layers within a tensor
    _rows(
        "per_layer_token_embd",
        vocabulary=1,
        layers=0,
        only=_PER_LAYER,
        reason=_INSIDE_ROWS,
        source=f"{_MODELS}/gemma3n.cpp, gemma4.cpp",
    ),
    _rows("per_layer_model_proj", layers=1, only=_PER_LAYER, source=f"{_MODELS}/gemma3n.cpp, gemma4.cpp"),
    # heads
    _rows("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_b", "attn_kv_b", "attn_gate", heads=1, source=_MODELS),
    _rows("attn_q", "attn_k", "attn_v", "attn_qkv", suffix=".bias", heads=0, source=_MODELS),
    _rows("attn_output", "attn_sinks", heads=0, source=_MODELS),
    _rows("attn_k_b", "attn_v_b", heads=2, source=f"{_MODELS}/deepseek2.cpp"),
)

_ONE_EXPERT = re.compile(r"ffn_(?:gate|up|down)\.([0-9]{1,6})\.(?:weight|bias|scale|input_scale)", re.ASCII)
_NUMBERED = re.compile(r"(?:(?:enc|dec)\.)?blk\.[0-9]{1,6}\.(.+)", re.ASCII)
_NOTHING: Final = Axes()


@cache
def _by_name() -> Mapping[str, tuple[_Row, ...]]:
    found: dict[str, tuple[_Row, ...]] = {}
    for row in _TABLE:
        for base in row.bases:
            found[base + row.suffix] = (*found.get(base + row.suffix, ()), row)
    return found


def tensor_axes(name: str, architecture: str) -> Axes:
    """The axes of the tensor called `name` in a model of `architecture`; none for a name that is not in the table."""
    match = _NUMBERED.fullmatch(name)
    return _axes(match[1] if match else name, architecture)


@lru_cache(maxsize=4096)
def _axes(base: str, architecture: str) -> Axes:
    one = _ONE_EXPERT.fullmatch(base)
    if one is not None:
        return Axes(expert=int(one[1]), source="ik_llama.cpp src/llama-load-tensors.cpp")
    for row in _by_name().get(base, ()):
        if architecture not in row.but and (not row.only or architecture in row.only):
            return row.axes
    return _NOTHING


def axis_of(info: TensorInfo, architecture: str, kind: AxisKind, count: int) -> int | None:
    """The axis of a tensor that counts `count` experts, tokens or layers; None if it has none.

    Raises `PlanError` if the table gives it such an axis but its length does not fit.
    """
    axis = tensor_axes(info.name, architecture).of(kind)
    if axis is None:
        return None
    length = info.dims[axis] if axis < len(info.dims) else 1
    if length == 1 and info.name.endswith(SUFFIXES):  # one scale for all experts
        return None
    fits = length == count or (kind is AxisKind.LAYERS and count > 0 and length % count == 0)
    if not fits:
        message = f"axis {axis} of '{printable(info.name, 80)}' has {length:,} entries, not one for each of the"
        raise PlanError(f"{message} {count:,} {kind.value} that the metadata counts; repair the file first")
    return axis


@cache
def _asked_for() -> frozenset[str]:
    """Every tensor name that an engine asks for, with ``%d`` for numbers."""
    facts = [one for one in map(head_facts, ENGINES) if one is not None]
    return frozenset(
        tensor.name for one in facts for architecture in one.architectures.values() for tensor in architecture.tensors
    )


_NUMBER = re.compile(r"(?<=\.)[0-9]{1,6}(?=\.)", re.ASCII)


def is_known(name: str, architecture: str) -> bool:
    """Whether the role of the tensor called `name` is known: in the table, or asked for by an engine."""
    if tensor_axes(name, architecture) is not _NOTHING:
        return True
    pattern = _NUMBER.sub("%d", name)
    stem = pattern.rsplit(".", 1)[0]
    is_scale = pattern.endswith((".scale", ".input_scale")) and f"{stem}.weight" in _asked_for()
    return pattern in _asked_for() or is_scale


def unknown_with_axis(model: Model, kind: AxisKind, count: int) -> tuple[str, ...]:
    """The names of tensors of unknown role with a dim equal to `count`: cutting the axis of `kind` may affect them."""
    architecture = str(model["general.architecture"]) if model.get("general.architecture") else ""
    return tuple(
        name
        for name, tensor in model.tensors.items()
        if count in tensor.info.dims and not is_known(name, architecture) and not _is_other(name, kind)
    )


def _is_other(name: str, kind: AxisKind) -> bool:
    """Whether a tensor cannot have the axis because of its place: a tensor in a layer has no axis of layers."""
    return kind is AxisKind.LAYERS and tensor_place(name).layer is not None
