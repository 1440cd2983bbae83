"""A source that rearranges rows while it is read: a tensor in another interleaving, see `format/quants/relayout`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguftool.format.ggml import TYPES, type_alias, type_name
from gguftool.format.quants.relayout import Relayout
from gguftool.format.quants.repacks import REPACKS
from gguftool.model.model import Model, Tensor
from gguftool.storage.sources.source import Source

_CHUNK = 1 << 20  # bytes rearranged at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayoutSource(Source):
    """The data of `tensor` in type `wanted`, which holds the same numbers in another order."""

    tensor: Tensor
    change: Relayout
    wanted: int

    @property
    def name(self) -> str:
        """The file that the tensor is in."""
        return self.tensor.padded_extent.source.name

    @property
    def size(self) -> int:
        """Bytes of the tensor, the same in both types."""
        return self.tensor.nbytes

    @property
    def identity(self) -> str:
        """The identity of the input, and the conversion."""
        extent = self.tensor.extent
        return (
            f"{extent.source.identity} {extent.offset}+{extent.length} to {type_name(self.wanted)} {self.tensor.shape}"
        )

    @property
    def is_remote(self) -> bool:
        """Whether the input is."""
        return self.tensor.padded_extent.source.is_remote

    def check_unchanged(self) -> None:
        """Raise `SourceError` if the input changed."""
        self.tensor.padded_extent.source.check_unchanged()

    def read_at(self, offset: int, length: int) -> bytes:
        """Convert the groups of rows that the range touches, and cut its bytes out."""
        return b"".join(self.stream(offset, length))

    def stream(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """Convert `length` bytes from `offset`, some groups of rows at a time."""
        extent, unit = self.tensor.extent, self.change.unit_bytes
        step, end = max(1, _CHUNK // unit) * unit, offset + length
        at = offset // unit * unit
        while at < end:
            size = min(step, extent.length - at)
            made = memoryview(self.change.convert(extent.source.read_at(extent.offset + at, size)))
            yield made[max(offset - at, 0) : end - at]
            at += size


def plain_types(model: Model) -> list[str]:
    """Rules that give every interleaved tensor of `model` its plain type: ``NAME=TYPE``."""
    rules = []
    for name, tensor in model.tensors.items():
        kind = TYPES.get(tensor.info.type)
        pack = REPACKS.get(kind.name) if kind is not None else None
        base = next((one for one in TYPES.values() if pack is not None and one.name == pack.base), None)
        if base is not None and base is not kind:
            rules.append(f"{name}={type_alias(base.id)}")
    return rules
