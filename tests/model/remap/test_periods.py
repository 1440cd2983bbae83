"""Kinds of layers that engines derive from numbers: kept by phase, by an array, or reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguftool.format.engine_facts.engines import ENGINES, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.layer_rules import COUNT_RULES, LAYER_RULES, LayerRule
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.model.remap.head_values import HeadValues, Remapped, Rewrite
from gguftool.model.remap.layers import remap_layers
from gguftool.model.remap.new_layers import LayerFrom
from gguftool.model.remap.periods import check_counts, rule_value

BOTH = tuple(ENGINES)
RULED = sorted({name for rule in LAYER_RULES for name in rule.architectures})


def head(architecture: str, layers: int, **keys: int | list[bool]) -> tuple[KV, ...]:
    kvs = [make_kv("general.architecture", ValueType.STRING, architecture)]
    for name, value in {"block_count": layers, **keys}.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, list):
            kvs.append(make_kv(key, ValueType.ARRAY, value, element=ValueType.BOOL))
        else:
            kvs.append(make_kv(key, ValueType.UINT32, value))
    return tuple(kvs)


def remapped(kvs: tuple[KV, ...], layers: Sequence[int], engines: Sequence[str] = BOTH) -> Remapped:
    return remap_layers(kvs, [LayerFrom(kvs=kvs, layer=layer) for layer in layers], engines=engines)


def value(found: Remapped, key: str) -> Any:
    return next(kv.value() for kv in found.kvs if kv.key == key)


RECURRENT = "attention.recurrent_layers"


def test_whole_periods_keep_the_phase() -> None:
    found = remapped(head("qwen35", 8, full_attention_interval=4), [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7])
    assert (found.problems, len(found.remarks)) == ((), 1)


def test_an_array_is_written_where_the_engine_reads_it() -> None:
    found = remapped(head("qwen35", 8, full_attention_interval=4), [0, 1, 2, 1, 2, 3], [LLAMA_CPP])
    assert found.problems == ()
    assert value(found, f"qwen35.{RECURRENT}") == [True, True, True, True, True, False]
    assert "qwen35.attention.recurrent_layers: [True" in found.remarks[-1]
    keys = [kv.key for kv in found.kvs]
    assert keys.index(f"qwen35.{RECURRENT}") == keys.index("qwen35.full_attention_interval") + 1


def test_an_engine_that_reads_no_array_is_a_problem_with_two_ways_out() -> None:
    found = remapped(head("qwen35", 8, full_attention_interval=4), [0, 1, 2, 1, 2, 3])
    assert len(found.problems) == 1
    assert found.problems[0].startswith("ik_llama.cpp would give new layers 3, 5 another linear attention")
    assert "whole periods of 4" in found.problems[0]
    assert "--engine" in found.problems[0]


def test_mtp_layers_have_no_linear_attention() -> None:
    kvs = head("qwen35", 9, nextn_predict_layers=1, full_attention_interval=4)
    assert remapped(kvs, [0, 1, 2, 3, 8]).problems == ()
    found = remapped(kvs, [1, 2, 3, 8], [LLAMA_CPP])
    assert value(found, f"qwen35.{RECURRENT}") == [True, True, False, False]


@pytest.mark.parametrize(
    ("architecture", "period", "engines", "fits"),
    [
        ("gemma3", 6, BOTH, True),
        ("gemma3", 6, [LLAMA_CPP], True),
        ("gpt-oss", 2, BOTH, True),
        ("cohere2", 4, BOTH, True),
        ("smallthinker", 4, [LLAMA_CPP], True),
    ],
)
def test_a_window_with_a_default_period(architecture: str, period: int, engines: Sequence[str], fits: bool) -> None:
    kvs = head(architecture, 2 * period, attention__sliding_window=128)
    whole = [*range(period), *range(2 * period)]
    assert (remapped(kvs, whole, engines).problems == ()) is fits
    assert not any("sliding_window_pattern" in remark for remark in remapped(kvs, whole, engines).remarks)


def test_a_scalar_pattern_becomes_an_array_at_its_place() -> None:
    kvs = head("gemma3", 12, attention__sliding_window=128, attention__sliding_window_pattern=3, context_length=7)
    found = remapped(kvs, [0, 1, 1, 2], [LLAMA_CPP])
    assert found.problems == ()
    assert value(found, "gemma3.attention.sliding_window_pattern") == [True, True, True, False]
    assert [kv.key for kv in found.kvs] == [kv.key for kv in kvs]
    assert [kv.element_type for kv in found.kvs if kv.type is ValueType.ARRAY] == [ValueType.BOOL]


def test_no_window_no_pattern() -> None:
    assert remapped(head("olmo2", 8), [0, 2, 5], [LLAMA_CPP]).problems == ()
    assert remapped(head("olmo2", 8), [0, 2, 5], [LLAMA_CPP]).remarks == ("olmo2.block_count: 8 -> 3",)


def test_an_array_that_is_there_follows_the_layers() -> None:
    kvs = head(
        "muse-glimmer", 4, attention__sliding_window=9, attention__sliding_window_pattern=[True, True, False, True]
    )
    found = remapped(kvs, [2, 3], [LLAMA_CPP])
    assert value(found, "muse-glimmer.attention.sliding_window_pattern") == [False, True]


def test_an_array_that_ends_before_the_mtp_layers_still_does() -> None:
    pattern = [True, True, False, True]
    kvs = head(
        "exaone-moe", 5, nextn_predict_layers=1, attention__sliding_window=9, attention__sliding_window_pattern=pattern
    )
    found = remapped(kvs, [2, 3, 4], [LLAMA_CPP])
    assert found.problems == ()
    assert value(found, "exaone-moe.attention.sliding_window_pattern") == [False, True]
    whole = head(
        "exaone-moe", 4, nextn_predict_layers=1, attention__sliding_window=9, attention__sliding_window_pattern=pattern
    )
    found = remapped(whole, [2, 3], [LLAMA_CPP])
    assert value(found, "exaone-moe.attention.sliding_window_pattern") == [False, True]


def test_types_of_indexers_never_have_entries_of_mtp_layers() -> None:
    kvs = head("glm-dsa", 11, nextn_predict_layers=1, context_length=1 << 20)
    found = remapped(kvs, [0, 1, 2, 3, 2, 3, 10], [LLAMA_CPP])
    assert found.problems == ()
    assert value(found, "glm-dsa.attention.indexer.types") == [True, True, True, False, True, False]


def test_a_layer_without_a_period_has_another_way_out() -> None:
    assert "leave these layers in their places" in remapped(head("rwkv7", 4), [1, 2], [LLAMA_CPP]).problems[0]


@pytest.mark.parametrize(
    ("kvs", "layers", "said"),
    [
        (head("llama4", 8, interleave_moe_layer_step=2, attention__sliding_window=0), [0, 1, 3, 2], "experts"),
        (head("ernie4_5-moe", 8, interleave_moe_layer_step=2), [0, 1, 3, 2], "experts"),
        (head("nomic-bert-moe", 8, moe_every_n_layers=2), [0, 1, 3, 2], "experts"),
        (head("smollm3", 8), [0, 1, 2, 4], "RoPE"),
        (head("rwkv6", 12, rescale_every_n_layers=6), [0, 7], "halved activations"),
        (head("kimi-k3", 8, attn_res__block_size=4), [0, 1, 4], "residual checkpoint"),
        (head("gemma3n", 24), [*range(19), *range(20, 24)], "keys and values"),
        (head("gemma3n", 24), [*range(18), 17, *range(19, 24)], "keys and values"),
        (head("rwkv7", 4), [1, 2], "first layer's value projection"),
        (head("minimax-01", 8, full_attention_interval=8), [0, 0], "slope"),
    ],
)
def test_what_goes_by_the_number_alone_is_a_problem(kvs: tuple[KV, ...], layers: Sequence[int], said: str) -> None:
    found = remapped(kvs, layers, [LLAMA_CPP])
    assert any(f"another {said}" in problem for problem in found.problems)


def test_a_period_of_an_architecture_that_no_engine_knows() -> None:
    kvs = head("novel", 8, full_attention_interval=4)
    assert remapped(kvs, [4, 5, 6, 7]).problems == ()
    assert "move layers only by multiples of 4" in remapped(kvs, [1, 2]).problems[0]
    scalar = head("novel", 8, attention__sliding_window_pattern=2)
    assert remapped(scalar, [1, 2]).problems


@pytest.mark.parametrize(
    ("kvs", "layers", "engine", "said"),
    [
        (head("gemma3", 62), range(56), LLAMA_CPP, "attention scale"),
        (head("gemma2", 46), range(44), IK_LLAMA_CPP, "attention scale"),
        (head("deepseek2", 27), range(26), LLAMA_CPP, ""),
        (head("deepseek2", 27), range(25), LLAMA_CPP, "Lite"),
        (head("deepseek2", 47, vocab_size=154880), range(46), LLAMA_CPP, "gating"),
        (head("deepseek2", 47, vocab_size=154880, expert_gating_func=2), range(46), LLAMA_CPP, ""),
        (head("exaone4", 64), range(60), LLAMA_CPP, "sliding window"),
        (head("baichuan", 40), range(39), LLAMA_CPP, "ALiBi"),
        (head("command-r", 64), range(63), LLAMA_CPP, "norms"),
        (head("phi3", 40), range(39), IK_LLAMA_CPP, "width"),
        (head("phi3", 40, attention__sliding_window=2047), range(39), IK_LLAMA_CPP, ""),
    ],
)
def test_what_goes_by_the_number_of_layers_is_refused(
    kvs: tuple[KV, ...], layers: Sequence[int], engine: str, said: str
) -> None:
    refusals = remapped(kvs, layers, [engine]).refusals
    assert bool(refusals) is bool(said)
    assert said in "".join(refusals)


def test_every_count_rule_of_layers_has_a_case() -> None:
    tried = {"gemma2", "gemma3", "deepseek2", "exaone4", "baichuan", "command-r", "phi3"}
    others = {"llama4", "minimax-01", "eagle3", "deepseek4"}  # experts; any change; always one layer; next test
    assert {rule.architectures[0] for rule in COUNT_RULES} == tried | others


def test_an_mtp_layer_may_join_43_layers() -> None:
    """ik_llama.cpp takes 43 layers of DeepSeek 4 for the trunk alone; 44 with one MTP layer are as they should be."""
    base, donor = head("deepseek4", 43), head("deepseek4", 44, nextn_predict_layers=1)
    layers = [LayerFrom(kvs=base, layer=layer) for layer in range(43)]
    assert remap_layers(base, [*layers, LayerFrom(kvs=donor, layer=43)], engines=[IK_LLAMA_CPP]).refusals == ()


def test_counts_of_experts_are_checked_the_same_way() -> None:
    before = head("llama4", 2, expert_count=128)
    same, other = Rewrite(before, ByteOrder.LITTLE), Rewrite(head("llama4", 2, expert_count=96), ByteOrder.LITTLE)
    check_counts(same, HeadValues(before), BOTH)
    check_counts(other, HeadValues(before), BOTH)
    assert (len(same.refusals), len(other.refusals)) == (0, 2)


# --- property --------------------------------------------------------------------------------------------------------


def reading(rule: LayerRule, kvs: Sequence[KV], layer: int) -> int | None:
    return rule_value(rule, HeadValues(kvs), layer)


@given(
    data=st.data(), architecture=st.sampled_from(RULED), engines=st.sampled_from([BOTH, (LLAMA_CPP,), (IK_LLAMA_CPP,)])
)
@settings(deadline=None)
def test_without_a_complaint_every_engine_treats_every_layer_as_before(
    data: st.DataObject, architecture: str, engines: tuple[str, ...]
) -> None:
    keys = {
        key: default or 2
        for rule in LAYER_RULES
        if architecture in rule.architectures
        for key, default in rule.names.values()
    }
    keys["attention.sliding_window"] = 512
    kvs = head(architecture, 12, **{key.replace(".", "__"): max(number, 0) for key, number in keys.items()})
    layers = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12))
    found = remapped(kvs, layers, engines)
    if found.problems:
        return
    for rule in LAYER_RULES:
        if architecture in rule.architectures and rule.engine in engines:
            assert [reading(rule, found.kvs, new) for new in range(len(layers))] == [
                reading(rule, kvs, old) for old in layers
            ]


@pytest.mark.parametrize(
    ("layers", "said"),
    [([3, 7], "no layers with linear attention"), ([0, 1, 2], "no layers without linear attention"), ([0, 3], "")],
)
def test_one_kind_of_layer_alone_is_refused(layers: list[int], said: str) -> None:
    found = remapped(head("qwen35", 8, full_attention_interval=4), layers, [LLAMA_CPP])
    assert said in "".join(found.refusals)
    assert bool(found.refusals) is bool(said)


def test_layers_without_keys_are_a_kind() -> None:
    kvs = (
        *head("lfm2", 4),
        make_kv("lfm2.attention.head_count_kv", ValueType.ARRAY, [0, 2, 0, 2], element=ValueType.UINT32),
    )
    assert "no layers without attention" in remapped(kvs, [1, 3], [LLAMA_CPP]).refusals[0]
    assert remapped(kvs, [1, 2], [LLAMA_CPP]).refusals == ()


def test_layers_without_a_window_may_all_go() -> None:
    kvs = head("gemma3", 8, attention__sliding_window=8)
    assert remapped(kvs, [0, 1], [LLAMA_CPP]).refusals == ()
    assert "no layers with sliding window" in remapped(kvs, [5], [LLAMA_CPP]).refusals[0]
