"""Experts: select, prune and reorder them, with the router and everything else that counts experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguftool.errors import PlanError
from gguftool.model.axes import AxisKind, tensor_axes, unknown_with_axis
from gguftool.model.remap.experts import expert_keys, kept_chunks
from gguftool.record import replace
from gguftool.surgery.alter.lists import is_all, listed_spans, parse_list, resolve_own
from gguftool.surgery.alter.state import Findings, Item, State, integer, layer_of, shown

MAX_EXPERTS = 4096  # engines are built for 1,024 (LLAMA_MAX_EXPERTS of llama.cpp)
Ids = Mapping[int, Sequence[int]]


def select_experts(
    state: State, wanted: str | Ids, engines: Sequence[str], given: Sequence[str], findings: Findings
) -> State:
    """`state` with the experts of a list, which is the same for all layers, or of ids by layer of the input.

    `given` names keys that are set or removed afterwards.
    """
    count = integer(state.kvs, "expert_count") or 0
    if not 0 < count <= MAX_EXPERTS:
        found = (
            "counts no experts"
            if count == 0
            else f"counts {count:,} experts; gguftool selects among at most {MAX_EXPERTS:,}"
        )
        findings.problem(f"--experts: the metadata {found} (expert_count)")
        return state
    layers = sorted({layer for item in state.items if (layer := _expert_layer(state, item)) is not None})
    known = len(findings.problems)
    if isinstance(wanted, str):
        kept = _for_all(wanted, layers, count, findings)
    else:
        kept = _by_layer(state, wanted, layers, count, findings)
    findings.problem(
        *(
            f"{shown(name)}: has a dimension of {count:,} with an unknown meaning; it may count experts"
            for name in unknown_with_axis(state.as_model(), AxisKind.EXPERTS, count)
        )
    )
    if len(findings.problems) > known or all(is_all(ids, count) for ids in kept.values()):
        return state
    return _with_experts(state, kept, count, engines, given, findings)


def _with_experts(
    state: State, kept: Ids, count: int, engines: Sequence[str], given: Sequence[str], findings: Findings
) -> State:
    changed = expert_keys(state.kvs, kept, engines=engines, byte_order=state.model.byte_order, given=given)
    if not changed.problems:
        left = len(next(iter(kept.values())))
        does = f"reorders {count:,}" if left == count else f"keeps {left:,} of {count:,}"
        findings.remark(f"--experts {does} in {len(kept):,} layer(s)")
    kvs = findings.add_changes(changed)
    if changed.problems:
        return state
    chunk = max(integer(state.kvs, "experts_per_group") or 1, 1)
    items = (new for item in state.items for new in _selected(state, item, kept, chunk, findings))
    return replace(state, kvs=kvs, items=tuple(items))


def _expert_layer(state: State, item: Item) -> int | None:
    """The layer of a tensor that counts experts, or is one."""
    axes = tensor_axes(item.name, state.architecture)
    return layer_of(item.name) if axes.experts is not None or axes.expert is not None else None


def _for_all(text: str, layers: Sequence[int], count: int, findings: Findings) -> dict[int, Sequence[int]]:
    problems: list[str] = []
    ids = resolve_own(parse_list(text, "experts"), count, "experts", problems)
    findings.problem(*problems)
    return dict.fromkeys(layers, ids)


def _by_layer(
    state: State, wanted: Ids, layers: Sequence[int], count: int, findings: Findings
) -> dict[int, Sequence[int]]:
    """The ids for each layer of the state, by the layer of the input that it was.

    Layers without ids keep all experts, if the others keep the same number. Ids for layers that are gone are ignored.
    """
    origins = {layer: state.origin(layer) for layer in layers}
    own = {layer: origin.number for layer, origin in origins.items() if origin.label is None}
    others = [layer for layer in layers if layer not in own or own[layer] not in wanted]
    kept: dict[int, Sequence[int]] = {layer: wanted[number] for layer, number in own.items() if number in wanted}
    if all(len(ids) == count for ids in kept.values()):
        kept |= {layer: range(count) for layer in others}
    else:
        findings.problem(*_without_ids(state, [layer for layer in others if layer in own], own))
        findings.problem(*_of_others([layer for layer in others if layer not in own]))
    idle = sorted(set(wanted) - set(own.values()))
    if idle:
        findings.remark(
            f"--experts: ids for layers {listed_spans(idle)} are ignored: these layers have no experts here"
        )
    return kept


def _without_ids(state: State, layers: Sequence[int], own: Mapping[int, int]) -> list[str]:
    if not layers:
        return []
    missing = listed_spans(sorted({own[layer] for layer in layers}))
    text = f"--experts: no ids for layers {missing}, which have experts: all layers must keep the same number"
    mtp = all(layer >= state.trunk for layer in layers)
    return [f"{text}; these are for MTP: give ids for them too, or --drop :mtp" if mtp else text]


def _of_others(layers: Sequence[int]) -> list[str]:
    if not layers:
        return []
    spans = listed_spans(layers)
    return [f"--experts: ids go by layers of the input, but layers {spans} are of another model: give a list for all"]


def _selected(state: State, item: Item, kept: Ids, chunk: int, findings: Findings) -> list[Item]:
    """`item` with the experts that its layer keeps; a tensor of one expert, once for each time that it is kept."""
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
