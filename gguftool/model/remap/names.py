"""Rewrite the metadata that bears names of tensors: after renames, drops, and for layers that are repeated.

Two kinds of keys do.  ``general.tensor_extra.name`` lists names, with one more array for each property, entry by entry
(llama.cpp src/llama-model.cpp, load_tensor_extra).  ``comfy.gguf.orig_shape.NAME`` has the name in the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gguftool.errors import printable
from gguftool.format.kv import KV, ByteOrder, ValueType
from gguftool.model.remap.head_values import Remapped, Rewrite

_EXTRA: Final = "general.tensor_extra."
_NAMES: Final = f"{_EXTRA}name"
_SHAPE: Final = "comfy.gguf.orig_shape."


def rename_in_keys(
    kvs: Sequence[KV],
    renames: Mapping[str, Sequence[str]],
    *,
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> Remapped:
    """Rewrite keys that bear tensors' names; `renames` maps an old name to the new ones.

    No new names: the tensor is gone, and so is what was said of it. Several: it was copied. One new name for several
    old ones (fused tensors) needs the same values of all.
    """
    out = Rewrite(kvs, byte_order)
    _rename_listed(out, renames)
    _rename_keys(out, renames)
    return out.result()


def _rename_listed(out: Rewrite, renames: Mapping[str, Sequence[str]]) -> None:
    listed = next((kv for kv in out.kvs if kv.key == _NAMES), None)
    if listed is None or listed.type is not ValueType.ARRAY or listed.element_type is not ValueType.STRING:
        return
    names = listed.value()
    if not any(name in renames for name in names):
        return
    beside = [kv for kv in out.kvs if kv.key.startswith(_EXTRA) and kv.key != _NAMES and kv.type is ValueType.ARRAY]
    rows = [kv.value() for kv in beside]
    if any(len(row) != len(names) for row in rows):
        out.problems.append(f"{_EXTRA}* have different lengths: which entry belongs to which tensor is not known")
        return
    found: dict[str, tuple[object, ...]] = {}
    for name, *entries in zip(names, *rows, strict=True):
        for new in renames.get(name, (name,)):
            if found.setdefault(new, tuple(entries)) != tuple(entries):
                out.problems.append(f"{_EXTRA}*: the tensors that become '{printable(new, 80)}' have different values")
    out.array(_NAMES, list(found), ValueType.STRING)
    for position, kv in enumerate(beside):
        out.array(kv.key, [entries[position] for entries in found.values()], kv.element_type)


def _rename_keys(out: Rewrite, renames: Mapping[str, Sequence[str]]) -> None:
    out.rekey({_SHAPE + old: [_SHAPE + name for name in new] for old, new in renames.items()})
