"""Metadata side by side: the entry of each key in several models, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence

from gguftool.analysis.dump import KVEntry, kv_entry
from gguftool.format.kv import KV
from gguftool.model.model import Model
from gguftool.model.opening import ModelLike, as_models
from gguftool.record import record

ARRAY_LIMIT = 8  # elements of an array to show; whole arrays are compared


@record
class KeyRow:
    """One key: its entry in each model, None if a model lacks it; `differs` compares types and whole values."""

    key: str
    entries: tuple[KVEntry | None, ...]
    differs: bool


def metadata_rows(models: ModelLike | Sequence[ModelLike], array_limit: int = ARRAY_LIMIT) -> tuple[KeyRow, ...]:
    """List all keys of `models`, in order of first occurrence; if a key occurs twice in a model, the first counts.

    `array_limit` cuts the arrays that are shown, not those that are compared. Opens paths, neighbours together, and
    raises errors as `open_models` does.
    """
    sides = [_first_entries(model) for model in as_models(models)]
    return tuple(_row(key, [side.get(key) for side in sides], array_limit) for key in dict.fromkeys(_keys(sides)))


def _first_entries(model: Model) -> dict[str, tuple[int, KV]]:
    entries: dict[str, tuple[int, KV]] = {}
    for index, kv in enumerate(model.kvs, start=1):
        entries.setdefault(kv.key, (index, kv))
    return entries


def _keys(sides: Sequence[dict[str, tuple[int, KV]]]) -> list[str]:
    return [key for side in sides for key in side]


def _row(key: str, found: Sequence[tuple[int, KV] | None], limit: int) -> KeyRow:
    return KeyRow(
        key=key,
        entries=tuple(one and kv_entry(*one, limit) for one in found),
        differs=any(not _same(found[0], other) for other in found[1:]),
    )


def _same(one: tuple[int, KV] | None, other: tuple[int, KV] | None) -> bool:
    if one is None or other is None:
        return one is other
    a, b = one[1], other[1]
    if a.type is not b.type:
        return False
    return a.raw == b.raw if a.byte_order is b.byte_order else bool(a.value() == b.value())
