"""Rewrite metadata that contains names of tensors: after renames and drops, and for repeated layers.

There are two kinds of such keys.  ``general.tensor_extra.name`` lists names, and one array for each property has an
entry for each name (llama.cpp src/llama-model.cpp, load_tensor_extra).  ``comfy.gguf.orig_shape.NAME`` has the name in
the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gguftool.errors import printable
from gguftool.format.kv import KV, ByteOrder, ValueType
from gguftool.model.remap.head_values import Remapped, Rewrite
from gguftool.record import replace

_EXTRA: Final = "general.tensor_extra."
_NAMES: Final = f"{_EXTRA}name"
_SHAPE: Final = "comfy.gguf.orig_shape."


def rename_in_keys(
    kvs: Sequence[KV],
    renames: Mapping[str, Sequence[str]],
    *,
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> Remapped:
    """Rewrite keys that contain tensors' names; `renames` maps an old name to the new ones.

    No new names: the tensor is gone, and its metadata too. Several: it was copied. If several old tensors get one new
    name (fused tensors), all must have the same values.
    """
    out = Rewrite(kvs, byte_order)
    _rename_listed(out, renames)
    _rename_keys(out, renames)
    return out.result()


def bring_named(
    kvs: Sequence[KV],
    donor: Sequence[KV],
    names: Mapping[str, Sequence[str]],
    *,
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> Remapped:
    """Add to `kvs` the metadata of `donor` about the tensors `names` (its name -> the new ones)."""
    out = Rewrite(kvs, byte_order)
    brought = {old: tuple(new) for old, new in names.items() if new}
    own, other = _Extras(out.kvs), _Extras(donor)
    entries = {new: other.entries[old] for old in brought if old in other.entries for new in brought[old]}
    if entries and own.names is not None and own.keys != other.keys:
        out.problems.append(f"{_EXTRA}*: the donor has other properties for its tensors than the model")
    elif entries:
        _put_listed(out, own.entries | entries, other)
    for kv in donor:
        for new in brought.get(kv.key.removeprefix(_SHAPE), ()) if kv.key.startswith(_SHAPE) else ():
            out.put(replace(kv, key=_SHAPE + new))
    return out.result()


class _Extras:
    """The lists of ``general.tensor_extra``: name -> one entry for each of `keys`, in their order."""

    def __init__(self, kvs: Sequence[KV]) -> None:
        self.names = next((kv for kv in kvs if kv.key == _NAMES and _is_texts(kv)), None)
        beside = [kv for kv in kvs if kv.key.startswith(_EXTRA) and kv.key != _NAMES and kv.type is ValueType.ARRAY]
        self.keys = {kv.key: kv.element_type for kv in beside if self.names is not None}
        rows = [kv.value() for kv in beside]
        texts = self.names.value() if self.names is not None else []
        self.fits = all(len(row) == len(texts) for row in rows)
        self.entries = dict(zip(texts, zip(*rows, strict=True), strict=True)) if self.fits and rows else {}


def _is_texts(kv: KV) -> bool:
    return kv.type is ValueType.ARRAY and kv.element_type is ValueType.STRING


def _rename_listed(out: Rewrite, renames: Mapping[str, Sequence[str]]) -> None:
    extras = _Extras(out.kvs)
    if not extras.fits:
        out.problems.append(f"{_EXTRA}* have different lengths, so it is unknown which entry belongs to which tensor")
        return
    if not any(name in renames for name in extras.entries):
        return
    found: dict[str, tuple[object, ...]] = {}
    for name, entries in extras.entries.items():
        for new in renames.get(name, (name,)):
            if found.setdefault(new, entries) != entries:
                out.problems.append(f"{_EXTRA}*: the tensors that become '{printable(new, 80)}' have different values")
    _put_listed(out, found, extras)


def _put_listed(out: Rewrite, entries: Mapping[str, tuple[object, ...]], like: _Extras) -> None:
    """Write the lists, those of properties in the types of `like`."""
    out.array(_NAMES, list(entries), ValueType.STRING)
    for position, (key, element) in enumerate(like.keys.items()):
        out.array(key, [values[position] for values in entries.values()], element, after=_NAMES)


def _rename_keys(out: Rewrite, renames: Mapping[str, Sequence[str]]) -> None:
    out.rekey({_SHAPE + old: [_SHAPE + name for name in new] for old, new in renames.items()})
