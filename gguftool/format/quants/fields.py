"""Positions of the small numbers in a block, and their extraction from many blocks at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from gguftool.record import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@record
class Bits:
    """`count` numbers of `width` bits (of at most 8, or 16 at shift 0) from byte `at` of a block.

    The numbers are in planes: in each run of `run` bytes, first all bytes shifted right by ``shifts[0]``, then all by
    ``shifts[1]``, and so on; then the next run.  For example, 16 bytes with numbers 0 to 15 in the low halves and 16 to
    31 in the high halves are ``run=16, shifts=(0, 4)``.
    """

    at: int
    count: int
    width: int
    run: int = 1
    shifts: tuple[int, ...] = (0,)

    @property
    def nbytes(self) -> int:
        """Bytes that hold the numbers."""
        return self.count // len(self.shifts) * (self.width // 8 if self.width > 8 else 1)

    def position(self, index: int) -> int:
        """Return the first bit of number `index`, counted from the lowest bit of byte 0 of the block."""
        plane, byte = divmod(index % (self.run * len(self.shifts)), self.run)
        byte += index // (self.run * len(self.shifts)) * self.run
        return 8 * (self.at + byte * max(1, self.width // 8)) + self.shifts[plane]


def numbers(fields: Sequence[Bits], blocks: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Extract the numbers of each of `blocks` (blocks x bytes); the first field has their lowest bits.

    The result is blocks x count; 16 bits wide if the fields together have more than 8.
    """
    import numpy as np

    total: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    done = 0
    wide = sum(field.width for field in fields) > 8
    for field in fields:
        part: NDArray[np.uint8] | NDArray[np.uint16] = _numbers(field, blocks)
        if wide:
            part = part.astype(np.uint16, copy=False)
        if done:
            part = part << np.uint8(done)
        total = part if total is None else total | part
        done += field.width
    assert total is not None
    return total


def _numbers(field: Bits, blocks: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    import numpy as np

    data = blocks[:, field.at : field.at + field.nbytes]
    if field.width == 16:
        return np.ascontiguousarray(data).view("<u2")
    if field.width == 8:
        return data
    planes = len(field.shifts)
    runs = data.reshape(len(blocks), -1, 1, field.run)
    shifted = runs >> _column(field.shifts) if any(field.shifts) else runs
    if max(field.shifts) + field.width != 8 or planes > 1:
        shifted = shifted & np.uint8((1 << field.width) - 1)
    return shifted.reshape(len(blocks), field.count)


@cache
def _column(shifts: tuple[int, ...]) -> NDArray[np.uint8]:
    import numpy as np

    return np.array(shifts, dtype=np.uint8)[:, None]


def nibbles(at: int, count: int, run: int) -> Bits:
    """Describe 4-bit numbers: in each run the low halves before the high halves."""
    return Bits(at=at, count=count, width=4, run=run, shifts=(0, 4))


def pairs(at: int, count: int, run: int) -> Bits:
    """Describe 2-bit numbers in four planes a run."""
    return Bits(at=at, count=count, width=2, run=run, shifts=(0, 2, 4, 6))


def single_bits(at: int, count: int, run: int) -> Bits:
    """Describe 1-bit numbers in eight planes a run."""
    return Bits(at=at, count=count, width=1, run=run, shifts=tuple(range(8)))


def whole_bytes(at: int, count: int) -> Bits:
    """Describe numbers of one byte each."""
    return Bits(at=at, count=count, width=8)
