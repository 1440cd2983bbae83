"""Take tensors from other models, and leave tensors out, together with their scales and the keys of MTP layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from gguftool.errors import PlanError, did_you_mean, listed, printable
from gguftool.format.file_names import normal_label
from gguftool.model.guards import OUTPUT, TOKEN_EMBD
from gguftool.model.remap.names import bring_named
from gguftool.model.scales import scales_of
from gguftool.record import replace
from gguftool.surgery.alter.layers import Pick, differences, own_layers, with_keys
from gguftool.surgery.alter.lists import listed_spans
from gguftool.surgery.alter.order import inserted
from gguftool.surgery.alter.rename import without_names
from gguftool.surgery.alter.state import Findings, Item, State, in_layer, integer, layer_of, renamed
from gguftool.surgery.alter.what import find_tensors

# A companion file, as llama.cpp's convert_hf_to_gguf.py --mtp writes it, has these in addition to its layers.
_BESIDE_MTP = frozenset({TOKEN_EMBD, OUTPUT, "output.bias", "output_norm.weight", "output_norm.bias"})
_ENCODER_KEYS = re.compile(r"[^.]+\.(?:vision|audio)\.")


def take(
    state: State, given: tuple[str, str], donors: Mapping[str, State], engines: Sequence[str], findings: Findings
) -> State:
    """`state` with the tensors of a donor; `given` is its label and what to take.

    Tensors of MTP layers get the numbers after this trunk. Scales go with their weights.
    """
    label, what = given
    donor = donors.get(normal_label(label))
    if donor is None:
        known = f"the labels are {listed(sorted(donors))}" if donors else f"give {printable(label, 40)}=MODEL"
        known += did_you_mean(label, donors)
        findings.problem(f"--take {label}:{what}: no input is labelled '{printable(label, 40)}'; {known}")
        return state
    try:
        names = _with_scales(donor, find_tensors(donor, what, engines))
    except PlanError as error:
        findings.problem(f"--take {printable(label, 40)}:{error}" if what.startswith(":") else f"--take: {error}")
        return state
    findings.problem(*differences(state, donor, label))
    heads = sorted({layer for name in names if (layer := _mtp_layer(donor, name)) is not None})
    names_here = {item.name: _name_here(state, donor, item.name) for item in donor.items}
    order = [_place_here(state, donor, item.name) if heads else names_here[item.name] for item in donor.items]
    chosen = set(names)
    new = {names_here[item.name]: renamed(item, names_here) for item in donor.items if item.name in chosen}
    here = state.by_name
    there = [name for name in new if name in here]
    if there:
        findings.problem(_already(state, there))
        return state
    findings.remark(_taken_remark(new, donor, label))
    said = {name: [names_here[name]] for name in names}
    kvs = findings.add_changes(bring_named(state.kvs, donor.kvs, said, byte_order=state.model.byte_order))
    taken = replace(state, kvs=kvs, items=tuple(inserted(state.items, order, new)))
    return _with_heads(taken, donor, heads, engines, findings) if heads else taken


def _with_scales(state: State, names: Collection[str]) -> list[str]:
    """`names` and the scales of the weights among them, in the order of `state`."""
    tensors = {item.name: item.tensor for item in state.items}
    chosen = {*names, *(scale for name in names for scale in scales_of(tensors, name))}
    return [item.name for item in state.items if item.name in chosen]


def _mtp_layer(state: State, name: str) -> int | None:
    layer = layer_of(name)
    return layer if layer is not None and state.nextn and layer >= state.trunk else None


def _name_here(state: State, donor: State, name: str) -> str:
    """The name of a donor's tensor here: MTP layers move to the end of this trunk."""
    layer = _mtp_layer(donor, name)
    return name if layer is None else in_layer(name, layer - donor.trunk + state.trunk)


def _place_here(state: State, donor: State, name: str) -> str:
    """The tensor here that corresponds to a donor's, with layers counted from the end of both trunks."""
    layer = layer_of(name)
    return name if layer is None else in_layer(name, max(layer - donor.trunk + state.trunk, -1))


def _already(state: State, names: Sequence[str]) -> str:
    if any(_mtp_layer(state, name) is not None for name in names):
        return f"{listed(list(names), 4)}: already in the model; --drop :mtp, in a separate run, makes room for others"
    return f"{listed(list(names), 4)}: already in the model; swap replaces tensors"


def _taken_remark(new: Mapping[str, Item], donor: State, label: str) -> str:
    size = sum(item.tensor.nbytes for item in new.values())
    whole = sum(item.tensor.nbytes for item in donor.items)
    return (
        f"takes {len(new):,} tensor(s), {size:,} of {whole:,} bytes, from {printable(label, 40)}: "
        f"{listed(list(new), 4)}"
    )


def _with_heads(state: State, donor: State, heads: Sequence[int], engines: Sequence[str], findings: Findings) -> State:
    """`state`, which has the tensors of the donor's MTP layers `heads` already, with the metadata for them."""
    numbers = [layer - donor.trunk for layer in heads]
    ours = state.nextn if _has_mtp(state, numbers) else 0
    count = max([ours, *(number + 1 for number in numbers)])
    behind = [
        Pick(giver=donor, layer=donor.trunk + number)
        if number in numbers or number >= ours
        else Pick(giver=state, layer=state.trunk + number)
        for number in range(count)
    ]
    return with_keys(state, [*own_layers(state, range(state.trunk)), *behind], count, engines, findings)


def _has_mtp(state: State, new: Collection[int]) -> bool:
    """Whether `state` has tensors of MTP layers besides the `new` ones."""
    return any(number not in new for number in _mtp_numbers(state))


def _mtp_numbers(state: State) -> set[int]:
    """The MTP layers that have tensors, counted from the trunk's end."""
    layers = (layer_of(item.name) for item in state.items)
    return {layer - state.trunk for layer in layers if layer is not None and layer >= state.trunk}


# --- leaving out -----------------------------------------------------------------------------------------------------


def drop(state: State, whats: Sequence[str], engines: Sequence[str], findings: Findings) -> State:
    """`state` without the tensors of `whats` and their scales."""
    gone = set(_with_scales(state, _found(state, whats, engines, findings)))
    left = state.with_items(item for item in state.items if item.name not in gone)
    findings.remark(*_dropped_remarks(state, gone))
    findings.problem(*_torn_layers(state, left))
    left = without_names(left, gone, findings)
    if ":vision" in whats:
        left = replace(left, kvs=tuple(kv for kv in left.kvs if not _ENCODER_KEYS.match(kv.key)))
    return _settled(state, left, engines, findings, promised=":mtp" in whats)


def keep(state: State, whats: Sequence[str], engines: Sequence[str], findings: Findings) -> State:
    """`state` with only the tensors of `whats` and their scales; for `:mtp`, with all that a companion file has."""
    kept = set(_with_scales(state, _found(state, whats, engines, findings)))
    if ":mtp" in whats:
        kept |= {item.name for item in state.items if item.name in _BESIDE_MTP}
    left = state.with_items(item for item in state.items if item.name in kept)
    findings.remark(f"keeps {len(left.items):,} of {len(state.items):,} tensor(s)")
    whole = not _torn_layers(state, left)
    return _settled(state, left, engines, findings, promised=False) if whole else left


def _found(state: State, whats: Sequence[str], engines: Sequence[str], findings: Findings) -> list[str]:
    names: list[str] = []
    for what in whats:
        try:
            names += find_tensors(state, what, engines)
        except PlanError as error:
            findings.problem(str(error))
    return names


def _dropped_remarks(state: State, gone: Collection[str]) -> list[str]:
    dropped = [item for item in state.items if item.name in gone]
    size = sum(item.tensor.nbytes for item in dropped)
    names = listed([item.name for item in dropped], 4)
    return [f"leaves out {len(dropped):,} tensor(s), {size:,} bytes: {names}"] if dropped else []


def _torn_layers(before: State, after: State) -> list[str]:
    """A problem if layers of the trunk lost all their tensors: then engines count layers wrongly."""
    had, has = ({layer_of(item.name) for item in state.items} for state in (before, after))
    lost = sorted(layer for layer in had - has if layer is not None and layer < before.trunk)
    if not lost:
        return []
    spans = listed_spans(lost)
    return [f"layers {spans} would have no tensors left: --layers '!{spans}' drops layers and renumbers the others"]


def _settled(before: State, after: State, engines: Sequence[str], findings: Findings, *, promised: bool) -> State:
    """`after` with the metadata of the MTP layers that still have tensors.

    Layers that had none before stay in the metadata's count, unless `promised` says that they go as well.
    """
    had, has = _mtp_numbers(before), _mtp_numbers(after)
    left = [number for number in range(before.nextn) if number in has or (number not in had and not promised)]
    said = integer(before.kvs, "nextn_predict_layers") or 0
    if len(left) == before.nextn and not (promised and said != len(left)):
        return after
    trunk = after.trunk
    moved = {trunk + number: trunk + index for index, number in enumerate(left)}
    names = {
        item.name: in_layer(item.name, moved[layer])
        for item in after.items
        if (layer := layer_of(item.name)) is not None and layer in moved
    }
    picks = own_layers(after, [*range(trunk), *moved])
    return with_keys(
        after.with_items(renamed(item, names) for item in after.items), picks, len(left), engines, findings
    )
