"""The filler `gguftool.padding`: a uint8 array in the head that moves the tensor data to where a user wants it.

GGUF has no free slack: data starts where the head ends, rounded up to the alignment.  So that extents can be shared
with a source, their offsets in both files must agree modulo a file system's block; so that a later edit can stay in
place, the head must be able to grow.  Both are had by an array that nobody reads.  Engines load it and ignore it.
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
    """What the filler is for; sizes in bytes.

    `pad`: place the data where most of it can be shared with its sources; `reserve`: how much a later edit may add;
    `data_offset`: where the data must start; `at_least`: where it may start at the earliest.
    """

    pad: bool = False
    reserve: int = 0
    data_offset: int | None = None
    at_least: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether there is a reason to change a head at all."""
        return self.pad or self.reserve > 0 or self.data_offset is not None

    @property
    def at_most(self) -> int:
        """By how much a head may grow, whatever is in it."""
        return self.reserve + 2 * BLOCK if self.is_wanted else 0


def filled(header: Header, copies: Sequence[Copy], filler: Filler) -> Header:
    """Return `header` with the filler that puts the data where `filler` wants it, without one where none is needed.

    `copies` are those of the file, offsets counted from the start of the data. A filler that is there already is
    resized as by `pad`, also where `filler` wants nothing. Raises `PlanError` where `data_offset` cannot be had.
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
    """Return the data offset, modulo 4096, at which most bytes of `copies` lie as in their sources."""
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
    """Return `header` ending exactly at `data_offset`, with a filler only where it takes one."""
    if not _can_end_at(header, data_offset):
        size = _with_filler(header, None).length
        raise PlanError(
            f"cannot be changed in place: the new head takes {size:,} bytes and has to end at {data_offset:,}; a "
            f"filler in between takes at least {_with_filler(header, 0).length - size}"
        )
    without = _with_filler(header, None)
    if without.data_offset == data_offset:
        return without
    return _with_filler(header, data_offset - _with_filler(header, 0).length)


def _with_filler(header: Header, length: int | None) -> Header:
    """Return `header` with a filler of `length` bytes in the old one's place or at the end; None for without."""
    places = [index for index, kv in enumerate(header.kvs) if kv.key == PADDING_KEY]
    kvs = [kv for kv in header.kvs if kv.key != PADDING_KEY]
    if length is not None:
        kvs.insert(places[0] if places else len(kvs), _filler_kv(length, header.byte_order))
    return replace(header, kvs=tuple(kvs))


def _filler_kv(length: int, byte_order: ByteOrder) -> KV:
    empty = make_kv(PADDING_KEY, ValueType.ARRAY, [], element=ValueType.UINT8, byte_order=byte_order)
    return replace(empty, raw=empty.raw[:4] + struct.pack(byte_order.value + "Q", length) + bytes(length))
