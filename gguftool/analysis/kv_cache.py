"""How much memory the KV cache of a model takes in llama.cpp, by the length of the context; from the head alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gguftool.format.engine_facts.caches import BYTES, CELLS, NO_CACHE, OTHER_CACHE, SHARED_FROM, SHARED_KEY, UBATCH
from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import ValueType
from gguftool.model.hparams import MOST_LAYERS, number, numbers, text
from gguftool.model.model import Model
from gguftool.record import record

_PATTERN = "attention.sliding_window_pattern"


@record
class KVCache:
    """Bytes for each token, of layers that see the whole context and of those that see `window` tokens."""

    per_token: int
    per_token_in_window: int = 0
    window: int = 0

    def nbytes(self, context: int) -> int:
        """Bytes for one sequence of `context` tokens, keys and values in F16."""
        cells = _padded(context)
        return self.per_token * cells + self.per_token_in_window * min(cells, _padded(self.window + UBATCH))


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


def kv_cache(model: Model, layers: Collection[int]) -> KVCache | None:
    """The cache that llama.cpp makes for `layers`, those with attention but MTP; None if the head does not tell."""
    architecture = text(model, ARCHITECTURE_KEY)
    heads = _by_layer(model, "attention.head_count_kv") or _by_layer(model, "attention.head_count")
    lengths = _lengths(model)
    if architecture in OTHER_CACHE | NO_CACHE or not layers or heads is None or lengths is None:
        return None
    owners = [layer for layer in layers if layer < _first_shared(model, architecture)]
    windowed, window = _windowed(model, architecture, owners)
    sizes = {
        layer: _entry(heads, layer) * sum(_of_layer(model, lengths, layer in windowed)) * BYTES for layer in owners
    }
    return KVCache(
        per_token=sum(size for layer, size in sizes.items() if layer not in windowed),
        per_token_in_window=sum(size for layer, size in sizes.items() if layer in windowed),
        window=window,
    )


def _by_layer(model: Model, key: str) -> tuple[int, ...] | None:
    return numbers(model, key) or None


def _entry(values: Sequence[int], layer: int) -> int:
    """The number of `layer`: of one for all, or of an array with one for each."""
    if len(values) == 1:
        return max(values[0], 0)
    return max(values[layer], 0) if layer < len(values) else 0


def _lengths(model: Model) -> tuple[int, int] | None:
    """The dimensions of a head's keys and values; no values with MLA, where they are a part of the keys."""
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
    """The first of the last layers that use the cache of another."""
    shared = number(model, SHARED_KEY)
    if shared:
        return max((number(model, "block_count") or 0) - shared, 0)
    return SHARED_FROM.get(architecture, MOST_LAYERS)


def _windowed(model: Model, architecture: str, layers: Sequence[int]) -> tuple[frozenset[int], int]:
    """The layers of `layers` with a sliding window in llama.cpp, and the window's tokens."""
    window = number(model, "attention.sliding_window")
    pattern = model.get(f"{architecture}.{_PATTERN}")
    is_array = pattern is not None and pattern.type is ValueType.ARRAY
    if window is None and not is_array and architecture != "llama4":
        return frozenset(), 0
    # For models with windows alone: expressions and their data.
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
