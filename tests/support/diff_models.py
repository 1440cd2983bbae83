"""Models for the diff tests, made in memory by a GGUF writer with struct only."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from gguftool.model.model import Model, ModelFile, tensors_of
from gguftool.model.opening import read_header
from gguftool.storage.sources.source import Source

U8, U32, I32, F32, BOOL, STRING, ARRAY, F64 = 0, 4, 5, 6, 7, 8, 9, 12
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def text(value: str | bytes, order: str = "<") -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return struct.pack(order + "Q", len(data)) + data


def value(kind: int, item: object, order: str = "<") -> bytes:
    """Encode one value; an array is (element kind, items)."""
    if kind == STRING:
        return text(item, order)
    if kind == ARRAY:
        element, items = item
        body = b"".join(value(element, one, order) for one in items)
        return struct.pack(order + "IQ", element, len(items)) + body
    return item[:: 1 if order == "<" else -1] if isinstance(item, bytes) else struct.pack(order + CODES[kind], item)


def pad(data: bytes, alignment: int) -> bytes:
    return data + b"\0" * (-len(data) % alignment)


def gguf(
    kvs: Iterable[tuple[Any, ...]] = (),
    tensors: Sequence[tuple[Any, ...]] = (),
    *,
    order: str = "<",
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """A whole file; `kvs` are (key, kind, value), `tensors` (name, dims, type, data)."""
    kvs = list(kvs)
    if alignment != 32:
        kvs.append(("general.alignment", U32, alignment))
    head = b"GGUF" + struct.pack(order + "IQQ", version, len(tensors), len(kvs))
    for key, kind, item in kvs:
        head += text(key, order) + struct.pack(order + "I", kind) + value(kind, item, order)
    body = b""
    for name, dims, kind, data in tensors:
        head += text(name, order) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, kind, len(body))
        body += pad(data, alignment)
    return pad(head, alignment) + body


@dataclass
class Memory(Source):
    """A source over bytes that counts what is read."""

    stream_step: ClassVar[int] = 1 << 16

    data: bytes
    name: str = "memory.gguf"
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> str:
        return f"memory:{id(self)}"

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        found = self.data[offset : offset + length]
        assert len(found) == length
        return found

    @property
    def parallelism(self) -> int:
        return 2


def model(source: Memory | bytes) -> Model:
    source = Memory(source) if isinstance(source, bytes) else source
    header = read_header(source)
    return Model(
        name=source.name,
        files=(ModelFile(source=source, header=header, shard=None),),
        kvs=header.kvs,
        tensors=MappingProxyType({tensor.info.name: tensor for tensor in tensors_of(source, header)}),
    )


def made(kvs: Iterable[tuple[Any, ...]] = (), tensors: Sequence[tuple[Any, ...]] = (), **options: Any) -> Model:
    return model(gguf(kvs, tensors, **options))


def f32(*numbers: float, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(numbers)}f", *numbers)
