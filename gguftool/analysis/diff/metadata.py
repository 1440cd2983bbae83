"""The metadata of two models side by side: entries added, removed, changed, and where long ones differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gguftool.analysis.diff.tensors import Change, change_of, paired
from gguftool.analysis.diff.text import TextDifference, text_difference
from gguftool.format.kv import KV, ValueType
from gguftool.format.values import differing_entries, entry_value, in_little_endian
from gguftool.record import record

_ARRAY_SHOWN = 8  # elements of an added or removed array that a report holds
_ENTRIES_SHOWN = 8  # differing entries of a changed array
_LONG_TEXT = 72  # characters; two of them still fit a line


@record
class KVSide:
    """An entry on one side; `value` holds at most the first 8 elements of an array, `count` is its length."""

    type: str
    element_type: str | None
    count: int
    value: Any
    truncated: bool


@record
class EntryDifference:
    """One differing element of an array; `index` counts from 0, as token ids do."""

    index: int
    old: Any
    new: Any


@record
class ArrayDifference:
    """Two arrays of one element type: the number of `differing` entries up to the shorter end, and the first few."""

    old_count: int
    new_count: int
    differing: int
    entries: tuple[EntryDifference, ...]


@record
class KVChange:
    """One key; `occurrence` is more than 1 only for a key that occurs in the file more than once.

    `array` is set for changed arrays of one element type, `text` for changed strings if one is long.
    """

    key: str
    occurrence: int
    change: Change
    old: KVSide | None
    new: KVSide | None
    array: ArrayDifference | None
    text: TextDifference | None


def diff_kvs(old: Iterable[KV], new: Iterable[KV], wanted: Callable[[str], bool]) -> tuple[KVChange, ...]:
    """Compare the entries with `wanted` keys; return those that differ.

    Values are compared as bytes, in little-endian order if the files' byte orders differ; equal values are never
    decoded.
    """
    pairs = paired(_by_key(old, wanted), _by_key(new, wanted))
    return tuple(
        _change(key, occurrence, left, right) for (key, occurrence), left, right in pairs if not _same(left, right)
    )


def _by_key(kvs: Iterable[KV], wanted: Callable[[str], bool]) -> Mapping[tuple[str, int], KV]:
    found: dict[tuple[str, int], KV] = {}
    counts: dict[str, int] = {}
    for kv in kvs:
        if wanted(kv.key):
            counts[kv.key] = counts.get(kv.key, 0) + 1
            found[kv.key, counts[kv.key]] = kv
    return found


def _same(old: KV | None, new: KV | None) -> bool:
    if old is None or new is None or old.type is not new.type or len(old.raw) != len(new.raw):
        return False
    if old.byte_order is new.byte_order:
        return old.raw == new.raw
    return in_little_endian(old).raw == in_little_endian(new).raw


def _change(key: str, occurrence: int, old: KV | None, new: KV | None) -> KVChange:
    array = text = None
    if old is not None and new is not None and old.type is new.type:
        if old.type is ValueType.STRING:
            text = _text(old.value(), new.value())
        elif old.type is ValueType.ARRAY and old.element_type is new.element_type:
            array = _array(in_little_endian(old), in_little_endian(new))
    return KVChange(
        key=key,
        occurrence=occurrence,
        change=change_of(old, new),
        old=_side(old),
        new=_side(new),
        array=array,
        text=text,
    )


def _side(kv: KV | None) -> KVSide | None:
    if kv is None:
        return None
    is_array = kv.type is ValueType.ARRAY
    return KVSide(
        type=kv.type.name,
        element_type=kv.element_type.name if is_array else None,
        count=kv.count,
        value=kv.value(_ARRAY_SHOWN),
        truncated=is_array and kv.count > _ARRAY_SHOWN,
    )


def _text(old: str, new: str) -> TextDifference | None:
    is_long = max(len(old), len(new)) > _LONG_TEXT or "\n" in old or "\n" in new
    return text_difference(old, new) if is_long else None


def _array(old: KV, new: KV) -> ArrayDifference:
    differing = 0
    entries = []
    for index, left, right in differing_entries(old, new):
        differing += 1
        if differing <= _ENTRIES_SHOWN:
            entries.append(EntryDifference(index=index, old=entry_value(old, left), new=entry_value(new, right)))
    return ArrayDifference(old_count=old.count, new_count=new.count, differing=differing, entries=tuple(entries))
