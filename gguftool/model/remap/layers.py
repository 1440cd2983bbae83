"""Rewrite the metadata for a new list of layers: every key that counts, lists or alternates layers.

`remap_layers` walks the table of keys (`format/engine_facts/layer_keys.py`) and writes each by its kind; `periods.py`
then checks every rule of the engines: each layer must be treated as in the model that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import ENGINES
from gguftool.format.engine_facts.heads import head_facts
from gguftool.format.engine_facts.layer_keys import LAYER_KEYS, KeyKind, LayerKey, Length, layer_key
from gguftool.format.engine_facts.layer_rules import ONE_MTP_LAYER
from gguftool.format.kv import INTEGERS, KV, ByteOrder, ValueType, make_kv
from gguftool.model.remap.head_values import HeadValues, Remapped, runs
from gguftool.model.remap.new_layers import LayerFrom, NewLayers
from gguftool.model.remap.periods import check_kinds, check_rules, pattern_keys, ruled_keys, write_patterns


def remap_layers(
    kvs: Sequence[KV],
    mapping: Sequence[LayerFrom],
    *,
    engines: Sequence[str] = tuple(ENGINES),
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> Remapped:
    """Rewrite `kvs` for a model with the layers of `mapping`: trunk first, MTP layers last.

    Only metadata is checked: the caller compares dims, vocabularies and tensors of donors.
    """
    kvs = tuple(kvs)
    if _is_identity(kvs, mapping):
        return Remapped(kvs=kvs)
    new = NewLayers(kvs, mapping, engines, byte_order)
    new.out.problems += dict.fromkeys(new.problems())
    if not new.out.problems:
        _write_counts(new)
        _write_keys(new)
        write_patterns(new)
        _stop_at_unknown(new)
        check_rules(new)
        check_kinds(new)
    return new.out.result()


def _is_identity(kvs: tuple[KV, ...], mapping: Sequence[LayerFrom]) -> bool:
    if len(mapping) != HeadValues(kvs).layers:
        return False
    return all(one.layer == index and (one.kvs is kvs or one.kvs == kvs) for index, one in enumerate(mapping))


def _write_counts(new: NewLayers) -> None:
    new.out.number(new.anchor, len(new.layers))
    nextn = len(new.layers) - new.trunk
    key = f"{new.architecture}.nextn_predict_layers"
    if nextn or key in new.base.kvs:
        new.out.number(key, nextn, after=new.anchor)
    if nextn > max(1, new.base.layers - new.base.trunk) and new.architecture in ONE_MTP_LAYER:
        new.out.warnings.append(
            f"{nextn} MTP layers: llama.cpp runs only one in this architecture, and aborts with more"
        )


def _write_keys(new: NewLayers) -> None:
    elsewhere = pattern_keys(new.architecture)
    for row in LAYER_KEYS:
        writer = _WRITERS.get(row.kind)
        applies = not row.only or new.architecture in row.only
        if writer is not None and applies and row.key not in elsewhere and any(map(row_of(row), new.models)):
            writer(new, row)


def row_of(row: LayerKey) -> Callable[[HeadValues], KV | None]:
    """A function that finds the entry of `row` in a model."""
    return lambda model: model.of(row)


def _like(new: NewLayers, row: LayerKey) -> KV:
    """The entry of `row` in the model, or in the first donor that has it: new values are written in its type."""
    return next(kv for kv in map(row_of(row), new.models) if kv is not None)


# --- one entry for each layer ----------------------------------------------------------------------------------------

_MISSING: Final = object()  # an entry that an array does not have
_ABSENT: Final = object()  # no key, and no default value


def _write_entries(new: NewLayers, row: LayerKey) -> None:
    if row.period and any((kv := model.of(row)) is not None and kv.type in INTEGERS for model in new.used):
        _check_phase(new, row)
        return
    wrong = list(dict.fromkeys(_wrong_lengths(new, row)))
    if wrong:
        new.out.problems += wrong
        return
    entries = [_entry(model, row, layer) for model, layer in new.layers]
    if row.length is Length.TRUNK or _MISSING in entries:
        entries = entries[: new.trunk]
    if _ABSENT not in entries:
        _put_entries(new, row, entries)
    elif any(entry is not _ABSENT for entry in entries):
        without = runs(index for index, entry in enumerate(entries) if entry is _ABSENT)
        message = f"{new.shown(row)}: new layers {without} come from a model without this key, but the others have it"
        new.out.problems.append(f"{message}; add it to that model first, with edit --set")
    else:
        new.out.remove(new.key(row))


def _wrong_lengths(new: NewLayers, row: LayerKey) -> list[str]:
    """Arrays with neither one entry for each layer nor one for each layer without MTP.

    DeepSeek 4's `compress_ratios` may have more: entries for MTP layers that the file leaves out.
    """
    return [
        f"{new.shown(row)} has {kv.count:,} entries, but there are {model.layers:,} layers: repair it with edit --set"
        for model in new.models
        if (kv := model.of(row)) is not None
        and kv.type is ValueType.ARRAY
        and kv.count not in (model.layers, model.trunk)
        and not (row.length is Length.ANY and kv.count > model.layers)
    ]


def _entry(model: HeadValues, row: LayerKey, layer: int) -> Any:
    """The entry of `model` for `layer`; `_ABSENT` without the key, `_MISSING` if its array is too short."""
    kv = model.of(row)
    if kv is None:
        return _ABSENT if row.absent is None else row.absent
    value = model.value(kv)
    if not isinstance(value, list):
        return value
    return value[layer] if layer < len(value) else _MISSING


def _put_entries(new: NewLayers, row: LayerKey, entries: list[Any]) -> None:
    """Write `entries`: as an array if the key has one or they differ, else as one number."""
    like = _like(new, row)
    if like.type is not ValueType.ARRAY and len(set(map(repr, entries))) == 1:
        kv = make_kv(new.key(row), like.type, entries[0], byte_order=new.out.byte_order)
        new.out.put(kv, after=new.anchor)
        return
    scalar = [engine for engine in new.engines if not reads_array(engine, new.architecture, row)]
    if like.type is not ValueType.ARRAY and scalar:
        message = (
            f"{new.shown(row)} would need an entry for each layer, but {' and '.join(scalar)} read one number there"
        )
        new.out.problems.append(f"{message}, so layers with different values cannot be mixed")
        return
    new.out.array(new.key(row), entries, like.element_type, after=new.anchor)


def reads_array(engine: str, architecture: str, row: LayerKey) -> bool:
    """Whether `engine` takes an array under the key of `row`; true if it is not known to read the key."""
    facts = head_facts(engine)
    known = facts.architectures.get(architecture) if facts is not None else None
    if facts is None or known is None:
        return True
    name = row.key[1:] if row.key.startswith(".") else f"%s.{row.key}"
    read = [fact for fact in (*known.keys, *facts.general) if fact.name == name]
    return not read or any(fact.form != "scalar" for fact in read)


# --- counts ----------------------------------------------------------------------------------------------------------


def _write_front(new: NewLayers, row: LayerKey) -> None:
    """Count the leading new layers that were among the counted first layers of their model."""
    among = [layer < model.number(row.key, 0) for model, layer in new.layers[: new.trunk]]
    count = among.index(False) if False in among else len(among)
    if row.ordered:
        _keep_first(new, row)
    elif any(among[count:]):
        late = runs(index for index, one in enumerate(among) if one and index >= count)
        message = f"{new.shown(row)} counts layers from the first, and new layers {late} are of that kind"
        new.out.problems.append(f"{message} but come after others: put them first")
    elif count or new.base.of(row) is not None:
        new.out.number(new.key(row), count, after=new.anchor)


def _keep_first(new: NewLayers, row: LayerKey) -> None:
    wanted = new.base.number(row.key, 0)
    if new.layers[:wanted] != [(new.base, index) for index in range(wanted)]:
        message = f"{new.shown(row)}: parts of an image enter layers 0-{wanted - 1}"
        new.out.refusals.append(f"{message}, which would not be the same layers; leave these in their places")


def _write_back(new: NewLayers, row: LayerKey) -> None:
    """Count the trailing new layers that were among the counted last layers of their model."""
    if row.key == "nextn_predict_layers":  # written with the number of layers
        return
    counted = new.layers if row.length is Length.ALL else new.layers[: new.trunk]
    among = [layer >= first_of_last(model, row) for model, layer in counted]
    count = among[::-1].index(False) if False in among else len(among)
    if sum(among) != count:
        early = runs(index for index, one in enumerate(among[: len(among) - count]) if one)
        message = f"{new.shown(row)} counts layers to the last, and new layers {early} are of that kind"
        new.out.problems.append(f"{message} but come before others: put them last")
        return
    if row.key == "attention.shared_kv_layers" and count:
        _keep_shared(new, row, len(among) - count)
    new.out.number(new.key(row), count, after=new.anchor)


def first_of_last(model: HeadValues, row: LayerKey) -> int:
    """The first of the last layers that `row` counts in `model`."""
    return (model.layers if row.length is Length.ALL else model.trunk) - model.number(row.key, 0)


def _keep_shared(new: NewLayers, row: LayerKey, start: int) -> None:
    """Layers that share keys and values take them from the last two before them (llama.cpp src/llama-model.cpp)."""
    model, _ = new.layers[-1]
    wanted = [(model, first_of_last(model, row) - offset) for offset in (2, 1)]
    if new.layers[max(start - 2, 0) : start] != wanted:
        message = f"{new.shown(row)}: new layers from {start} on share the keys and values of the two before them"
        new.out.refusals.append(f"{message}, which would not be the same two; leave them in their places")


# --- numbers ---------------------------------------------------------------------------------------------------------


def _write_numbers(new: NewLayers, row: LayerKey) -> None:
    """List the new numbers of the layers that are in the list of their model, and the value that goes with each."""
    numbers: list[int] = []
    beside: list[Any] = []
    for index, (model, layer) in enumerate(new.layers):
        listed = _list(model, row.key)
        if layer in listed:
            numbers.append(index)
            beside += _list(model, row.beside)[listed.index(layer) :][:1]
    if row.exactly and len(numbers) != row.exactly:
        found = f"new layers {runs(numbers)}" if numbers else "none"
        new.out.problems.append(f"{new.shown(row)} must list {row.exactly} layer, but would list {found}")
        return
    new.out.array(new.key(row), numbers, _like(new, row).element_type, after=new.anchor)
    other = new.base.kvs.get(f"{new.architecture}.{row.beside}")
    if row.beside and other is not None:
        new.out.array(other.key, beside, other.element_type)


def _list(model: HeadValues, key: str) -> list[Any]:
    kv = model.kvs.get(f"{model.architecture}.{key}")
    return list(model.value(kv)) if kv is not None and kv.type is ValueType.ARRAY else []


def _check_phase(new: NewLayers, row: LayerKey) -> None:
    """Check a period that no rule explains in this architecture: each layer must keep its place in it."""
    if row.key in ruled_keys(new.architecture):
        return
    periods = {model.number(row.key, 0) for model in new.used}
    period = max(periods)
    moved = [index for index, (_, layer) in enumerate(new.layers) if period and (index - layer) % period]
    if len(periods) > 1 or moved:
        message = f"{new.shown(row)} is a period of layers, and it is not known how this architecture uses it"
        new.out.problems.append(f"{message}: move layers only by multiples of {period}")


def _keep_targets(new: NewLayers, row: LayerKey) -> None:
    new.out.warnings.append(f"{new.shown(row)} numbers layers of the target model; it stays as it is")


_WRITERS: Final[dict[KeyKind, Callable[[NewLayers, LayerKey], None]]] = {
    KeyKind.PER_LAYER: _write_entries,
    KeyKind.COUNT_FRONT: _write_front,
    KeyKind.COUNT_BACK: _write_back,
    KeyKind.LAYER_NUMBERS: _write_numbers,
    KeyKind.PERIODIC: _check_phase,
    KeyKind.TARGET_LAYERS: _keep_targets,
}


def _stop_at_unknown(new: NewLayers) -> None:
    """Stop at arrays of the architecture that are in no table and have as many entries as there are layers."""
    for model in new.models:
        for key, kv in model.kvs.items():
            if kv.type is not ValueType.ARRAY or not key.startswith(f"{new.architecture}."):
                continue
            if kv.count in (model.layers, model.trunk) and layer_key(key, new.architecture) is None:
                message = f"{printable(key, 80)} has {kv.count:,} entries, as many as there are layers"
                new.out.problems.append(
                    f"{message}, but is not known here; edit --remove removes it, if it is not needed"
                )
