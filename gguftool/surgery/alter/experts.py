"""Experts: select, prune and reorder them, with the router and everything else that counts experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.errors import PlanError
from gguftool.model.axes import AxisKind, tensor_axes, unknown_with_axis
from gguftool.model.remap.experts import expert_keys, kept_chunks
from gguftool.record import replace
from gguftool.surgery.alter.lists import listed_spans, parse_list, resolve_own
from gguftool.surgery.alter.state import Findings, Item, State, integer, layer_of, shown

Ids = Mapping[int, Sequence[int]]


def select_experts(
    state: State, wanted: str | Ids, engines: Sequence[str], given: Sequence[str], findings: Findings
) -> State:
    """`state` with the experts of a list, the same in all layers, or of ids by layer of the input.

    `given` names keys that are set or removed afterwards.
    """
    count = integer(state.kvs, "expert_count") or 0
    if not count:
        findings.problem("--experts: the metadata counts no experts (expert_count)")
        return state
    layers = sorted({layer for item in state.items if (layer := _expert_layer(state, item)) is not None})
    problems: list[str] = []
    kept = (
        _for_all(wanted, layers, count, problems)
        if isinstance(wanted, str)
        else _by_layer(state, wanted, layers, problems)
    )
    problems += [
        f"{shown(name)}: has {count:,} of something, and what it is for is not known; it may count experts"
        for name in unknown_with_axis(state.as_model(), AxisKind.EXPERTS, count)
    ]
    findings.problem(*problems)
    if problems:
        return state
    if all(list(ids) == list(range(count)) for ids in kept.values()):
        return state
    changed = expert_keys(state.kvs, kept, engines=engines, byte_order=state.model.byte_order, given=given)
    if not changed.problems:
        findings.remark(f"--experts keeps {len(next(iter(kept.values()))):,} of {count:,} in {len(layers):,} layer(s)")
    kvs = findings.add_changes(changed)
    if changed.problems:
        return state
    chunk = integer(state.kvs, "experts_per_group") or 1
    items = (new for item in state.items for new in _selected(state, item, kept, chunk, findings))
    return replace(state, kvs=kvs, items=tuple(items))


def _expert_layer(state: State, item: Item) -> int | None:
    """The layer of a tensor that counts experts, or is one."""
    axes = tensor_axes(item.name, state.architecture)
    return layer_of(item.name) if axes.experts is not None or axes.expert is not None else None


def _for_all(text: str, layers: Sequence[int], count: int, problems: list[str]) -> dict[int, Sequence[int]]:
    return dict.fromkeys(layers, resolve_own(parse_list(text), count, "experts", problems))


def _by_layer(state: State, wanted: Ids, layers: Sequence[int], problems: list[str]) -> dict[int, Sequence[int]]:
    """The ids for each layer of the state, by the layer of the input that it was."""
    kept: dict[int, Sequence[int]] = {}
    missing, foreign = [], []
    for layer in layers:
        origin = state.layers[layer]
        if origin.label is not None:
            foreign.append(layer)
        elif origin.number not in wanted:
            missing.append(origin.number)
        else:
            kept[layer] = wanted[origin.number]
    has = {state.layers[layer].number for layer in layers if state.layers[layer].label is None}
    surplus = sorted(set(wanted) - has)
    if missing:
        problems.append(f"--experts: no ids for layers {listed_spans(sorted(set(missing)))}, which have experts")
    if foreign:
        problems.append(f"--experts: ids by layer are the input's; layers {listed_spans(foreign)} are another model's")
    if surplus:
        problems.append(f"--experts: ids for layers {listed_spans(surplus)}, which have no experts")
    return kept


def _selected(state: State, item: Item, kept: Ids, chunk: int, findings: Findings) -> list[Item]:
    """`item` with the experts that its layer keeps; a tensor of one expert as often as that is kept."""
    axes = tensor_axes(item.name, state.architecture)
    layer = layer_of(item.name)
    ids = kept.get(layer if layer is not None else -1)
    if ids is None:
        return [item]
    if axes.holds == "expert ids":
        findings.problem(f"{shown(item.name)}: {axes.reason}")
    elif axes.expert is not None:
        return [_as_expert(item, number) for number, old in enumerate(ids) if old == axes.expert]
    elif axes.experts is not None:
        try:
            return [_cut(item, axes.experts, kept_chunks(ids, chunk) if axes.chunks else ids)]
        except PlanError as error:
            findings.problem(str(error))
    return [item]


def _cut(item: Item, axis: int, ids: Sequence[int]) -> Item:
    return replace(item, tensor=item.tensor.take(axis, ids))


def _as_expert(item: Item, number: int) -> Item:
    """The tensor of one expert (``blk.0.ffn_up.3.weight``) with another number."""
    stem, _, end = item.name.rsplit(".", 2)
    return replace(item, tensor=item.tensor.named(f"{stem}.{number}.{end}"))
