"""Layers: drop, repeat and reorder them, and take layers from other models; layers for MTP stay at the end.

Every change of the sequence of layers goes through `with_sequence`, which renumbers tensors and adapts every key that
depends on the layers (`model/remap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gguftool.errors import did_you_mean, listed, printable
from gguftool.format.engine_facts.layer_keys import layer_key
from gguftool.format.kv import KV, ValueType, find_kv
from gguftool.model.remap.head_values import Rewrite
from gguftool.model.remap.layers import remap_layers
from gguftool.model.remap.names import bring_named, rename_in_keys
from gguftool.model.remap.new_layers import LayerFrom
from gguftool.record import record, replace
from gguftool.surgery.alter.lists import Span, parse_list, resolve
from gguftool.surgery.alter.order import with_layers
from gguftool.surgery.alter.state import MAX_LAYERS, Findings, Item, State, in_layer, integer, layer_of, renamed
from gguftool.surgery.compatibility import metadata_conflicts

_TOKENS = "tokenizer.ggml.tokens"
# Keys of an architecture that describe the training context; they change no tensor.
_HARMLESS = ("context_length", "rope.scaling.original_context_length", "vocab_size")


@record
class Pick:
    """One layer of the output: number `layer` of the state `giver`."""

    giver: State
    layer: int


def own_layers(state: State, numbers: Sequence[int]) -> list[Pick]:
    """Pick layers of the state itself."""
    return [Pick(giver=state, layer=number) for number in numbers]


def with_keys(state: State, picks: Sequence[Pick], nextn: int, engines: Sequence[str], findings: Findings) -> State:
    """`state` with the metadata of the layers `picks`, the last `nextn` of them for MTP; its tensors stay.

    Too many layers are a problem, and give `state` itself.
    """
    if len(picks) > MAX_LAYERS:
        findings.problem(f"{len(picks):,} layers; gguftool writes at most {MAX_LAYERS:,}")
        return state
    kvs, order = true_counts(state, findings), state.model.byte_order
    true = {key: true_counts(giver) for key, giver in _givers(picks).items()}
    sources = [LayerFrom(kvs=true[id(pick.giver)], layer=pick.layer) for pick in picks]
    changed = remap_layers(kvs, sources, engines=engines, byte_order=order)
    layers = tuple(pick.giver.layers[pick.layer] for pick in picks)
    return replace(state, kvs=findings.add_changes(changed), layers=layers, nextn=nextn)


def true_counts(state: State, findings: Findings | None = None) -> tuple[KV, ...]:
    """The metadata of `state` with the numbers of layers that its tensors show."""
    rewrite = Rewrite(state.kvs, state.model.byte_order)
    for key, value in (("block_count", len(state.layers)), ("nextn_predict_layers", state.nextn)):
        if (integer(state.kvs, key) or 0) != value:
            rewrite.number(f"{state.architecture}.{key}", value, after=f"{state.architecture}.block_count")
    changed = rewrite.result()
    return changed.kvs if findings is None else findings.add_changes(changed)


def with_sequence(state: State, picks: Sequence[Pick], nextn: int, engines: Sequence[str], findings: Findings) -> State:
    """`state` with the tensors and the metadata of the layers `picks`, the last `nextn` of them for MTP."""
    keyed = with_keys(state, picks, nextn, engines, findings)
    if keyed is state:  # too many layers
        return state
    givers = _givers(picks)
    groups = {key: _by_layer(giver.items) for key, giver in givers.items()}
    layers = [
        [renamed(item, {item.name: in_layer(item.name, number)}) for item in groups[id(pick.giver)].get(pick.layer, ())]
        for number, pick in enumerate(picks)
    ]
    sequence = [pick.layer if pick.giver is state else None for pick in picks]
    order = state.model.byte_order
    kvs = findings.add_changes(rename_in_keys(keyed.kvs, _new_names(state, picks), byte_order=order))
    for donor in (giver for giver in givers.values() if giver is not state):
        kvs = findings.add_changes(bring_named(kvs, donor.kvs, _new_names(donor, picks), byte_order=order))
    return replace(keyed, kvs=kvs, items=tuple(with_layers(state.items, sequence, layers)))


def _givers(picks: Iterable[Pick]) -> dict[int, State]:
    """The states that give layers, each once, by `id`."""
    return {id(pick.giver): pick.giver for pick in picks}


def _by_layer(items: Iterable[Item]) -> dict[int, list[Item]]:
    groups: dict[int, list[Item]] = {}
    for item in items:
        layer = layer_of(item.name)
        if layer is not None:
            groups.setdefault(layer, []).append(item)
    return groups


def _new_names(giver: State, picks: Sequence[Pick]) -> dict[str, list[str]]:
    """The names that the giver's tensors have in the new layers: several if a layer is repeated, none if dropped."""
    places: dict[int, list[int]] = {}
    for number, pick in enumerate(picks):
        if pick.giver is giver:
            places.setdefault(pick.layer, []).append(number)
    return {
        item.name: [in_layer(item.name, number) for number in places.get(layer, ())]
        for item in giver.items
        if (layer := layer_of(item.name)) is not None
    }


# --- the operation ---------------------------------------------------------------------------------------------------


def select_layers(
    state: State, text: str, donors: Mapping[str, State], engines: Sequence[str], findings: Findings
) -> State:
    """`state` with the layers of the list `text`, some perhaps from `donors`, followed by its own MTP layers."""
    problems: list[str] = []
    wanted = parse_list(text, "layers", labels=True)
    givers = {label: donors[label] for label in _labels(wanted.spans) if label in donors}
    unknown = [label for label in _labels(wanted.spans) if label not in givers]
    if unknown:
        near = did_you_mean(unknown[0], donors)
        findings.problem(f"--layers: no input is labelled {listed(unknown)}; give LABEL=MODEL{near}")
        return state
    if not state.trunk:
        findings.problem("the model has no layers to list: the metadata has no block_count, or it is 0")
        return state
    numbers = resolve(wanted, lambda label: givers[label].trunk if label else state.trunk, "layers", problems)
    for label, giver in givers.items():
        if giver is not state:
            problems += differences(state, giver, label)
    problems += _other_stacks(state)
    if not numbers and not problems:
        problems.append(f"--layers {printable(text, 40)} leaves no layers")
    findings.problem(*problems)
    if problems:
        return state
    picks = [_pick(state, givers, label, number) for label, number in numbers]
    mtp = own_layers(state, range(state.trunk, len(state.layers)))
    if [pick.layer for pick in picks if pick.giver is state] == list(range(state.trunk)) and len(picks) == state.trunk:
        return state
    findings.remark(
        f"--layers {printable(text, 80)}: {len(numbers):,} layers instead of {state.trunk:,}{_behind(state)}"
    )
    return with_sequence(state, [*picks, *mtp], state.nextn, engines, findings)


def _labels(spans: Sequence[Span]) -> list[str]:
    return list(dict.fromkeys(span.label for span in spans if span.label is not None))


def _pick(state: State, givers: Mapping[str, State], label: str | None, number: int) -> Pick:
    giver = state if label is None else givers[label]
    return Pick(giver=giver, layer=number)


def _behind(state: State) -> str:
    return f", and {state.nextn} for MTP after them" if state.nextn else ""


def _other_stacks(state: State) -> list[str]:
    stacks = sorted({name.partition(".blk.")[0] for item in state.items if ".blk." in (name := item.name)} - {"v", "a"})
    found = [stack for stack in stacks if stack in ("enc", "dec")]
    return [f"the model has the stacks {listed(found)}; --layers works only for models with one stack"] if found else []


def differences(state: State, donor: State, label: str) -> list[str]:
    """Describe how a donor of layers differs from the input: architecture, widths, byte order, tokens."""
    problems = []
    if donor.model.byte_order is not state.model.byte_order:
        problems.append(f"{label} is {donor.model.byte_order.name.lower()}-endian, but the input is not")
    if donor.architecture != state.architecture:
        found, wanted = printable(donor.architecture or "none", 40), printable(state.architecture or "none", 40)
        return [*problems, f"{label} has the architecture {found}, but the input has {wanted}"]
    for key in metadata_conflicts(state.kvs, donor.kvs):
        if _matters(key, state.architecture):
            problems.append(_difference(state, donor, label, key))
    return problems


def _matters(key: str, architecture: str) -> bool:
    if key.startswith("tokenizer."):
        return key == _TOKENS
    return key.removeprefix(f"{architecture}.") not in _HARMLESS and layer_key(key, architecture) is None


def _difference(state: State, donor: State, label: str, key: str) -> str:
    ours, theirs = (find_kv(each.kvs, key) for each in (state, donor))
    if ours is None or theirs is None or ValueType.ARRAY in (ours.type, theirs.type):
        return f"{printable(key, 80)} differs in {label}"
    texts = (printable(str(kv.value()), 40) for kv in (ours, theirs))
    return f"{printable(key, 80)} is {next(texts)}, but in {label} it is {next(texts)}"
