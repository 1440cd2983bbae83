"""A source in memory, and plans that copy it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.source import Extent, Source
from gguftool.storage.sources.virtual import BytesSource


class MemorySource(BytesSource):
    """Bytes that two threads read in small pieces, like those of a remote or a computed source."""

    stream_step: ClassVar[int] = 1 << 16

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
