"""A source in memory, and plans that copy it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gguftool.errors import SourceError
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.source import Extent, Source


@dataclass(frozen=True)
class MemorySource(Source):
    """A source without a file, like a remote or a computed one."""

    label: str
    data: bytes

    stream_step: ClassVar[int] = 1 << 16

    @property
    def name(self) -> str:
        return self.label

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> str:
        return f"memory:{self.name}:{hashlib.sha256(self.data).hexdigest()}"

    def read_at(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.data):
            raise SourceError("ends early", source=self.name, offset=offset)
        return self.data[offset : offset + length]

    @property
    def parallelism(self) -> int:
        return 2


def copy_plan(source: Source, *targets: Path, pieces: int = 2) -> Plan:
    """A plan that copies all of `source` into each target, behind a head of 16 bytes, in pieces with gaps of 16."""
    size = source.size // pieces
    copies = tuple(
        Copy(extent=Extent(source=source, offset=size * piece, length=size), offset=16 + (size + 16) * piece)
        for piece in range(pieces)
    )
    outputs = tuple(
        OutputFile(path=target, head=b"%-16d" % number, copies=copies, size=16 + (size + 16) * pieces)
        for number, target in enumerate(targets)
    )
    return Plan(outputs=outputs, inputs=(source,))


def expected(source_data: bytes, number: int = 0, pieces: int = 2) -> bytes:
    """The bytes that `copy_plan` asks for in output `number`."""
    size = len(source_data) // pieces
    parts = [source_data[size * piece : size * (piece + 1)] + bytes(16) for piece in range(pieces)]
    return b"%-16d" % number + b"".join(parts)
