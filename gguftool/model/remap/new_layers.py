"""A new list of layers, each with the model that it comes from: the input of all code that rewrites layer keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.errors import printable
from gguftool.format.engine_facts.layer_keys import LayerKey, full_key
from gguftool.format.engine_facts.layer_rules import NO_LAYER_LIST
from gguftool.format.kv import KV, ByteOrder
from gguftool.model.remap.head_values import HeadValues, Rewrite
from gguftool.record import record


@record
class LayerFrom:
    """Where a layer of the output comes from: `layer` of the model with the metadata `kvs`."""

    kvs: tuple[KV, ...]
    layer: int


class NewLayers:
    """The layers of the output as (model, layer) pairs; `trunk` of them come before the MTP layers.

    `base` is the model with the metadata to rewrite; `models` are all models, `base` first; `used` are those that give
    layers.
    """

    def __init__(
        self, kvs: tuple[KV, ...], mapping: Sequence[LayerFrom], engines: Sequence[str], byte_order: ByteOrder
    ) -> None:
        self.base: HeadValues = HeadValues(kvs)
        known = {id(kvs): self.base}
        for one in mapping:
            if id(one.kvs) not in known:
                known[id(one.kvs)] = self.base if one.kvs == kvs else HeadValues(one.kvs)
        self.layers: list[tuple[HeadValues, int]] = [(known[id(one.kvs)], one.layer) for one in mapping]
        self.models: tuple[HeadValues, ...] = tuple(dict.fromkeys(known.values()))
        self.used: tuple[HeadValues, ...] = tuple(dict.fromkeys(model for model, _ in self.layers))
        self.trunk: int = sum(layer < model.trunk for model, layer in self.layers)
        self.engines: tuple[str, ...] = tuple(engines)
        self.architecture: str = self.base.architecture
        self.out: Rewrite = Rewrite(kvs, byte_order)

    def problems(self) -> Iterator[str]:
        """Reasons why the layers cannot be in this order at all."""
        if not self.architecture:
            yield "general.architecture is absent, so the keys that count layers are not known; edit --set adds it"
        if self.architecture in NO_LAYER_LIST:
            yield f"layers of '{self.architecture}' cannot be listed: {NO_LAYER_LIST[self.architecture]}"
            return
        if not self.trunk:
            yield "no layers are left; keep at least one"
        for model in self.models:
            if model.architecture != self.architecture:
                found, wanted = printable(model.architecture, 40), printable(self.architecture, 40)
                yield f"a donor of layers has architecture '{found}', but the model has '{wanted}'; use the same"
        last = max((index for index, (model, layer) in enumerate(self.layers) if layer < model.trunk), default=-1)
        for index, (model, layer) in enumerate(self.layers):
            if not 0 <= layer < model.layers:
                yield f"layer {layer} is out of range: there are {model.layers:,}, numbered from 0"
            elif layer >= model.trunk and index < last:
                yield f"MTP layer {layer} would come before other layers; put MTP layers last"

    def key(self, row: LayerKey) -> str:
        """The whole key of `row`."""
        return full_key(row, self.architecture)

    def shown(self, row: LayerKey) -> str:
        """The whole key, fit for a message."""
        return printable(self.key(row), 80)

    @property
    def anchor(self) -> str:
        """The key after which new keys go."""
        return f"{self.architecture}.block_count"
