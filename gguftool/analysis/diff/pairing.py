"""Two collections side by side: what both hold, and what only one does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Change(Enum):
    """What became of an entry on the way from A to B."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


def paired(old: Mapping[K, V], new: Mapping[K, V]) -> Iterator[tuple[K, V | None, V | None]]:
    """Yield every key with its two values, None where a side lacks it: in the order of `old`, then what `new` adds."""
    for key, value in old.items():
        yield key, value, new.get(key)
    for key, value in new.items():
        if key not in old:
            yield key, None, value


def change_of(old: object | None, new: object | None) -> Change:
    """Return the kind of change between two values of which at most one is None."""
    if old is None:
        return Change.ADDED
    return Change.REMOVED if new is None else Change.CHANGED
