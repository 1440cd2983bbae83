"""Metadata for a selection of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.format.engine_facts.engines import LLAMA_CPP
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.remap.experts import expert_keys, kept_chunks
from gguftool.model.remap.head_values import Remapped


def head(architecture: str = "qwen3moe", **keys: int | list[int]) -> tuple[KV, ...]:
    kvs = [make_kv("general.architecture", ValueType.STRING, architecture)]
    for name, value in keys.items():
        if isinstance(value, list):
            kvs.append(make_kv(f"{architecture}.{name}", ValueType.ARRAY, value, element=ValueType.UINT32))
        else:
            kvs.append(make_kv(f"{architecture}.{name}", ValueType.UINT32, value))
    return tuple(kvs)


def values(found: Remapped) -> Mapping[str, Any]:
    assert (found.problems, found.refusals) == ((), ())
    return {kv.key.split(".", 1)[1]: kv.value() for kv in found.kvs}


MOE = head(expert_count=8, expert_used_count=4)


@given(st.permutations(range(8)))
def test_a_permutation_changes_nothing(order: Sequence[int]) -> None:
    assert expert_keys(MOE, {0: order, 1: range(8)}) == Remapped(kvs=MOE)


def test_fewer_and_more_experts() -> None:
    found = expert_keys(MOE, {0: [1, 2, 3, 4, 5], 1: [0, 2, 4, 6, 7]})
    assert values(found)["expert_count"] == 5
    assert found.remarks == ("qwen3moe.expert_count: 8 -> 5",)
    assert values(expert_keys(MOE, {0: [*range(8), *range(8)]}))["expert_count"] == 16


def test_no_more_experts_are_used_than_there_are() -> None:
    found = expert_keys(MOE, {0: [1, 2]})
    assert values(found)["expert_used_count"] == 2
    assert "qwen3moe.expert_used_count: 4 -> 2" in found.remarks
    by_layer = head(expert_count=8, expert_used_count=[4, 1, 3])
    assert values(expert_keys(by_layer, {0: [1, 2]}))["expert_used_count"] == [2, 1, 2]


def test_what_the_caller_sets_is_not_judged() -> None:
    found = expert_keys(MOE, {0: [1, 2]}, given={"qwen3moe.expert_used_count"})
    assert values(found)["expert_used_count"] == 4


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({0: [0, 8]}, "layer 0: experts 8 are out of range; there are 8"),
        ({0: [0, 1], 1: [0]}, "layers would keep 1, 2 experts"),
        ({0: []}, "no experts are left"),
        ({}, "no experts are left"),
    ],
)
def test_wrong_lists(kept: Mapping[int, Sequence[int]], said: str) -> None:
    found = expert_keys(MOE, kept)
    assert found.kvs == MOE
    assert said in found.problems[0]


def test_a_model_without_experts() -> None:
    assert "the model has no experts" in expert_keys(head("llama"), {0: [0]}).problems[0]


# --- groups ----------------------------------------------------------------------------------------------------------

GROUPED = head("deepseek2", expert_count=16, expert_used_count=2, expert_group_count=4, expert_group_used_count=2)
THREE_OF_EACH = [0, 1, 2, 6, 5, 4, 9, 10, 11, 12, 14, 15]


def test_equal_numbers_of_each_group_in_their_order() -> None:
    assert values(expert_keys(GROUPED, {0: THREE_OF_EACH}, engines=[LLAMA_CPP]))["expert_count"] == 12


def test_experts_that_leave_their_group_are_refused_with_a_way_out() -> None:
    found = expert_keys(GROUPED, {0: range(12), 3: THREE_OF_EACH}, engines=[LLAMA_CPP])
    assert found.problems == ()
    assert found.refusals[0].startswith("experts of layers 0 leave their groups")
    assert "equal numbers of each group of 4" in found.refusals[0]


@pytest.mark.parametrize("count", [6, 4])
def test_groups_that_no_longer_divide_are_a_problem_with_a_way_out(count: int) -> None:
    found = expert_keys(GROUPED, {0: range(count)}, engines=[LLAMA_CPP])
    assert "do not divide into that many groups" in found.problems[0]
    assert "--set deepseek2.expert_group_count=u32:1" in found.problems[0]
    given_key = {"deepseek2.expert_group_count"}
    assert expert_keys(GROUPED, {0: range(count)}, engines=[LLAMA_CPP], given=given_key).problems == ()


def test_chunk_experts_go_with_whole_groups_of_neighbours() -> None:
    grove = head("grovemoe", expert_count=8, expert_used_count=2, experts_per_group=2)
    assert values(expert_keys(grove, {0: [4, 5, 0, 1]}))["expert_count"] == 4
    assert kept_chunks([4, 5, 0, 1], 2) == (2, 0)
    for broken in ([4, 0, 5, 1], [1, 2, 3, 4], [5, 4, 0, 1]):
        assert "share a chunk expert" in expert_keys(grove, {0: broken}).problems[0]


def test_an_engine_that_goes_by_the_number_of_experts() -> None:
    maverick = head("llama4", expert_count=128, expert_used_count=1)
    assert "norms of queries and keys" in expert_keys(maverick, {0: range(96)}, engines=[LLAMA_CPP]).refusals[0]


def test_groups_may_change_places_as_wholes() -> None:
    order = [*range(4, 8), *range(4), *range(8, 16)]
    assert expert_keys(GROUPED, {0: order}, engines=[LLAMA_CPP]).refusals == ()
    twice = [*range(4), *range(4), *range(8, 16)]
    assert "leave their groups" in expert_keys(GROUPED, {0: twice}, engines=[LLAMA_CPP]).refusals[0]
