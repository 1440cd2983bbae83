"""The filler `gguftool.padding`: a uint8 array in the head that moves the tensor data to a chosen offset.

GGUF has no slack: data starts where the head ends, rounded up to the alignment.  To share extents with a source, their
offsets in both files must agree modulo the file system's block size; for a later edit in place, the head must have room
to grow.  An unused array provides both.  Engines load it and ignore it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence

from gguftool.errors import PlanError
from gguftool.format.header import Header, round_up
from gguftool.format.kv import KV, ByteOrder, ValueType, find_kv, make_kv
from gguftool.record import record, replace
from gguftool.storage.plan import BLOCK, Copy

PADDING_KEY = "gguftool.padding"
MAX_RESERVE = 16 << 20  # bytes; a chat template takes some tens of KiB


@record
class Filler:
    """The purpose of the filler; sizes and offsets in bytes.

    `pad`: place the data so that most of it can be shared with its sources; `reserve`: bytes for later edits;
    `data_offset`: the exact start of the data; `at_least`: the earliest start of the data.
    """

    pad: bool = False
    reserve: int = 0
    data_offset: int | None = None
    at_least: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether there is a reason to add a filler."""
        return self.pad or self.reserve > 0 or self.data_offset is not None

    @property
    def at_most(self) -> int:
        """Upper bound of the bytes that the filler adds to any head."""
        return self.reserve + 2 * BLOCK if self.is_wanted else 0


def filled(header: Header, copies: Sequence[Copy], filler: Filler) -> Header:
    """Add a filler to `header` that puts the data at the offset that `filler` asks for, or remove it if not needed.

    `copies` are those of the file, with offsets from the start of the data. An existing filler is resized as with
    `pad`, even if `filler` asks for nothing. Raises `PlanError` if the data cannot start at `filler.data_offset`.
    """
    if not filler.is_wanted:
        if find_kv(header.kvs, PADDING_KEY) is None:
            return header
        filler = replace(filler, pad=True)
    if filler.data_offset is not None:
        return _ending_at(header, filler.data_offset)
    without = _with_filler(header, None)
    need = without.length
    if filler.reserve:
        need = _with_filler(header, filler.reserve).length
    need = max(need, filler.at_least)
    step = max(BLOCK, header.alignment) if filler.pad else header.alignment
    residue = best_residue(copies, header.alignment) if filler.pad else 0
    data_offset = residue + round_up(max(0, need - residue), step)
    while not _can_end_at(header, data_offset):
        data_offset += step
    return _ending_at(header, data_offset)


def best_residue(copies: Sequence[Copy], alignment: int) -> int:
    """The data offset modulo 4096 at which most bytes of `copies` are aligned as in their sources."""
    votes: Counter[int] = Counter()
    for copy in copies:
        residue = (copy.extent.offset - copy.offset) % BLOCK
        if residue % min(alignment, BLOCK) == 0:
            votes[residue] += copy.extent.length
    return max(votes, key=lambda residue: (votes[residue], -residue), default=0)


def _can_end_at(header: Header, data_offset: int) -> bool:
    without = _with_filler(header, None)
    empty = _with_filler(header, 0).length
    return data_offset % header.alignment == 0 and (without.data_offset == data_offset or empty <= data_offset)


def _ending_at(header: Header, data_offset: int) -> Header:
    """Make `header` end exactly at `data_offset`, with a filler only if needed; raises `PlanError` if impossible."""
    if not _can_end_at(header, data_offset):
        size = _with_filler(header, None).length
        raise PlanError(
            f"cannot be changed in place: the new head takes {size:,} bytes and must end at {data_offset:,}; a "
            f"filler in between takes at least {_with_filler(header, 0).length - size}"
        )
    without = _with_filler(header, None)
    if without.data_offset == data_offset:
        return without
    return _with_filler(header, data_offset - _with_filler(header, 0).length)


def _with_filler(header: Header, length: int | None) -> Header:
    """Set a filler of `length` bytes, in the old one's place or at the end; None removes it."""
    places = [index for index, kv in enumerate(header.kvs) if kv.key == PADDING_KEY]
    kvs = [kv for kv in header.kvs if kv.key != PADDING_KEY]
    if length is not None:
        kvs.insert(places[0] if places else len(kvs), _filler_kv(length, header.byte_order))
    return replace(header, kvs=tuple(kvs))


def _filler_kv(length: int, byte_order: ByteOrder) -> KV:
    empty = make_kv(PADDING_KEY, ValueType.ARRAY, [], element=ValueType.UINT8, byte_order=byte_order)
    return replace(empty, raw=empty.raw[:4] + struct.pack(byte_order.value + "Q", length) + bytes(length))
