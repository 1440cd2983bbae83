"""The memory of a model's KV cache in llama.cpp, by the length of the context; computed only from the head.

    cells * the bytes of a row of keys and a row of values, summed over the layers with attention

Cells are the tokens of the context, rounded up to 256; a layer with a sliding window has no more of them than the
window and a batch take.  With latent attention (MLA) there is no row of values: they are a part of the keys.

Source: llama.cpp src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp, b11434; the tests compare with what it logs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from gguftool.errors import PlanError
from gguftool.format.engine_facts.caches import CELLS, NO_CACHE, OTHER_CACHE, SHARED_FROM, SHARED_KEY, UBATCH
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.ftypes import no_such_type
from gguftool.format.ggml import find_type
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import ValueType
from gguftool.model.hparams import MOST_LAYERS, number, numbers, text
from gguftool.model.model import Model
from gguftool.model.roles import Place, Role
from gguftool.record import record

_PATTERN = "attention.sliding_window_pattern"
_ATTENTION = re.compile(r"\.(?:attn_k|attn_kv_a_mqa|attn_k_b|attn_kv_b)\.weight$")
_FUSED_ATTENTION, _RECURRENT = re.compile(r"\.attn_qkv\.weight$"), re.compile(r"\.ssm_")


@record
class KVCache:
    """Numbers per token: for each layer, one row of keys and one of values.

    `rows` belong to layers that see the whole context, `rows_in_window` to those that see `window` tokens.
    """

    rows: tuple[int, ...]
    rows_in_window: tuple[int, ...] = ()
    window: int = 0

    def nbytes(self, context: int, *, kv_type: str = "f16", ubatch: int = UBATCH) -> int:
        """Compute the bytes for a sequence of `context` tokens, keys and values in `kv_type`, `ubatch` tokens at once.

        Raises `PlanError` for a name that is not a type, and for a type with blocks that the rows do not fill.
        """
        cells = padded_context(context)
        in_window = min(cells, padded_context(self.window + ubatch))
        whole, seen = (sum(_row_bytes(row, kv_type) for row in rows) for rows in (self.rows, self.rows_in_window))
        return whole * cells + seen * in_window


def padded_context(tokens: int) -> int:
    """Count the cells of a cache for this many tokens."""
    return -(-tokens // CELLS) * CELLS


def _row_bytes(row: int, kv_type: str) -> int:
    traits = find_type(kv_type)
    if traits is None:
        raise PlanError(f"KV cache: {no_such_type(kv_type)}")
    if row % traits.block_size:
        raise PlanError(f"rows of {row:,} of the KV cache are not whole blocks of {traits.alias}: use f16")
    return row // traits.block_size * traits.type_size


def attention_layers(places: Mapping[str, Place]) -> tuple[int, ...]:
    """List the layers of `blk.N` with attention over the context, without MTP layers, which run separately."""
    found: set[int] = set()
    fused: set[int] = set()
    recurrent: set[int] = set()
    for name, place in places.items():
        if place.layer is None or place.stack != "blk" or place.role is Role.MTP:
            continue
        if _ATTENTION.search(name):
            found.add(place.layer)
        elif _FUSED_ATTENTION.search(name):
            fused.add(place.layer)
        elif _RECURRENT.search(name):
            recurrent.add(place.layer)
    return tuple(sorted(found | (fused - recurrent)))


def kv_cache(model: Model, layers: Collection[int]) -> KVCache | None:
    """Compute the cache that llama.cpp makes for `layers` (with attention, without MTP); None if the head lacks it."""
    architecture = text(model, ARCHITECTURE_KEY)
    heads = _by_layer(model, "attention.head_count_kv") or _by_layer(model, "attention.head_count")
    lengths = _lengths(model)
    if architecture in OTHER_CACHE | NO_CACHE or not layers or heads is None or lengths is None:
        return None
    owners = [layer for layer in layers if layer < _first_shared(model, architecture)]
    windowed, window = _windowed(model, architecture, owners)
    in_sight: dict[bool, list[int]] = {False: [], True: []}
    for layer in owners:
        count = _entry(heads, layer)
        rows = (count * max(length, 0) for length in _of_layer(model, lengths, layer in windowed))
        in_sight[layer in windowed] += (row for row in rows if row)
    return KVCache(rows=tuple(in_sight[False]), rows_in_window=tuple(in_sight[True]), window=max(window, 0))


def _by_layer(model: Model, key: str) -> tuple[int, ...] | None:
    return numbers(model, key) or None


def _entry(values: Sequence[int], layer: int) -> int:
    """Pick the number of `layer`: the single one for all layers, or its own in an array."""
    if len(values) == 1:
        return max(values[0], 0)
    return max(values[layer], 0) if layer < len(values) else 0


def _lengths(model: Model) -> tuple[int, int] | None:
    """Read the dimensions of a head's keys and values; with MLA the values are part of the keys, so they count 0."""
    embedding, heads = number(model, "embedding_length"), numbers(model, "attention.head_count")
    usual = embedding // max(heads) if embedding and heads and max(heads) > 0 else None
    keys, values = number(model, "attention.key_length") or usual, number(model, "attention.value_length") or usual
    if keys is None or values is None:
        return None
    is_mla = number(model, "attention.key_length_mla") and number(model, "attention.value_length_mla")
    return keys, 0 if is_mla else values


def _of_layer(model: Model, lengths: tuple[int, int], in_window: bool) -> tuple[int, int]:
    if not in_window:
        return lengths
    keys, values = lengths
    return number(model, "attention.key_length_swa") or keys, number(model, "attention.value_length_swa") or values


def _first_shared(model: Model, architecture: str) -> int:
    """Find the first of the last layers, which use the cache of another layer."""
    shared = number(model, SHARED_KEY)
    if shared:
        return max((number(model, "block_count") or 0) - shared, 0)
    return SHARED_FROM.get(architecture, MOST_LAYERS)


def _windowed(model: Model, architecture: str, layers: Sequence[int]) -> tuple[frozenset[int], int]:
    """Pick those of `layers` with a sliding window in llama.cpp, and the window's tokens."""
    window = number(model, "attention.sliding_window")
    pattern = model.get(f"{architecture}.{_PATTERN}")
    is_array = pattern is not None and pattern.type is ValueType.ARRAY
    if window is None and not is_array and architecture != "llama4":
        return frozenset(), 0
    # Only for models with windows: expressions and their data.
    from gguftool.format.engine_facts.layer_rules import layer_rules
    from gguftool.model.remap.head_values import HeadValues
    from gguftool.model.remap.periods import rule_value

    rules = [rule for rule in layer_rules(architecture, (LLAMA_CPP,)) if rule.what == "sliding window"]
    if not rules:
        entries = numbers(model, _PATTERN) if is_array else ()
        return frozenset(layer for layer in layers if _entry(entries or (0,), layer)), window or 0
    values = HeadValues(model.kvs)
    width = window if window is not None else rules[0].names["window"][1]
    return frozenset(layer for layer in layers if rule_value(rules[0], values, layer)), width
