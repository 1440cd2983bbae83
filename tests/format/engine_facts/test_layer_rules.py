"""The rules of layers: they compute, and name keys and architectures that their engine knows."""

from __future__ import annotations

import pytest

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.heads import ArchitectureFacts, evaluate, head_facts
from gguftool.format.engine_facts.layer_rules import (
    COUNT_RULES,
    LAYER_RULES,
    NO_LAYER_LIST,
    ONE_MTP_LAYER,
    CountRule,
    LayerRule,
    count_rules,
    layer_rules,
)

Rule = LayerRule | CountRule
RULES: tuple[Rule, ...] = (*LAYER_RULES, *COUNT_RULES)
PATTERN = "attention.sliding_window_pattern"
# Read by mainline's load_swa_pattern, which the facts do not follow.
BY_HELPER = (LLAMA_CPP, PATTERN)
# Architectures with a window that need no rule: the same in all layers, or by the array of head counts.
SAME_WINDOW = {"deepseek4", "lfm2", "phi3"}


def named(rule: Rule) -> str:
    return f"{rule.engine}, {rule.architectures[0]}: {rule.what}"


def architecture(engine: str, name: str) -> ArchitectureFacts:
    facts = head_facts(engine)
    assert facts is not None
    return facts.architectures[name]


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_computes_for_every_layer(rule: Rule) -> None:
    values = {"n_layer": 8, "n_layer_all": 9, "n_expert": 16, "n_vocab": 1000}
    values |= {name: default for name, (_, default) in rule.names.items()}
    values |= {"step": 2}
    found = [evaluate(rule.rule, (values | {"i": layer}).get) for layer in range(9)]
    assert None not in found


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_rule_is_of_architectures_that_the_engine_knows(rule: Rule) -> None:
    facts = head_facts(rule.engine)
    assert facts is not None
    assert [name for name in rule.architectures if name not in facts.architectures] == []


@pytest.mark.parametrize("rule", [rule for rule in LAYER_RULES if rule.array], ids=named)
def test_the_array_in_place_of_a_rule_is_one_that_the_engine_reads(rule: LayerRule) -> None:
    for name in rule.architectures:
        keys = {fact.name for fact in architecture(rule.engine, name).keys}
        assert f"%s.{rule.array}" in keys or (rule.engine, rule.array) == BY_HELPER, name


@pytest.mark.parametrize("engine", [LLAMA_CPP, IK_LLAMA_CPP])
def test_every_architecture_with_a_window_or_a_period_has_a_rule(engine: str) -> None:
    facts = head_facts(engine)
    assert facts is not None
    for name, one in facts.architectures.items():
        keys = {fact.name.removeprefix("%s.") for fact in one.keys}
        window = "attention.sliding_window" in keys and PATTERN not in keys and name not in SAME_WINDOW
        period = bool(keys & {"full_attention_interval", "moe_every_n_layers", "rescale_every_n_layers"})
        if window or period:
            assert layer_rules(name, [engine]), name


def test_rules_are_by_engine() -> None:
    assert {rule.engine for rule in layer_rules("gemma3", [IK_LLAMA_CPP])} == {IK_LLAMA_CPP}
    assert {rule.engine for rule in count_rules("gemma3", [LLAMA_CPP, IK_LLAMA_CPP])} == {LLAMA_CPP, IK_LLAMA_CPP}
    assert layer_rules("llama", [LLAMA_CPP, IK_LLAMA_CPP]) == ()


def test_architectures_without_a_list_of_layers_are_known_and_have_no_rules() -> None:
    facts = head_facts(LLAMA_CPP)
    assert facts is not None
    assert frozenset(facts.architectures) >= frozenset(NO_LAYER_LIST)
    assert not any(NO_LAYER_LIST.keys() & set(rule.architectures) for rule in RULES)


def test_architectures_with_one_mtp_layer_are_known() -> None:
    facts = head_facts(LLAMA_CPP)
    assert facts is not None
    assert frozenset(facts.architectures) >= ONE_MTP_LAYER
