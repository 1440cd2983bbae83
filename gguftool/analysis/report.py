"""Report how a model's parameters and bytes are distributed over types, roles, layers, tensors and devices.

Reads only heads, no tensor data. Bytes are those of the tensors, without padding; bits per weight include a type's row
metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gguftool.analysis.label import Label, is_matrix, label_of
from gguftool.analysis.placement import PlacementRule, device_of
from gguftool.errors import printable
from gguftool.format.ggml import type_name
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import ValueType
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.opening import ModelLike, as_model, as_models
from gguftool.model.roles import Place, Role, tensor_places
from gguftool.record import record
from gguftool.storage.sources.locate import base_name

_NAME = "general.name"


@record
class Share:
    """A part of a model; `share` is its fraction of the bytes (0 to 1), `types` lists its types, most bytes first."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    share: float
    bits_per_weight: float
    types: tuple[str, ...]


@record
class TensorRow:
    """One tensor; `sizing` says whether `nbytes` is certain, `layer` is None outside layers, `device` if unplaced."""

    index: int
    name: str
    type: str
    dims: tuple[int, ...]
    parameters: int
    nbytes: int
    bits_per_weight: float
    role: str
    stack: str
    layer: int | None
    device: str | None
    sizing: str


@record
class Cell:
    """The tensors of one role in one layer."""

    layer: int
    role: str
    tensors: int
    parameters: int
    nbytes: int
    bits_per_weight: float
    types: tuple[str, ...]


@record
class Layers:
    """The layers of one stack (``blk``; an encoder or vision tower has another), and the cells of its grid."""

    stack: str
    layers: tuple[int, ...]
    roles: tuple[str, ...]
    totals: tuple[Share, ...]
    cells: tuple[Cell, ...]


@record
class PlacementUse:
    """A placement rule and the tensors that it took from those that earlier rules left."""

    pattern: str
    device: str
    tensors: int
    nbytes: int


@record
class Placement:
    """Bytes per device and per rule, and the names of the tensors that no rule takes."""

    devices: tuple[Share, ...]
    rules: tuple[PlacementUse, ...]
    unplaced: tuple[str, ...]


@record
class Distribution:
    """One model. `file_bytes` counts whole files, `nbytes` tensors; `placement` is None without rules."""

    model: str
    architecture: str | None
    name: str | None
    files: int
    file_bytes: int
    nbytes: int
    parameters: int
    label: Label
    by_type: tuple[Share, ...]
    by_role: tuple[Share, ...]
    by_layer: tuple[Layers, ...]
    by_file: tuple[Share, ...]
    placement: Placement | None
    tensors: tuple[TensorRow, ...]
    missing: tuple[str, ...]
    remarks: tuple[str, ...]


@record
class Report:
    """The distributions of all models, in the order given."""

    models: tuple[Distribution, ...]


@record
class _Item:
    """A tensor with the properties that sums need, computed once."""

    tensor: Tensor
    place: Place
    rule: PlacementRule | None
    type: str
    nbytes: int
    parameters: int


def report(models: ModelLike | Sequence[ModelLike], rules: tuple[PlacementRule, ...] = ()) -> Report:
    """Describe `models`, sizes in bytes; `rules` place their tensors on devices.

    Opens paths, neighbours together, and raises errors as `open_models` does.
    """
    return Report(models=tuple(distribution(model, rules) for model in as_models(models)))


def distribution(model: ModelLike, rules: tuple[PlacementRule, ...] = ()) -> Distribution:
    """Describe one model, sizes in bytes; `rules` place its tensors on devices.

    Raises the errors of `open_model` for a path.
    """
    model = as_model(model)
    places = tensor_places(model.tensors)
    items = [_item(tensor, places[name], device_of(name, rules)) for name, tensor in model.tensors.items()]
    total = sum(item.nbytes for item in items)
    by_type = sorted(_shares(items, total, lambda item: item.type), key=lambda share: -share.nbytes)
    by_role = _shares(items, total, lambda item: item.place.role.value)
    placement = _placement(items, total, rules) if rules else None
    return Distribution(
        model=model.name,
        architecture=_text(model, ARCHITECTURE_KEY),
        name=_text(model, _NAME),
        files=len(model.files),
        file_bytes=sum(source.size for source in model.sources),
        nbytes=total,
        parameters=sum(item.parameters for item in items),
        label=label_of(model, places),
        by_type=tuple(by_type),
        by_role=tuple(sorted(by_role, key=lambda share: _ROLE_ORDER[share.name])),
        by_layer=_layers(items, total),
        by_file=tuple(_shares(items, total, lambda item: base_name(item.tensor.padded_extent.source.name))),
        placement=placement,
        tensors=tuple(_row(index, item) for index, item in enumerate(items, start=1)),
        missing=model.missing,
        remarks=(*model.remarks, *_remarks(model, items, placement)),
    )


def _item(tensor: Tensor, place: Place, rule: PlacementRule | None) -> _Item:
    return _Item(
        tensor=tensor,
        place=place,
        rule=rule,
        type=type_name(tensor.info.type),
        nbytes=tensor.nbytes,
        parameters=tensor.info.elements,
    )


_ROLE_ORDER = {role.value: index for index, role in enumerate(Role)}


# --- sums ------------------------------------------------------------------------------------------------------------


def _bits(nbytes: int, parameters: int) -> float:
    return round(nbytes * 8 / parameters, 4) if parameters else 0.0


def _shares(items: Iterable[_Item], total: int, key: Callable[[_Item], str]) -> list[Share]:
    """Sum `items` by `key`, in order of first occurrence."""
    groups: dict[str, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [_share(name, group, total) for name, group in groups.items()]


def _share(name: str, items: Sequence[_Item], total: int) -> Share:
    nbytes = sum(item.nbytes for item in items)
    parameters = sum(item.parameters for item in items)
    return Share(
        name=name,
        tensors=len(items),
        parameters=parameters,
        nbytes=nbytes,
        share=round(nbytes / total, 6) if total else 0.0,
        bits_per_weight=_bits(nbytes, parameters),
        types=_types(items),
    )


def _types(items: Iterable[_Item]) -> tuple[str, ...]:
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.type] = sizes.get(item.type, 0) + item.nbytes
    return tuple(sorted(sizes, key=sizes.__getitem__, reverse=True))


def _row(index: int, item: _Item) -> TensorRow:
    info = item.tensor.info
    return TensorRow(
        index=index,
        name=info.name,
        type=item.type,
        dims=info.dims,
        parameters=item.parameters,
        nbytes=item.nbytes,
        bits_per_weight=_bits(item.nbytes, item.parameters),
        role=item.place.role.value,
        stack=item.place.stack,
        layer=item.place.layer,
        device=item.rule.device if item.rule else None,
        sizing=item.tensor.sizing.value,
    )


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(items: Iterable[_Item], total: int) -> tuple[Layers, ...]:
    stacks: dict[str, dict[int, list[_Item]]] = {}
    for item in items:
        if item.place.layer is not None:
            stacks.setdefault(item.place.stack, {}).setdefault(item.place.layer, []).append(item)
    return tuple(_stack(stack, layers, total) for stack, layers in stacks.items())


def _stack(stack: str, layers: dict[int, list[_Item]], total: int) -> Layers:
    numbers = tuple(sorted(layers))
    present = {item.place.role for items in layers.values() for item in items}
    return Layers(
        stack=stack,
        layers=numbers,
        roles=tuple(role.value for role in Role if role in present),
        totals=tuple(_share(str(number), layers[number], total) for number in numbers),
        cells=tuple(cell for number in numbers for cell in _cells(number, layers[number])),
    )


def _cells(layer: int, items: Sequence[_Item]) -> Iterable[Cell]:
    roles: dict[Role, list[_Item]] = {}
    for item in items:
        roles.setdefault(item.place.role, []).append(item)
    for role in sorted(roles, key=lambda role: _ROLE_ORDER[role.value]):
        nbytes = sum(item.nbytes for item in roles[role])
        parameters = sum(item.parameters for item in roles[role])
        yield Cell(
            layer=layer,
            role=role.value,
            tensors=len(roles[role]),
            parameters=parameters,
            nbytes=nbytes,
            bits_per_weight=_bits(nbytes, parameters),
            types=_main_types(roles[role]),
        )


def _main_types(items: Sequence[_Item]) -> tuple[str, ...]:
    """List the types of the matrices, or of the vectors if there are no matrices: biases make no mix."""
    return _types([item for item in items if is_matrix(item.tensor)] or items)


# --- placement and remarks -------------------------------------------------------------------------------------------


def _placement(items: Sequence[_Item], total: int, rules: tuple[PlacementRule, ...]) -> Placement:
    placed = [item for item in items if item.rule]
    unplaced = [item for item in items if not item.rule]
    devices = sorted(_shares(placed, total, lambda item: item.rule.device if item.rule else ""), key=_by_size)
    return Placement(
        devices=(*devices, *([_share("unplaced", unplaced, total)] if unplaced else [])),
        rules=tuple(_use(rule, placed) for rule in rules),
        unplaced=tuple(item.tensor.info.name for item in unplaced),
    )


def _by_size(share: Share) -> int:
    return -share.nbytes


def _use(rule: PlacementRule, placed: Iterable[_Item]) -> PlacementUse:
    taken = [item.nbytes for item in placed if item.rule is rule]
    return PlacementUse(pattern=rule.pattern, device=rule.device, tensors=len(taken), nbytes=sum(taken))


def _remarks(model: Model, items: Sequence[_Item], placement: Placement | None) -> Iterable[str]:
    doubtful = sum(item.tensor.sizing is not Sizing.EXACT for item in items)
    if doubtful:
        yield f"the sizes of {doubtful:,} tensors are uncertain (unknown types, or type and space in the file disagree)"
    if not model.is_complete:
        expected = f" of {model.expected_tensors:,}" if model.expected_tensors is not None else ""
        yield f"this set is incomplete: {len(model.tensors):,}{expected} tensors are counted here"
    for use in placement.rules if placement else ():
        if not use.tensors:
            yield f"--place {printable(use.pattern)}={printable(use.device)} took no tensor"


def _text(model: Model, key: str) -> str | None:
    kv = model.get(key)
    return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else None
