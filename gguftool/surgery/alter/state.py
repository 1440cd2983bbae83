"""A model while it is altered: its tensors, its metadata, and where each tensor and layer comes from.

Operations are functions from a `State` to a `State`; they report problems and remarks in `Findings`.  Layers are
numbered as in engines: those of the trunk first, then those for multi-token prediction (MTP).
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
    """Problems and remarks of operations, in their order, each sentence once.

    `problems` make the request impossible. `refusals` are results that would load but compute something else;
    `--anyway` writes them.
    """

    def __init__(self) -> None:
        self.problems: dict[str, None] = {}  # ordered sets
        self.refusals: dict[str, None] = {}
        self.remarks: dict[str, None] = {}

    def problem(self, *texts: str) -> None:
        """Add a reason why the request is impossible."""
        self.problems |= dict.fromkeys(texts)

    def refuse(self, *texts: str) -> None:
        """Add a reason why the output would compute something else."""
        self.refusals |= dict.fromkeys(texts)

    def remark(self, *texts: str) -> None:
        """Add a message for the user."""
        self.remarks |= dict.fromkeys(texts)

    def add_changes(self, changed: Remapped) -> tuple[KV, ...]:
        """Add the findings of rewritten metadata; return that metadata."""
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
    """Where a layer comes from: the label of its model (None for the input), and its number there."""

    label: str | None
    number: int


@record
class State:
    """A model while it is altered; `model` is the input, which gives the metadata.

    `layers` has an entry for each layer; the last `nextn` are for MTP. It is empty for a model without layers.
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
        """Where `layer` comes from; the input, if the metadata does not count that layer."""
        return self.layers[layer] if layer < len(self.layers) else Origin(label=None, number=layer)

    def with_items(self, items: Iterable[Item]) -> State:
        """The same state with other items."""
        return replace(self, items=tuple(items))

    def as_model(self) -> Model:
        """The state as a model, to select tensors from and to check."""
        tensors = {item.name: item.tensor for item in self.items}
        return replace(self.model, kvs=self.kvs, tensors=tensors, missing=(), expected_tensors=None)


def state_of(model: Model, label: str | None = None) -> State:
    """The state of `model` before any operation; lists refer to its layers by `label`."""
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
    """Whether a tensor is for MTP by its name alone: ``blk.N.nextn.*``, or ``mtp.*`` as other programs write it."""
    found = _LAYER.match(name)
    return (found[2] if found else name).startswith(("nextn.", "mtp."))


def count_layers(kvs: Sequence[KV], names: Iterable[str]) -> tuple[int, int]:
    """The numbers of layers of the trunk and for MTP, from the metadata as far as the tensors agree with it.

    A layer with a ``nextn`` tensor is for MTP whatever the metadata says, and so are the layers after it. Layers that
    the metadata counts for MTP belong to the trunk if they follow others and none of them has such a tensor.
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
    """The names of all tensors for MTP: those of its layers, and those outside layers."""
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
