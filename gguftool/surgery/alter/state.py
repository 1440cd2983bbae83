"""A model while it is altered: tensors with the model that each comes from, metadata, and where each layer comes from.

Operations are functions from a `State` to a `State`; what they find out goes into `Findings`.  Layers are numbered as
engines do: the trunk's first, those for multi-token prediction (MTP) behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gguftool.errors import printable
from gguftool.format.header import ARCHITECTURE_KEY
from gguftool.format.kv import INTEGERS, KV, ValueType, find_kv
from gguftool.model.model import Model, Tensor
from gguftool.model.remap.head_values import Remapped
from gguftool.record import record, replace

_LAYER = re.compile(r"blk\.([0-9]{1,6})\.(.+)", re.ASCII | re.DOTALL)
MAX_LAYERS = 4096  # of a model; engines are built for 512 (LLAMA_MAX_LAYERS in src/llama-hparams.h of llama.cpp)


class Findings:
    """What operations found out, in their order, each sentence once.

    `problems` cannot be done; `refusals` would load and compute something else, and `--anyway` lets them pass.
    """

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}  # ordered sets
        self.refusals: dict[str, None] = {}
        self.remarks: dict[str, None] = {}

    def problem(self, *texts: str) -> None:
        """Add what cannot be done."""
        self.problems |= dict.fromkeys(texts)

    def refuse(self, *texts: str) -> None:
        """Add what would change what the model computes."""
        self.refusals |= dict.fromkeys(texts)

    def remark(self, *texts: str) -> None:
        """Add what the user should know."""
        self.remarks |= dict.fromkeys(texts)

    def add_changes(self, changed: Remapped) -> tuple[KV, ...]:
        """Add what was found out when metadata was rewritten; return that metadata."""
        self.problem(*changed.problems)
        self.refuse(*changed.refusals)
        self.remark(*changed.remarks, *changed.warnings)
        return changed.kvs


@record
class Item:
    """A tensor under its name in the output, and the model that its bytes come from."""

    tensor: Tensor
    model: Model

    @property
    def name(self) -> str:
        """The name in the output."""
        return self.tensor.info.name


@record
class Origin:
    """Where a layer comes from: the label of the model, None for the input, and the number there."""

    label: str | None
    number: int


@record
class State:
    """A model while it is altered; `model` is the input, which gives the metadata.

    `layers` has an entry for each layer, those of the last `nextn` are for MTP. A model without layers has none.
    """

    model: Model
    kvs: tuple[KV, ...]
    items: tuple[Item, ...]
    layers: tuple[Origin, ...]
    nextn: int

    @property
    def trunk(self) -> int:
        """The number of layers that every token passes."""
        return len(self.layers) - self.nextn

    @property
    def architecture(self) -> str:
        """`general.architecture`, or an empty text."""
        return architecture_of(self.kvs)

    @property
    def by_name(self) -> dict[str, Item]:
        """The items by their names."""
        return {item.name: item for item in self.items}

    def origin(self, layer: int) -> Origin:
        """Where `layer` comes from; one that the metadata does not count is the input's."""
        return self.layers[layer] if layer < len(self.layers) else Origin(label=None, number=layer)

    def with_items(self, items: Iterable[Item]) -> State:
        """The same state with other items."""
        return replace(self, items=tuple(items))

    def as_model(self) -> Model:
        """The state as a model, to select from and to judge."""
        tensors = {item.name: item.tensor for item in self.items}
        return replace(self.model, kvs=self.kvs, tensors=tensors, missing=(), expected_tensors=None)


def state_of(model: Model, label: str | None = None) -> State:
    """The state of `model` before any operation; `label` is what its layers are called by."""
    items = tuple(Item(tensor=tensor, model=model) for tensor in model.tensors.values())
    trunk, nextn = count_layers(model.kvs, model.tensors)
    layers = tuple(Origin(label=label, number=number) for number in range(trunk + nextn))
    return State(model=model, kvs=model.kvs, items=items, layers=layers, nextn=nextn)


def architecture_of(kvs: Sequence[KV]) -> str:
    """`general.architecture`, or an empty text."""
    kv = find_kv(kvs, ARCHITECTURE_KEY)
    return str(kv.value()) if kv is not None and kv.type is ValueType.STRING else ""


def integer(kvs: Sequence[KV], key: str) -> int | None:
    """The value of ``ARCHITECTURE.key`` if it is an integer, else None."""
    kv = find_kv(kvs, f"{architecture_of(kvs)}.{key}")
    return int(kv.value()) if kv is not None and kv.type in INTEGERS else None


def layer_of(name: str) -> int | None:
    """The layer in the name of a tensor, or None."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def in_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another `layer`."""
    found = _LAYER.match(name)
    return f"blk.{layer}.{found[2]}" if found else name


# --- MTP -------------------------------------------------------------------------------------------------------------


def is_mtp_base(name: str) -> bool:
    """Whether the name alone says that a tensor is for MTP: ``blk.N.nextn.*``, and ``mtp.*`` of other programs."""
    found = _LAYER.match(name)
    return (found[2] if found else name).startswith(("nextn.", "mtp."))


def count_layers(kvs: Sequence[KV], names: Iterable[str]) -> tuple[int, int]:
    """The layers of the trunk, and those for MTP, by the metadata as far as the tensors agree with it.

    Layers with a ``nextn`` tensor are for MTP whatever the metadata says, and so are those behind them. Layers that the
    metadata promises for MTP count as the trunk's if they are there behind others, and none has such a tensor.
    """
    blocks, nextn = integer(kvs, "block_count") or 0, integer(kvs, "nextn_predict_layers") or 0
    if not 0 <= blocks <= MAX_LAYERS:
        return 0, 0
    nextn = nextn if 0 <= nextn <= blocks else 0
    there = {layer for name in names if (layer := layer_of(name)) is not None}
    marked = [layer for name in names if is_mtp_base(name) and (layer := layer_of(name)) is not None]
    promised = blocks - nextn
    if marked and max(marked) < MAX_LAYERS:
        trunk = promised if nextn and min(marked) >= promised else min(marked)
        return trunk, max(blocks, max(marked) + 1) - trunk
    return (blocks, 0) if nextn and promised and promised in there else (promised, nextn)


def mtp_names(state: State) -> list[str]:
    """The names of all tensors for MTP: of its layers, and those that no layer has."""
    return [
        item.name
        for item in state.items
        if is_mtp_base(item.name) or ((layer := layer_of(item.name)) is not None and layer >= state.trunk > 0)
    ]


def shown(name: str) -> str:
    """`name` in quotes, fit for a terminal."""
    return f"'{printable(name, 80)}'"


def renamed(item: Item, names: Mapping[str, str]) -> Item:
    """`item` under the name that `names` gives it, if any."""
    new = names.get(item.name)
    if new is None or new == item.name:
        return item
    return replace(item, tensor=replace(item.tensor, info=replace(item.tensor.info, name=new)))
