"""The tensors of two models side by side: added, removed, of another type or shape; single, and grouped over layers.

The parts shared with metadata come first: pairing two mappings by key, and the kind of a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import TypeVar

from gguftool.format.ggml import type_name
from gguftool.model.model import Tensor
from gguftool.model.roles import tensor_place
from gguftool.record import record

K = TypeVar("K")
V = TypeVar("V")


class Change(Enum):
    """The kind of a change from A to B."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


def paired(old: Mapping[K, V], new: Mapping[K, V]) -> Iterator[tuple[K, V | None, V | None]]:
    """Yield every key with its two values (None if missing), in the order of `old`, then those that `new` adds."""
    for key, value in old.items():
        yield key, value, new.get(key)
    for key, value in new.items():
        if key not in old:
            yield key, None, value


def change_of(old: object | None, new: object | None) -> Change:
    """Name the kind of change between two values, at most one of them None."""
    if old is None:
        return Change.ADDED
    return Change.REMOVED if new is None else Change.CHANGED


@record
class TensorSide:
    """A tensor on one side; `dims` in ggml order, `nbytes` without padding if the type is known."""

    type: str
    type_id: int
    dims: tuple[int, ...]
    nbytes: int


@record
class TensorChange:
    """A tensor that only one side has, or that has another type or shape (trailing 1s do not count)."""

    name: str
    change: Change
    old: TensorSide | None
    new: TensorSide | None
    type_changed: bool
    shape_changed: bool


@record
class TensorGroup:
    """Tensors that differ in the same way in several layers; `name` has ``*`` for the layer's number.

    `old_type` or `new_type` is None if that side lacks them; dims are set only if the shape changed. `bytes_change` is
    the size in B minus the size in A.
    """

    name: str
    change: Change
    old_type: str | None
    new_type: str | None
    old_dims: tuple[int, ...] | None
    new_dims: tuple[int, ...] | None
    layers: tuple[int, ...]
    tensors: int
    bytes_change: int


def diff_tensors(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], wanted: Callable[[str], bool]
) -> tuple[TensorChange, ...]:
    """Compare the headers of the tensors with `wanted` names; return those that differ."""
    return tuple(
        change
        for name, left, right in paired(old, new)
        if wanted(name) and (change := _change(name, left, right)) is not None
    )


def _change(name: str, old: Tensor | None, new: Tensor | None) -> TensorChange | None:
    type_changed = shape_changed = False
    if old is not None and new is not None:
        type_changed = old.info.type != new.info.type
        shape_changed = old.info.shape != new.info.shape
        if not type_changed and not shape_changed:
            return None
    return TensorChange(
        name=name,
        change=change_of(old, new),
        old=_side(old),
        new=_side(new),
        type_changed=type_changed,
        shape_changed=shape_changed,
    )


def _side(tensor: Tensor | None) -> TensorSide | None:
    if tensor is None:
        return None
    info = tensor.info
    return TensorSide(type=type_name(info.type), type_id=info.type, dims=info.dims, nbytes=tensor.nbytes)


def group_over_layers(changes: Iterable[TensorChange]) -> tuple[TensorGroup, ...]:
    """Group changes that are the same in several layers, in order of first occurrence."""
    groups: dict[tuple[object, ...], list[TensorChange]] = {}
    for change in changes:
        groups.setdefault(_likeness(change), []).append(change)
    return tuple(_group(members) for members in groups.values())


def _likeness(change: TensorChange) -> tuple[object, ...]:
    old, new = change.old, change.new
    dims = (old and old.dims, new and new.dims) if change.shape_changed else None
    pattern = layer_pattern(change.name)
    return pattern, pattern == change.name, old and old.type_id, new and new.type_id, dims


def layer_pattern(name: str) -> str:
    """Replace the layer number in `name` by ``*``, if it has one."""
    layer = tensor_place(name).layer
    return name if layer is None else name.replace(f".{layer}.", ".*.", 1)


def _group(members: list[TensorChange]) -> TensorGroup:
    first = members[0]
    layers = {layer for member in members if (layer := tensor_place(member.name).layer) is not None}
    return TensorGroup(
        name=layer_pattern(first.name),
        change=first.change,
        old_type=first.old.type if first.old else None,
        new_type=first.new.type if first.new else None,
        old_dims=first.old.dims if first.old and first.shape_changed else None,
        new_dims=first.new.dims if first.new and first.shape_changed else None,
        layers=tuple(sorted(layers)),
        tensors=len(members),
        bytes_change=sum(_nbytes(member.new) - _nbytes(member.old) for member in members),
    )


def _nbytes(side: TensorSide | None) -> int:
    return side.nbytes if side else 0
