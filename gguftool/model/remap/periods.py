"""Properties that engines derive from a layer's number: keep each layer's kind, by its phase or an array; check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gguftool.format.engine_facts.engines import ENGINES, LLAMA_CPP
from gguftool.format.engine_facts.heads import Value
from gguftool.format.engine_facts.layer_keys import Length, layer_key
from gguftool.format.engine_facts.layer_rules import CountRule, LayerRule, count_rules, layer_rules
from gguftool.format.kv import ValueType
from gguftool.model.remap.head_values import HeadValues, Rewrite, runs
from gguftool.model.remap.new_layers import NewLayers

_PERIODS = ("period", "step", "every", "block")  # names of periods in rules


def pattern_keys(architecture: str) -> frozenset[str]:
    """The keys, without the architecture, of arrays that replace a rule of one of the engines."""
    return frozenset(rule.array for rule in layer_rules(architecture, ENGINES) if rule.array)


def ruled_keys(architecture: str) -> frozenset[str]:
    """The keys, without the architecture, that rules of the engines use."""
    return frozenset(key for rule in layer_rules(architecture, ENGINES) for key, _ in rule.names.values())


def rule_value(rule: LayerRule, model: HeadValues, layer: int) -> Value:
    """The engine's value for `layer` of `model`: the entry of its array, or the result of the rule; None if unknown."""
    kv = model.kvs.get(f"{model.architecture}.{rule.array}") if rule.array else None
    if kv is not None and kv.type is ValueType.ARRAY:
        entries = model.value(kv)
        return int(bool(entries[layer])) if layer < len(entries) else 0
    found = model.evaluate(rule.rule, rule.names, layer)
    return int(bool(found)) if rule.array and found is not None else found


def write_patterns(new: NewLayers) -> None:
    """Write an array in place of a period that no longer fits; an existing array gets its new entries."""
    for key in sorted(pattern_keys(new.architecture)):
        rules = [rule for rule in layer_rules(new.architecture, new.engines) if rule.array == key]
        rules = rules or [rule for rule in layer_rules(new.architecture, ENGINES) if rule.array == key]
        wanted = [rule_value(rules[0], model, layer) for model, layer in new.layers]
        old = new.base.kvs.get(f"{new.architecture}.{key}")
        is_array = old is not None and old.type is ValueType.ARRAY
        if None in wanted or (not is_array and not any(_wrong(new, rule) for rule in rules)):
            continue
        if _is_trunk_only(new, key):
            wanted = wanted[: new.trunk]
        element = old.element_type if old is not None and is_array else ValueType.BOOL
        new.out.array(f"{new.architecture}.{key}", wanted, element, after=_beside(new, rules))


def _is_trunk_only(new: NewLayers, key: str) -> bool:
    """Whether the array under `key` has no entries for MTP layers, according to the engines or the model."""
    row = layer_key(f"{new.architecture}.{key}", new.architecture)
    old = new.base.kvs.get(f"{new.architecture}.{key}")
    if row is None or row.length is Length.TRUNK:
        return True
    return row.length is Length.ANY and old is not None and old.count == new.base.trunk < new.base.layers


def _beside(new: NewLayers, rules: Sequence[LayerRule]) -> str:
    """The key of the period, after which the array goes."""
    keys = [f"{new.architecture}.{key}" for rule in rules for name, (key, _) in rule.names.items() if name in _PERIODS]
    return next((key for key in keys if key in new.base.kvs), new.anchor)


def _wrong(new: NewLayers, rule: LayerRule) -> list[int]:
    """The new layers that the engine would treat differently than in their own model, by the metadata so far."""
    planned = HeadValues(new.out.kvs)
    pairs = (
        (rule_value(rule, model, layer), rule_value(rule, planned, index))
        for index, (model, layer) in enumerate(new.layers)
    )
    return [index for index, (old, now) in enumerate(pairs) if old is None or old != now]


def check_rules(new: NewLayers) -> None:
    """Report parts that an engine would treat differently: single layers (a problem) or the whole model (a refusal)."""
    for rule in layer_rules(new.architecture, new.engines):
        wrong = _wrong(new, rule)
        if wrong:
            new.out.problems.append(_out_of_phase(rule, wrong))
    planned = HeadValues(new.out.kvs)
    for count in count_rules(new.architecture, new.engines):
        before = {model.evaluate(count.rule, count.names) for model in new.used}
        if before != {planned.evaluate(count.rule, count.names)}:
            new.out.refusals.append(_other_count(count))


# Kinds that need at least one layer in a trunk, and whether it also needs a layer of the other kind.
_NEEDED = {"linear attention": True, "sliding window": False}


def check_kinds(new: NewLayers) -> None:
    """Refuse a trunk with only one of two kinds left: llama.cpp has a cache for each, and aborts if one is empty.

    All layers without a sliding window may go. Source: src/llama-model.cpp (create_memory) of llama.cpp b11434;
    measured with b11549: GGML_ASSERT(buffer) in hybrids, GGML_ASSERT(hparams.is_swa_any()).
    """
    if LLAMA_CPP not in new.engines:
        return
    rules = [rule for rule in layer_rules(new.architecture, (LLAMA_CPP,)) if rule.what in _NEEDED]
    kinds: list[tuple[str, Callable[[HeadValues, int], object]]] = [("attention", _has_keys)]
    kinds += [(rule.what, partial(rule_value, rule)) for rule in rules]
    for what, kind_of in kinds:
        had = {bool(kind_of(model, layer)) for model in new.used for layer in range(model.trunk)}
        left = {bool(kind_of(model, layer)) for model, layer in new.layers[: new.trunk]}
        if len(had) > 1 and (left == {False} or (left == {True} and _NEEDED.get(what, True))):
            kind = f"without {what}" if left == {True} else f"with {what}"
            new.out.refusals.append(
                f"no layers {kind} would be left, and {LLAMA_CPP} aborts without any; keep one of them"
            )


def _has_keys(model: HeadValues, layer: int) -> bool:
    """Whether a layer has key heads: hybrids have zeros in their list for layers without."""
    kv = model.kvs.get(f"{model.architecture}.attention.head_count_kv")
    heads = model.value(kv) if kv is not None else None
    return not isinstance(heads, list) or layer >= len(heads) or bool(heads[layer])


def _out_of_phase(rule: LayerRule, wrong: list[int]) -> str:
    period = next((default for name, (_, default) in rule.names.items() if name in _PERIODS), 0)
    way_out = f"move layers by whole periods of {period}" if period > 1 else "leave these layers in their places"
    way_out = f"{way_out}, or plan for another engine (--engine)"
    return (
        f"{rule.engine} would give new layers {runs(wrong)} another {rule.what} ({rule.rule}; {rule.source}): {way_out}"
    )


def check_counts(out: Rewrite, before: HeadValues, engines: Sequence[str]) -> None:
    """Report decisions of an engine about the whole model that would change with the number of experts or tokens."""
    planned = HeadValues(out.kvs)
    for rule in count_rules(before.architecture, engines):
        if before.evaluate(rule.rule, rule.names) != planned.evaluate(rule.rule, rule.names):
            out.refusals.append(_other_count(rule))


def _other_count(rule: CountRule) -> str:
    """The change if the value of `rule` changes."""
    return f"{rule.engine} would change the {rule.what}: it depends on a count ({rule.rule}; {rule.source})"
