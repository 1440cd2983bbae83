"""The order of an output's tensors: tensors that are taken apart and put together again are in their old order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.format.kv import ValueType, find_kv, make_kv
from gguftool.record import replace
from gguftool.surgery.alter.state import Findings, Item, State, layer_of

# Names of tensors in their order before some were fused; written only if unfusing would not restore that order.
UNFUSED_ORDER_KEY = "gguftool.unfused_order"


def inserted(ours: Sequence[Item], theirs: Sequence[str], new: Mapping[str, Item]) -> list[Item]:
    """`ours` with the items `new`, each after the tensor that it follows in `theirs`, the donor's order.

    A new tensor that follows none of ours comes first.
    """
    known = {item.name for item in ours}
    behind: dict[str | None, list[Item]] = {}
    last: str | None = None
    for name in theirs:
        if name in new:
            behind.setdefault(last, []).append(new[name])
        elif name in known:
            last = name
    placed = list(behind.get(None, ()))
    for item in ours:
        placed += [item, *behind.get(item.name, ())]
    return placed


def with_layers(ours: Sequence[Item], sequence: Sequence[int | None], layers: Sequence[Sequence[Item]]) -> list[Item]:
    """`ours`, its layers replaced by `layers`; `sequence` has each layer's number in ours, None for another model's.

    A layer stays in its place while the numbers in `sequence` grow; any other layer follows the one before it.
    """
    places: dict[int | None, list[int]] = {}
    for place, item in enumerate(ours):
        places.setdefault(layer_of(item.name), []).append(place)
    keys = [((place, 0, 0), ours[place]) for place in places.pop(None, ())]
    anchor = min(map(min, places.values()), default=len(ours)) - 1
    in_place = _in_place(sequence)
    for number, (own, items) in enumerate(zip(sequence, layers, strict=True)):
        if number in in_place:
            olds = places.get(own, [])
            keys += [((place, 0, 0), item) for place, item in zip(olds, items, strict=True)]
            anchor = max([anchor, *olds])
        else:
            keys += [((anchor, number + 1, index), item) for index, item in enumerate(items)]
    return [item for _, item in sorted(keys, key=lambda pair: pair[0])]


def _in_place(sequence: Sequence[int | None]) -> set[int]:
    """The positions of the numbers that are larger than all before them."""
    found, highest = set(), -1
    for position, number in enumerate(sequence):
        if number is not None and number > highest:
            found.add(position)
            highest = number
    return found


def with_recorded_order(state: State, restorable: Sequence[str], order: Sequence[str], findings: Findings) -> State:
    """`state` with a key that records `order`, unless the key exists, or `order` equals `restorable`."""
    if list(restorable) == list(order) or find_kv(state.kvs, UNFUSED_ORDER_KEY) is not None:
        return state
    key = make_kv(
        UNFUSED_ORDER_KEY,
        ValueType.ARRAY,
        list(order),
        element=ValueType.STRING,
        byte_order=state.model.byte_order,
    )
    findings.remark(f"{UNFUSED_ORDER_KEY} records the order of {len(order):,} tensors, for --unfuse")
    return replace(state, kvs=(*state.kvs, key))


def in_recorded_order(state: State, findings: Findings) -> State:
    """`state` in the recorded order, as far as it has these tensors; if it has all of them, the key is removed."""
    key = find_kv(state.kvs, UNFUSED_ORDER_KEY)
    if key is None or key.type is not ValueType.ARRAY or key.element_type is not ValueType.STRING:
        return state
    by_name = state.by_name
    recorded = list(dict.fromkeys(name for name in key.value() if name in by_name))
    known = set(recorded)
    following = iter(recorded)
    items = tuple(by_name[next(following)] if item.name in known else item for item in state.items)
    if len(recorded) < key.count:
        return state.with_items(items)
    findings.remark(f"{UNFUSED_ORDER_KEY} left out: the tensors are in that order again")
    return replace(state, items=items, kvs=tuple(kv for kv in state.kvs if kv.key != UNFUSED_ORDER_KEY))
