"""Tensors to take over: from GGUF models and from safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gguftool.errors import FormatError
from gguftool.format.header import TensorInfo
from gguftool.format.kv import ByteOrder
from gguftool.model.model import Model, Sizing, Tensor
from gguftool.model.opening import open_model
from gguftool.record import record
from gguftool.storage.sources.locate import open_source, without_query
from gguftool.storage.sources.source import Extent, Source


@record
class Donor:
    """Tensors by name, their sources, and the GGUF model they are of (None for safetensors).

    `byte_order` is that of all tensors but those in `big_endian`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    sources: tuple[Source, ...]
    model: Model | None
    byte_order: ByteOrder = ByteOrder.LITTLE
    big_endian: frozenset[str] = frozenset()

    def byte_order_of(self, name: str) -> ByteOrder:
        """Return the byte order of a tensor's data."""
        return ByteOrder.BIG if name in self.big_endian else self.byte_order


def open_donor(spec: str) -> Donor:
    """Open a GGUF model or a ``.safetensors`` file."""
    if without_query(spec).lower().endswith(".safetensors"):
        return _open_safetensors(spec)
    model = open_model(spec)
    order = model.byte_order
    return Donor(name=model.name, tensors=model.tensors, sources=model.sources, model=model, byte_order=order)


def _open_safetensors(spec: str) -> Donor:
    from gguftool.format.safetensors import head_length, parse_safetensors

    source = open_source(spec)
    try:
        length = head_length(source.read_at(0, min(8, source.size)), source.size)
        listed = parse_safetensors(source.read_at(0, length), source.size)
    except FormatError as error:
        error.source = source.name
        raise
    found = {}
    for entry in listed:
        if entry.type_id is None:
            continue  # a dtype that ggml lacks; asking for it says so
        info = TensorInfo(name=entry.name, dims=entry.dims, type=entry.type_id, offset=0)
        size = entry.end - entry.begin
        found[entry.name] = Tensor(
            info=info,
            gap=Extent(source=source, offset=length + entry.begin, length=size),
            type_nbytes=size,
            sizing=Sizing.EXACT,
            alignment=1,
        )
    big = frozenset(entry.name for entry in listed if entry.big_endian)
    return Donor(name=spec, tensors=MappingProxyType(found), sources=(source,), model=None, big_endian=big)
