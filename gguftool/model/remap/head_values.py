"""Values of a model's metadata under the names of rules and tables, and the result of changing some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from gguftool.errors import printable
from gguftool.format.engine_facts.heads import Value, evaluate
from gguftool.format.engine_facts.layer_keys import LayerKey, full_key
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType, make_kv
from gguftool.record import record, replace

MOST_ENTRIES: Final = 1 << 16  # decoded from an array by layer; engines take 512 layers
_SHOWN: Final = 8  # entries of an array in a remark


@record
class Remapped:
    """Metadata after an operation.

    `remarks` describe every change; `warnings` may matter; `refusals` are results that would load but compute something
    else (`--anyway` may allow them); `problems` make the operation impossible.
    """

    kvs: tuple[KV, ...]
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class HeadValues:
    """The metadata of one model, decoded where needed."""

    def __init__(self, kvs: Sequence[KV]) -> None:
        self.kvs: dict[str, KV] = {}
        for kv in kvs:
            self.kvs.setdefault(kv.key, kv)
        self._decoded: dict[str, Any] = {}

    @cached_property
    def architecture(self) -> str:
        """The value of `general.architecture`; empty if there is none."""
        kv = self.kvs.get("general.architecture")
        return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else ""

    def of(self, row: LayerKey) -> KV | None:
        """The entry under the key of `row`, or None."""
        return self.kvs.get(full_key(row, self.architecture))

    def value(self, kv: KV) -> Any:
        """The decoded value; for arrays, at most `MOST_ENTRIES` entries."""
        if kv.key not in self._decoded:
            self._decoded[kv.key] = kv.value(MOST_ENTRIES)
        return self._decoded[kv.key]

    def number(self, key: str, default: int) -> int:
        """The integer under the architecture's `key`, or `default`."""
        kv = self.kvs.get(f"{self.architecture}.{key}")
        return int(self.value(kv)) if kv is not None and kv.type in INTEGERS else default

    @cached_property
    def layers(self) -> int:
        """The number of layers, MTP layers included."""
        return self.number("block_count", 0)

    @cached_property
    def trunk(self) -> int:
        """The number of layers without MTP layers."""
        return self.layers - min(self.number("nextn_predict_layers", 0), self.layers)

    @cached_property
    def tokens(self) -> int | None:
        """The size of the vocabulary, None if unknown."""
        kv = self.kvs.get(f"{self.architecture}.vocab_size")
        if kv is not None and kv.type in INTEGERS:
            return int(kv.value())
        listed = self.kvs.get("tokenizer.ggml.tokens")
        return listed.count if listed is not None and listed.type is ValueType.ARRAY else None

    def evaluate(self, rule: str, names: Mapping[str, tuple[str, int]], layer: int = 0) -> Value:
        """Compute `rule` for `layer`; None if it depends on an unknown value."""

        def named(name: str) -> Value:
            if name in names:
                return self.number(*names[name])
            known = {
                "i": layer,
                "n_layer": self.trunk,
                "n_layer_all": self.layers,
                "n_expert": self.number("expert_count", 0),
                "n_vocab": self.tokens,
            }
            return known.get(name)

        return evaluate(rule, named)


class Rewrite:
    """Collects changes of metadata, in the order of the keys, with a remark for each."""

    def __init__(self, kvs: Sequence[KV], byte_order: ByteOrder) -> None:
        self._kvs = list(kvs)
        self._places = self._placed()
        self.byte_order = byte_order
        self.remarks: list[str] = []
        self.warnings: list[str] = []
        self.refusals: list[str] = []
        self.problems: list[str] = []

    @property
    def kvs(self) -> tuple[KV, ...]:
        """The metadata with all changes so far."""
        return tuple(self._kvs)

    def result(self) -> Remapped:
        """All changes, with their remarks, warnings and problems."""
        return Remapped(
            kvs=self.kvs,
            remarks=tuple(self.remarks),
            warnings=tuple(self.warnings),
            refusals=tuple(self.refusals),
            problems=tuple(self.problems),
        )

    def put(self, kv: KV, *, after: str = "") -> None:
        """Replace the entry of that key, or add it after the key `after`; no remark if nothing changes."""
        index = self._index(kv.key)
        if index is None:
            self._insert(kv, self._index(after))
            self.remarks.append(f"{printable(kv.key, 80)}: {shown(kv)} (new)")
        elif (self._kvs[index].type, self._kvs[index].raw) != (kv.type, kv.raw):
            self.remarks.append(f"{printable(kv.key, 80)}: {change(self._kvs[index], kv)}")
            self._kvs[index] = kv

    def number(self, key: str, value: int, *, after: str = "") -> None:
        """Set the integer under `key`; it keeps its type."""
        index = self._index(key)
        kind = self._kvs[index].type if index is not None else ValueType.UINT32
        self.put(make_kv(key, kind, value, byte_order=self.byte_order), after=after)

    def array(self, key: str, values: Sequence[Any], element: ValueType, *, after: str = "") -> None:
        """Set the array under `key`."""
        kv = make_kv(key, ValueType.ARRAY, list(values), element=element, byte_order=self.byte_order)
        self.put(kv, after=after)

    def remove(self, key: str) -> None:
        """Remove `key`, if it exists."""
        index = self._index(key)
        if index is not None:
            self.remarks.append(f"{printable(key, 80)}: {shown(self._kvs[index])} (removed)")
            del self._kvs[index]
            self._places = self._placed()

    def rekey(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Give entries new keys, all at once: no new key removes an entry, several new keys copy it."""
        changed = {old: new for old, new in keys.items() if tuple(new) != (old,) and self._index(old) is not None}
        if not changed:
            return
        found: dict[str, KV] = {}
        for kv in self._kvs:
            for key in changed.get(kv.key, (kv.key,)):
                other = found.setdefault(key, replace(kv, key=key))
                if (other.type, other.raw) != (kv.type, kv.raw):
                    self.problems.append(f"{printable(key, 80)} would exist twice, with different values")
        self._kvs = list(found.values())
        self._places = self._placed()
        for old, new in changed.items():
            self.remarks.append(f"{printable(old, 80)} -> {', '.join(printable(key, 80) for key in new) or 'removed'}")

    def _insert(self, kv: KV, before: int | None) -> None:
        """Add an entry after the one at `before`, or at the end."""
        if before is None:
            self._places[kv.key] = len(self._kvs)
            self._kvs.append(kv)
        else:
            self._kvs.insert(before + 1, kv)
            self._places = self._placed()

    def _placed(self) -> dict[str, int]:
        """The index of each key; for duplicate keys, that of the first entry."""
        return {kv.key: index for index, kv in reversed([*enumerate(self._kvs)])}

    def _index(self, key: str) -> int | None:
        return self._places.get(key)


def shown(kv: KV) -> str:
    """The value in a few words."""
    if kv.type is not ValueType.ARRAY:
        return printable(str(kv.value()), 80)
    start = ", ".join(printable(str(entry), 20) for entry in kv.value(_SHOWN))
    return f"[{start}]" if kv.count <= _SHOWN else f"[{start}, ...] ({kv.count:,} entries)"


def change(old: KV, new: KV) -> str:
    """``old -> new``, or the numbers of entries if an array changes its length."""
    if old.type is ValueType.ARRAY and new.type is ValueType.ARRAY and max(old.count, new.count) > _SHOWN:
        same = f"{old.count:,} entries, rearranged"
        return same if old.count == new.count else f"{old.count:,} -> {new.count:,} entries"
    return f"{shown(old)} -> {shown(new)}"


def runs(numbers: Iterable[int]) -> str:
    """Numbers as ``0-3, 7``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, run)) for run in found)
