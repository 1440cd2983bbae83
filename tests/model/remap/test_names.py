"""Metadata that bears tensors' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguftool.format.kv import KV, ValueType, make_kv
from gguftool.model.remap.head_values import Remapped
from gguftool.model.remap.names import bring_named, rename_in_keys

NAMES, PREC = "general.tensor_extra.name", "general.tensor_extra.prec_a4"
SHAPE = "comfy.gguf.orig_shape."


def head(names: Sequence[str], precise: Sequence[bool], **shapes: Sequence[int]) -> tuple[KV, ...]:
    return (
        make_kv(NAMES, ValueType.ARRAY, list(names), element=ValueType.STRING),
        make_kv(PREC, ValueType.ARRAY, list(precise), element=ValueType.BOOL),
        *(make_kv(SHAPE + name, ValueType.ARRAY, list(dims), element=ValueType.INT32) for name, dims in shapes.items()),
    )


HEAD = head(["a", "b", "c"], [True, False, True], a=[1, 2], b=[3])


def values(found: Remapped) -> Mapping[str, Any]:
    assert found.problems == ()
    return {kv.key: kv.value() for kv in found.kvs}


def test_nothing_renamed_is_the_same_bytes() -> None:
    for renames in ({}, {"a": ("a",)}, {"other": ("x",)}):
        assert rename_in_keys(HEAD, renames) == Remapped(kvs=HEAD)


def test_a_new_name() -> None:
    found = rename_in_keys(HEAD, {"a": ("x",)})
    assert values(found) == {NAMES: ["x", "b", "c"], PREC: [True, False, True], f"{SHAPE}x": [1, 2], f"{SHAPE}b": [3]}
    assert f"{SHAPE}a -> {SHAPE}x" in found.remarks


def test_two_tensors_that_swap_their_names() -> None:
    found = values(rename_in_keys(HEAD, {"a": ("b",), "b": ("a",)}))
    assert (found[f"{SHAPE}b"], found[f"{SHAPE}a"]) == ([1, 2], [3])
    assert dict(zip(found[NAMES], found[PREC], strict=True)) == {"b": True, "a": False, "c": True}


def test_a_tensor_that_is_gone_takes_its_entries_along() -> None:
    found = values(rename_in_keys(HEAD, {"a": ()}))
    assert found == {NAMES: ["b", "c"], PREC: [False, True], f"{SHAPE}b": [3]}


def test_a_tensor_that_is_copied_takes_them_to_each_copy() -> None:
    found = values(rename_in_keys(HEAD, {"b": ("b", "d")}))
    assert (found[NAMES], found[PREC]) == (["a", "b", "d", "c"], [True, False, False, True])
    assert found[f"{SHAPE}b"] == found[f"{SHAPE}d"] == [3]


def test_parts_that_are_fused_need_the_same_values() -> None:
    assert values(rename_in_keys(HEAD, {"a": ("q",), "c": ("q",)}))[NAMES] == ["q", "b"]
    assert "become 'q' have different values" in rename_in_keys(HEAD, {"a": ("q",), "b": ("q",)}).problems[0]


def test_lists_of_different_lengths_are_a_problem() -> None:
    found = rename_in_keys(head(["a", "b"], [True]), {"a": ("x",)})
    assert "different lengths" in found.problems[0]


def test_what_a_donor_says_of_its_tensors_comes_along() -> None:
    donor = head(["x", "y"], [False, True], x=[7])
    found = values(bring_named(HEAD, donor, {"x": ("d", "e"), "z": ("f",), "y": ()}))
    assert dict(zip(found[NAMES], found[PREC], strict=True))["e"] is False
    assert found[NAMES] == ["a", "b", "c", "d", "e"]
    assert (found[f"{SHAPE}d"], found[f"{SHAPE}e"]) == ([7], [7])


def test_a_model_without_such_keys_gets_those_of_the_donor() -> None:
    found = bring_named((), HEAD, {"b": ("d",)})
    assert values(found) == {NAMES: ["d"], PREC: [False], f"{SHAPE}d": [3]}
    assert [kv.element_type for kv in found.kvs[:2]] == [ValueType.STRING, ValueType.BOOL]


def test_nothing_said_nothing_brought() -> None:
    assert bring_named(HEAD, HEAD, {"z": ("d",)}) == Remapped(kvs=HEAD)
    assert bring_named(HEAD, (), {"a": ("d",)}) == Remapped(kvs=HEAD)


def test_a_donor_with_other_properties_is_a_problem() -> None:
    other = make_kv("general.tensor_extra.novel", ValueType.ARRAY, [1, 2, 3], element=ValueType.UINT32)
    assert "has other properties" in bring_named(HEAD, (HEAD[0], other), {"a": ("d",)}).problems[0]


def test_names_that_are_no_list_of_texts_are_left_alone() -> None:
    odd = (make_kv(NAMES, ValueType.ARRAY, [1, 2], element=ValueType.UINT32), make_kv(PREC, ValueType.STRING, "a"))
    assert rename_in_keys(odd, {"a": ("x",)}) == Remapped(kvs=odd)
    assert rename_in_keys(odd[1:], {"a": ("x",)}) == Remapped(kvs=odd[1:])
