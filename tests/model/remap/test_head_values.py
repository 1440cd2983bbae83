"""Changes of metadata in words."""

from __future__ import annotations

import pytest

from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.model.remap.head_values import Rewrite, change, runs, shown

U32 = ValueType.UINT32


def array(count: int, start: int = 0) -> KV:
    return make_kv("a", ValueType.ARRAY, list(range(start, start + count)), element=U32)


@pytest.mark.parametrize(
    ("kv", "text"),
    [
        (make_kv("a", U32, 7), "7"),
        (make_kv("a", ValueType.STRING, "\x1b[31m"), "\\x1b[31m"),
        (array(8), "[0, 1, 2, 3, 4, 5, 6, 7]"),
        (array(9), "[0, 1, 2, 3, 4, 5, 6, 7, ...] (9 entries)"),
    ],
)
def test_values_in_words(kv: KV, text: str) -> None:
    assert shown(kv) == text


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (make_kv("a", U32, 7), make_kv("a", U32, 8), "7 -> 8"),
        (array(2), array(1), "[0, 1] -> [0]"),
        (array(8), array(8, 1), "[0, 1, 2, 3, 4, 5, 6, 7] -> [1, 2, 3, 4, 5, 6, 7, 8]"),
        (array(9), array(7), "9 -> 7 entries"),
        (array(9), array(9, 1), "9 entries, rearranged"),
        (make_kv("a", U32, 7), array(1), "7 -> [0]"),
    ],
)
def test_changes_in_words(old: KV, new: KV, text: str) -> None:
    assert change(old, new) == text


def test_runs_of_numbers() -> None:
    assert runs([]) == ""
    assert runs([3]) == "3"
    assert runs([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"


def test_new_keys_go_behind_the_key_that_they_belong_to() -> None:
    out = Rewrite([make_kv("a", U32, 1), make_kv("b", U32, 2)], ByteOrder.LITTLE)
    out.number("c", 3, after="a")
    out.number("d", 4, after="no such key")
    out.number("b", 2)
    assert [kv.key for kv in out.kvs] == ["a", "c", "b", "d"]
    assert out.remarks == ["c: 3 (new)", "d: 4 (new)"]


def test_numbers_keep_their_type_and_byte_order() -> None:
    out = Rewrite([make_kv("a", ValueType.UINT64, 1, byte_order=ByteOrder.BIG)], ByteOrder.BIG)
    out.number("a", 3)
    assert (out.kvs[0].type, out.kvs[0].raw) == (ValueType.UINT64, (3).to_bytes(8, "big"))


def test_removed_keys_are_said() -> None:
    out = Rewrite([make_kv("a", U32, 1)], ByteOrder.LITTLE)
    out.remove("a")
    out.remove("b")
    assert (out.kvs, out.remarks) == ((), ["a: 1 (removed)"])
