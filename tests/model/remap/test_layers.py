"""Metadata for a new list of layers: identities, composition, and a case for each kind of key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.layer_keys import LAYER_KEYS, KeyKind, Length, full_key
from gguftool.format.engine_facts.layer_rules import NO_LAYER_LIST
from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.remap.head_values import Remapped
from gguftool.model.remap.layers import remap_layers
from gguftool.model.remap.new_layers import LayerFrom

Kvs = tuple[KV, ...]
BOTH = (LLAMA_CPP, IK_LLAMA_CPP)
U32, F32, BOOL = ValueType.UINT32, ValueType.FLOAT32, ValueType.BOOL


def array(key: str, values: Sequence[Any], element: ValueType = U32) -> KV:
    return make_kv(key, ValueType.ARRAY, list(values), element=element)


def head(architecture: str, layers: int, mtp: int | None = None, **keys: int | float | Sequence[Any]) -> Kvs:
    """A head with a count of layers; underscores in the names of `keys` that are doubled stand for dots."""
    kvs = [make_kv("general.architecture", ValueType.STRING, architecture)]
    kvs.append(make_kv(f"{architecture}.block_count", U32, layers))
    if mtp is not None:
        kvs.append(make_kv(f"{architecture}.nextn_predict_layers", U32, mtp))
    for name, value in keys.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        if isinstance(value, int | float):
            kvs.append(make_kv(key, F32 if isinstance(value, float) else U32, value))
        else:
            kind = BOOL if isinstance(value[0], bool) else F32 if isinstance(value[0], float) else U32
            kvs.append(array(key, value, kind))
    kvs.append(make_kv("general.name", ValueType.STRING, "last"))
    return tuple(kvs)


def remapped(kvs: Kvs, layers: Sequence[int], engines: Sequence[str] = BOTH) -> Remapped:
    return remap_layers(kvs, [LayerFrom(kvs=kvs, layer=layer) for layer in layers], engines=engines)


def values(kvs: Sequence[KV]) -> Mapping[str, Any]:
    return {kv.key.split(".", 1)[1]: kv.value() for kv in kvs}


def fine(found: Remapped) -> Mapping[str, Any]:
    """The values of a result without a complaint."""
    assert (found.problems, found.refusals, found.warnings) == ((), (), ())
    return values(found.kvs)


# --- properties ------------------------------------------------------------------------------------------------------

PER_LAYER = [row for row in LAYER_KEYS if row.kind is KeyKind.PER_LAYER and not row.key.startswith(".")]
# Architectures without rules: there every list of layers is possible.
FREE = ("llama", "deepseek32", "gemma4", "qwen3moe", "an-unknown-one")


@st.composite
def heads(draw: st.DrawFn) -> Kvs:
    """Heads with arrays, numbers and counts of layers."""
    architecture = draw(st.sampled_from(FREE))
    trunk, mtp = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    keys: dict[str, Any] = {}
    for row in draw(st.lists(st.sampled_from(PER_LAYER), max_size=6, unique_by=lambda row: row.key)):
        length = trunk if row.length is Length.TRUNK else trunk + mtp
        entries = draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))
        is_array = row.period or draw(st.booleans())
        keys[row.key.replace(".", "__")] = entries if is_array else entries[0]
    if draw(st.booleans()):
        keys["leading_dense_block_count"] = draw(st.integers(0, trunk))
    return head(architecture, trunk + mtp, mtp if mtp or draw(st.booleans()) else None, **keys)


def layer_lists(kvs: Kvs) -> st.SearchStrategy[list[int]]:
    """Lists of layers of a head, MTP layers last."""
    known = values(kvs)
    total, mtp = known["block_count"], known.get("nextn_predict_layers", 0)
    trunk = st.lists(st.integers(0, total - mtp - 1), min_size=1, max_size=8)
    tail = st.lists(st.integers(total - mtp, total - 1), max_size=2) if mtp else st.just([])
    return st.tuples(trunk, tail).map(lambda parts: parts[0] + parts[1])


@given(kvs=heads())
def test_the_same_layers_give_the_same_bytes(kvs: Kvs) -> None:
    found = remapped(kvs, range(values(kvs)["block_count"]))
    assert found == Remapped(kvs=kvs)


@given(data=st.data())
@settings(deadline=None)
def test_two_lists_one_after_the_other_are_their_composition(data: st.DataObject) -> None:
    kvs = data.draw(heads())
    first = data.draw(layer_lists(kvs))
    once = remapped(kvs, first, engines=())
    if once.problems:
        return
    second = data.draw(layer_lists(once.kvs))
    twice = remapped(once.kvs, second, engines=())
    direct = remapped(kvs, [first[layer] for layer in second], engines=())
    assert (twice.problems == ()) == (direct.problems == ())
    if not twice.problems:
        assert twice.kvs == direct.kvs


@given(kvs=heads())
def test_mtp_dropped_and_taken_back_gives_the_same_bytes(kvs: Kvs) -> None:
    known = values(kvs)
    trunk = known["block_count"] - known.get("nextn_predict_layers", 0)
    without = remapped(kvs, range(trunk)).kvs
    own = [LayerFrom(kvs=without, layer=layer) for layer in range(trunk)]
    back = remap_layers(
        without, own + [LayerFrom(kvs=kvs, layer=layer) for layer in range(trunk, known["block_count"])]
    )
    assert back.problems == ()
    assert back.kvs == kvs


@given(data=st.data())
@settings(deadline=None)
def test_every_layer_keeps_its_entries(data: st.DataObject) -> None:
    kvs = data.draw(heads())
    layers = data.draw(layer_lists(kvs))
    found = remapped(kvs, layers, engines=())
    if found.problems:
        return
    old, new = values(kvs), values(found.kvs)
    trunk = new["block_count"] - new.get("nextn_predict_layers", 0)
    for row in PER_LAYER:
        if isinstance(old.get(row.key), list):
            wanted = layers[:trunk] if row.length is Length.TRUNK else layers
            assert new[row.key] == [old[row.key][layer] for layer in wanted]


# --- a case for each kind --------------------------------------------------------------------------------------------


def test_counts_of_layers() -> None:
    assert fine(remapped(head("llama", 4), [0, 1, 1, 2, 3]))["block_count"] == 5
    mtp = head("deepseek32", 4, 1)
    found = fine(remapped(mtp, [0, 2]))
    assert (found["block_count"], found["nextn_predict_layers"]) == (2, 0)


def test_every_change_is_a_remark() -> None:
    kvs = head("deepseek32", 4, 1, attention__head_count_kv=[1, 2, 3, 4])
    assert remapped(kvs, [0, 2]).remarks == (
        "deepseek32.block_count: 4 -> 2",
        "deepseek32.nextn_predict_layers: 1 -> 0",
        "deepseek32.attention.head_count_kv: [1, 2, 3, 4] -> [1, 3]",
    )


@pytest.mark.parametrize("row", PER_LAYER, ids=lambda row: row.key)
def test_every_array_by_layer_is_rearranged(row: Any) -> None:
    kvs = (
        *head("deepseek32", 4),
        array(full_key(row, "deepseek32"), [5, 6, 7, 8]),
    )
    found = values(remapped(kvs, [3, 0, 0], engines=()).kvs)
    assert found[row.key] == [8, 5, 5]


def test_arrays_keep_their_type() -> None:
    kvs = head("gemma4", 3, attention__sliding_window_pattern=[True, False, True], swiglu_clamp_exp=[0.5, 1.5, 2.5])
    found = remapped(kvs, [2, 1])
    assert [kv.element_type for kv in found.kvs if kv.type is ValueType.ARRAY] == [BOOL, F32]
    assert fine(found)["swiglu_clamp_exp"] == [2.5, 1.5]


def test_entries_of_layers_that_are_not_there_are_left_out() -> None:
    kvs = head("deepseek4", 4, attention__compress_ratios=[0, 4, 128, 4, 0])
    assert fine(remapped(kvs, [0, 3], [LLAMA_CPP]))["attention.compress_ratios"] == [0, 4]
    assert remapped(kvs, [0, 1, 2, 3]).kvs == kvs


def test_arrays_without_entries_for_mtp_layers_stay_so() -> None:
    kvs = head("glm5-next", 4, 1, attention__head_count_kv=[1, 2, 3])
    assert fine(remapped(kvs, [2, 0, 3]))["attention.head_count_kv"] == [3, 1]


def test_layers_that_are_dense_are_counted_from_the_front() -> None:
    kvs = head("deepseek2", 6, leading_dense_block_count=2)
    assert fine(remapped(kvs, [1, 2, 3, 4, 5], [LLAMA_CPP]))["leading_dense_block_count"] == 1
    assert fine(remapped(kvs, [2, 3], [LLAMA_CPP]))["leading_dense_block_count"] == 0
    assert fine(remapped(kvs, [0, 0, 1, 3], [LLAMA_CPP]))["leading_dense_block_count"] == 3


def test_a_dense_layer_behind_others_is_a_problem() -> None:
    found = remapped(head("deepseek2", 6, leading_dense_block_count=2), [0, 2, 1])
    assert "deepseek2.leading_dense_block_count" in found.problems[0]
    assert "new layers 2 " in found.problems[0]


def test_layers_that_share_keys_and_values_are_counted_from_the_back() -> None:
    kvs = head("gemma4", 6, attention__shared_kv_layers=2, attention__sliding_window_pattern=[1, 0, 1, 0, 1, 0])
    assert fine(remapped(kvs, [0, 1, 2, 3, 5]))["attention.shared_kv_layers"] == 1
    assert "come before others" in remapped(kvs, [0, 5, 1, 2, 3]).problems[0]
    assert "not be the same two" in remapped(kvs, [0, 1, 3, 4, 5]).refusals[0]


def test_images_enter_the_first_layers() -> None:
    kvs = head("qwen3vl", 6, n_deepstack_layers=2)
    assert fine(remapped(kvs, [0, 1, 4, 4, 5]))["n_deepstack_layers"] == 2
    assert "layers 0-1" in remapped(kvs, [0, 2, 3]).refusals[0]


def test_numbers_of_layers_follow_them() -> None:
    kvs = head("openpangu", 5, swa_layers=[1, 3, 4], sliding_window_list=[10, 30, 40])
    found = fine(remapped(kvs, [3, 0, 3, 1]))
    assert (found["swa_layers"], found["sliding_window_list"]) == ([0, 2, 3], [30, 30, 10])


def test_the_one_layer_with_ngrams_must_stay() -> None:
    kvs = head("qwen4exp", 8, ple__layers=[1])
    assert fine(remapped(kvs, [0, 1, 2, 3], [LLAMA_CPP]))["ple.layers"] == [1]
    assert "would list none" in remapped(kvs, [4, 5, 6, 7], [LLAMA_CPP]).problems[0]


def test_the_layers_of_another_model_stay() -> None:
    found = remapped(head("dflash", 4, target_layers=[2, 9, 18, 27]), [0, 1])
    assert "numbers layers of the target model" in found.warnings[0]
    assert values(found.kvs)["target_layers"] == [2, 9, 18, 27]


def test_keys_of_other_stacks_and_other_arrays_stay() -> None:
    kvs = head("qwen2vl", 4, rope__dimension_sections=[1, 2, 3, 4], posnet__block_count=4)
    found = fine(remapped(kvs, [0, 1]))
    assert (found["rope.dimension_sections"], found["posnet.block_count"]) == ([1, 2, 3, 4], 4)


@pytest.mark.parametrize("length", [4, 3])
def test_an_unknown_array_as_long_as_the_layers_stops_the_run(length: int) -> None:
    found = remapped(head("deepseek32", 4, 1, novel=[7] * length), [0, 1])
    assert "deepseek32.novel" in found.problems[0]
    assert remapped(head("deepseek32", 4, 1, novel=[7, 7]), [0, 1]).problems == ()


@pytest.mark.parametrize("architecture", sorted(NO_LAYER_LIST))
def test_an_architecture_with_other_lists_of_layers_is_left_alone(architecture: str) -> None:
    kvs = head(architecture, 4)
    assert f"layers of '{architecture}' cannot be listed" in remapped(kvs, [0, 1]).problems[0]
    assert remapped(kvs, [0, 1, 2, 3]).problems == ()


# --- donors ----------------------------------------------------------------------------------------------------------


def mixed(base: Kvs, donor: Kvs, *layers: tuple[Kvs, int], engines: Sequence[str] = BOTH) -> Remapped:
    assert base is not donor
    return remap_layers(base, [LayerFrom(kvs=kvs, layer=layer) for kvs, layer in layers], engines=engines)


def test_an_mtp_layer_of_a_donor_brings_its_keys() -> None:
    base = head("deepseek32", 2, attention__head_count_kv=[1, 2])
    donor = head("deepseek32", 3, 1, attention__head_count_kv=[1, 2, 9])
    found = fine(mixed(base, donor, (base, 0), (base, 1), (donor, 2)))
    assert (found["block_count"], found["nextn_predict_layers"], found["attention.head_count_kv"]) == (3, 1, [1, 2, 9])


def test_numbers_that_differ_become_an_array_where_engines_read_one() -> None:
    base, donor = head("llama", 2, feed_forward_length=64), head("llama", 2, feed_forward_length=96)
    assert fine(mixed(base, donor, (base, 0), (donor, 1)))["feed_forward_length"] == [64, 96]
    assert fine(mixed(base, donor, (donor, 0), (donor, 1)))["feed_forward_length"] == 96


def test_numbers_that_differ_are_a_problem_where_an_engine_reads_one() -> None:
    base, donor = head("qwen3moe", 2, expert_used_count=2), head("qwen3moe", 2, expert_used_count=4)
    layers = (base, 0), (donor, 1)
    assert fine(mixed(base, donor, *layers, engines=[LLAMA_CPP]))["expert_used_count"] == [2, 4]
    assert "ik_llama.cpp read one number" in mixed(base, donor, *layers).problems[0]


def test_an_engine_that_does_not_read_a_key_does_not_mind() -> None:
    base, donor = head("llama", 2, swiglu_clamp_exp=1.0), head("llama", 2, swiglu_clamp_exp=2.0)
    assert fine(mixed(base, donor, (base, 0), (donor, 1)))["swiglu_clamp_exp"] == [1.0, 2.0]


def test_a_key_that_only_some_models_have_is_a_problem() -> None:
    base, donor = head("llama", 2), head("llama", 2, feed_forward_length=96)
    found = mixed(base, donor, (base, 0), (donor, 1))
    assert "llama.feed_forward_length: new layers 0 come from a model without this key" in found.problems[0]


def test_an_absent_limit_is_no_limit() -> None:
    base, donor = head("step35", 2), head("step35", 2, swiglu_clamp_exp=[0.0, 7.0])
    assert fine(mixed(base, donor, (base, 0), (donor, 1)))["swiglu_clamp_exp"] == [0.0, 7.0]


def test_two_mtp_layers_are_more_than_one_engine_runs() -> None:
    base, donor = head("deepseek2", 3, 1), head("deepseek2", 3, 1, leading_dense_block_count=0)
    found = mixed(base, donor, (base, 0), (base, 1), (base, 2), (donor, 2), engines=[LLAMA_CPP])
    assert "2 MTP layers" in found.warnings[0]


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_all_problems_at_once() -> None:
    base, other = head("llama", 3, 1), head("qwen2", 3)
    found = mixed(base, other, (base, 2), (base, 7), (other, 0))
    assert len(found.problems) == 3
    assert found.kvs == base
    for part, problem in zip(("'qwen2'", "MTP layer 2", "layer 7 is out of range"), found.problems, strict=True):
        assert part in problem


def test_the_number_behind_the_last_layer_is_out_of_range() -> None:
    assert remapped(head("llama", 3), [0, 3]).problems == ("layer 3 is out of range: there are 3, numbered from 0",)


def test_no_layers_and_no_architecture() -> None:
    assert remapped(head("llama", 3), []).problems == ("no layers are left; keep at least one",)
    assert "general.architecture is absent" in remapped(head("llama", 3)[1:], [0]).problems[0]


def test_an_array_of_a_wrong_length_is_a_problem() -> None:
    found = remapped(head("llama", 3, attention__head_count_kv=[1, 2]), [0, 1])
    assert "has 2 entries, but there are 3 layers" in found.problems[0]


@pytest.mark.parametrize("count", [0, 2**32 - 1])
def test_a_hostile_count_of_layers_costs_nothing(count: int) -> None:
    kvs = head("llama", count, count)
    assert remapped(kvs, [0]).problems
