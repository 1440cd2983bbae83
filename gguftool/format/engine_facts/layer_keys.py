"""Which metadata keys depend on the layers, and how: a table, and `layer_key`, which looks it up.

Keys have the architecture in front (`ARCH.key`); names that begin with a dot are used as they are.
Sources: llama.cpp b11434 (2026-10) and ik_llama.cpp 8337e4cd (2026-08-15); a test walks every key that both read
and fails for one with an entry for each layer, or a number of layers in its name, that is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import cache
from typing import Any, Final

from gguftool.record import record


class KeyKind(Enum):
    """How the value of a key depends on the layers, on tensors' names, experts or tokens."""

    LAYER_COUNT = "the number of layers"
    PER_LAYER = "one entry for each layer"
    COUNT_FRONT = "a number of layers, from the first"
    COUNT_BACK = "a number of layers, to the last"
    LAYER_NUMBERS = "numbers of layers"
    PERIODIC = "a period of layers"
    TARGET_LAYERS = "numbers of another model's layers"
    BEARS_NAMES = "a tensor's name in the key"
    OTHER_STACK = "layers of another stack"
    NO_LAYERS = "nothing about layers"


class Length(Enum):
    """The number of entries of an array with one for each layer."""

    ALL = "all layers"  # MTP layers too
    TRUNK = "layers without MTP"
    ANY = "either"  # the engines accept any number, even more


@record
class LayerKey:
    """One row: `beside` is a list that has one entry for each entry of a list of layer numbers.

    `absent` is the value of an entry if the key is absent; None if an absent key equals no value.
    `period`: one number under the key, in place of an array, is a period.
    `ordered`: the counted layers must stay the same. `exactly` is the length that a list must have.
    """

    key: str
    kind: KeyKind
    source: str
    length: Length = Length.ALL
    beside: str = ""
    absent: int | float | None = None
    period: bool = False
    ordered: bool = False
    exactly: int = 0
    only: frozenset[str] = frozenset()


_HPARAMS: Final = "llama.cpp src/llama-model.cpp, load_hparams"
_MODELS: Final = "llama.cpp src/models"
_IK: Final = "ik_llama.cpp src/llama-hparams.cpp"


def _row(key: str, kind: KeyKind, source: str, only: Iterable[str] = (), **more: Any) -> LayerKey:
    return LayerKey(key=key, kind=kind, source=source, only=frozenset(only), **more)


_PER, _ANY, _TRUNK = KeyKind.PER_LAYER, Length.ANY, Length.TRUNK

LAYER_KEYS: Final[tuple[LayerKey, ...]] = (
    _row("block_count", KeyKind.LAYER_COUNT, _HPARAMS),
    # one entry for each layer
    _row("attention.head_count", _PER, _HPARAMS),
    _row("attention.head_count_kv", _PER, _HPARAMS, length=_ANY),
    _row("feed_forward_length", _PER, _HPARAMS),
    _row("expert_feed_forward_length", _PER, f"{_MODELS}/deepseek2.cpp", absent=0),
    _row("expert_used_count", _PER, _HPARAMS),
    _row(
        "attention.sliding_window_pattern",
        _PER,
        "llama.cpp src/llama-model.cpp, load_swa_pattern",
        length=_ANY,
        period=True,
    ),
    _row("attention.recurrent_layers", _PER, f"{_MODELS}/qwen35.cpp"),
    _row("attention.rope_pattern", _PER, f"{_MODELS}/granite-swa.cpp", length=_ANY),
    _row("attention.indexer.types", _PER, f"{_MODELS}/glm-dsa.cpp", length=_TRUNK),
    _row("attention.compress_ratios", _PER, f"{_MODELS}/deepseek4.cpp", length=_ANY),
    _row("deepstack_mapping", _PER, f"{_MODELS}/granite.cpp", length=_ANY),
    _row("swiglu_clamp_exp", _PER, f"{_MODELS}/step35.cpp", absent=0.0),
    _row("swiglu_clamp_shexp", _PER, f"{_MODELS}/step35.cpp"),
    _row("swiglu_limits", _PER, _IK),
    _row("swiglu_limits_shared", _PER, _IK),
    _row("rope.freq_base_per_layer", _PER, _IK),
    _row("rope.dimension_count_per_layer", _PER, _IK),
    *(
        _row(f".xielu.{name}", _PER, f"{_MODELS}/apertus.cpp", length=_TRUNK)
        for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    _row("activation_sparsity_scale", _PER, "gguf-py gguf_writer.py, for gemma3n; no engine reads it"),
    # counts
    _row("leading_dense_block_count", KeyKind.COUNT_FRONT, f"{_MODELS}/deepseek2.cpp"),
    _row("hash_layer_count", KeyKind.COUNT_FRONT, f"{_MODELS}/deepseek4.cpp"),
    _row("n_deepstack_layers", KeyKind.COUNT_FRONT, f"{_MODELS}/qwen3vl.cpp", ordered=True),
    _row("nextn_predict_layers", KeyKind.COUNT_BACK, _HPARAMS, absent=0),
    _row("attention.shared_kv_layers", KeyKind.COUNT_BACK, f"{_MODELS}/gemma4.cpp", absent=0),
    _row(
        "decision.block_count", KeyKind.COUNT_BACK, f"{_MODELS}/modern-bert.cpp", only=("modern-bert",), length=_TRUNK
    ),
    # numbers
    _row("ple.layers", KeyKind.LAYER_NUMBERS, f"{_MODELS}/qwen4exp.cpp", exactly=1),
    _row("swa_layers", KeyKind.LAYER_NUMBERS, _IK, beside="sliding_window_list", only=("openpangu",)),
    _row("target_layers", KeyKind.TARGET_LAYERS, f"{_MODELS}/eagle3.cpp, dflash.cpp"),
    _row("dflash.target_layer_ids", KeyKind.TARGET_LAYERS, _IK),
    # periods
    _row("full_attention_interval", KeyKind.PERIODIC, f"{_MODELS}/qwen35.cpp"),
    _row("interleave_moe_layer_step", KeyKind.PERIODIC, f"{_MODELS}/llama4.cpp, ernie4-5-moe.cpp"),
    _row("moe_every_n_layers", KeyKind.PERIODIC, f"{_MODELS}/nomic-bert-moe.cpp"),
    _row("rescale_every_n_layers", KeyKind.PERIODIC, f"{_MODELS}/rwkv6.cpp"),
    _row("attn_res.block_size", KeyKind.PERIODIC, f"{_MODELS}/kimi-k3.cpp"),
    # names
    _row(".general.tensor_extra.*", KeyKind.BEARS_NAMES, "NVFP4 files: .prec_a4 of a tensor"),
    _row(".comfy.gguf.orig_shape.*", KeyKind.BEARS_NAMES, "ComfyUI-GGUF: the dims before they were folded"),
    # layers, but not these
    _row("decoder_block_count", KeyKind.OTHER_STACK, f"{_MODELS}/t5.cpp"),
    _row("posnet.block_count", KeyKind.OTHER_STACK, f"{_MODELS}/wavtokenizer-dec.cpp"),
    _row("convnext.block_count", KeyKind.OTHER_STACK, f"{_MODELS}/wavtokenizer-dec.cpp"),
    _row("decision.block_count", KeyKind.OTHER_STACK, f"{_MODELS}/clef.cpp", only=("clef",)),
    _row("decision.routing_block_count", KeyKind.OTHER_STACK, f"{_MODELS}/clef.cpp"),
    # arrays and periods of other things
    *(
        _row(key, KeyKind.NO_LAYERS, source)
        for key, source in (
            ("rope.dimension_sections", "llama.cpp src/llama-hparams.h: four parts of a head"),
            ("sliding_window_list", f"{_IK}: goes with swa_layers"),
            ("hrm.layers_per_stack", f"{_MODELS}/hrm-text.cpp: block_count must be its multiple"),
            ("attention.layer_norm_epsilon", _HPARAMS),
            ("attention.layer_norm_rms_epsilon", _HPARAMS),
            ("embedding_length_per_layer_input", f"{_MODELS}/gemma4.cpp"),
            ("attention.indexer.block_size", f"{_MODELS}/minimax-m3.cpp: tokens"),
            ("attention.indexer.local_blocks", f"{_MODELS}/minimax-m3.cpp: tokens"),
            ("block_size", f"{_MODELS}/dflash.cpp: tokens"),
            ("dflash.block_size", f"{_IK}: tokens"),
            ("classifier.output_labels", _HPARAMS),
            ("adapters.token_ids_activate", f"{_MODELS}/granite-switch.cpp"),
            ("adapters.token_ids_substitute", f"{_MODELS}/granite-switch.cpp"),
            ("ple.layer_multipliers", f"{_MODELS}/qwen4exp.cpp: one for each token of an n-gram"),
            ("ple.head_offsets", f"{_MODELS}/qwen4exp.cpp"),
            ("ple.head_vocab_sizes", f"{_MODELS}/qwen4exp.cpp"),
        )
    ),
)


@cache
def _by_key() -> dict[str, tuple[LayerKey, ...]]:
    found: dict[str, tuple[LayerKey, ...]] = {}
    for row in LAYER_KEYS:
        found[row.key] = (*found.get(row.key, ()), row)
    return found


@cache
def _name_bearing() -> tuple[tuple[re.Pattern[str], LayerKey], ...]:
    rows = (row for row in LAYER_KEYS if row.kind is KeyKind.BEARS_NAMES)
    return tuple((re.compile(re.escape(row.key[1:]).replace(r"\*", "(.+)"), re.DOTALL), row) for row in rows)


def layer_key(key: str, architecture: str) -> LayerKey | None:
    """The row of the metadata key called `key` in a model of `architecture`, or None."""
    prefix = f"{architecture}."
    candidates = _by_key().get(key.removeprefix(prefix) if key.startswith(prefix) else f".{key}", ())
    for row in candidates:
        if not row.only or architecture in row.only:
            return row
    return next((row for pattern, row in _name_bearing() if pattern.fullmatch(key)), None)


def full_key(row: LayerKey, architecture: str) -> str:
    """The full key of `row` in a model of `architecture`."""
    return row.key[1:] if row.key.startswith(".") else f"{architecture}.{row.key}"
