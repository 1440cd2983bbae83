"""Undo interleaved rows: a group of rows has the bits of the same number of plain rows, in another order.

So a repacked type needs no arithmetic: its groups become blocks of the base type, and the decoder of that gives exactly
the floats of the base type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from gguftool.format.quants.fields import Bits
from gguftool.record import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


@record
class Units:
    """Whole units of `size` bytes, one of each row in turn."""

    at: int
    size: int

    def position(self, row: int, index: int, rows: int) -> int:
        """Return the first bit of byte `index` of `row`."""
        unit, byte = divmod(index, self.size)
        return 8 * (self.at + self.size * (rows * unit + row) + byte)


@record
class Striped:
    """Small numbers, one of each row in turn, distributed over `nbytes` bytes; each round starts `step` bits higher.

    `lift` are bits below the first number of a byte; `order` renumbers each run of ``len(order)`` indices.
    """

    at: int
    nbytes: int
    step: int
    lift: int = 0
    order: tuple[int, ...] = (0,)

    def position(self, row: int, index: int, rows: int) -> int:
        """Return the first bit of number `index` of `row`."""
        size = len(self.order)
        turn, byte = divmod(rows * (index // size * size + self.order[index % size]) + row, self.nbytes)
        return 8 * (self.at + byte) + turn * self.step + self.lift


@record
class Quads:
    """Codes in fours, a four of each row in turn: four `i` of each 32 elements starts at ``places[i]`` (byte, shift).

    `step` bytes hold 32 elements of all rows.
    """

    at: int
    step: int
    places: tuple[tuple[int, int], ...]

    def position(self, row: int, index: int, rows: int) -> int:  # noqa: ARG002 - `step` implies it
        """Return the first bit of code `index` of `row`."""
        run, within = divmod(index, 32)
        byte, shift = self.places[within // 4]
        return 8 * (self.at + run * self.step + byte + 4 * row + within % 4) + shift


@record
class EvenOdd:
    """Single bits of sub-blocks: a byte a row for the even ones, then a byte a row for the odd ones."""

    at: int

    def position(self, row: int, index: int, rows: int) -> int:
        """Return the bit of sub-block `index` of `row`."""
        return 8 * (self.at + row + rows * (index % 2)) + index // 2


@record
class Move:
    """The numbers `base` of each row's plain block are at `packed` in the block of the group.

    `base` may be a list of single numbers if they follow no rule.
    """

    base: Bits | tuple[Bits, ...]
    packed: Units | Striped | Quads | EvenOdd


@record
class Repack:
    """How `rows` interleaved rows of one type become rows of `base`, with blocks of `base_bytes`.

    `finish` rewrites base blocks with bits that are also scrambled, `start` undoes that before they are packed.
    """

    base: str
    rows: int
    base_bytes: int
    moves: tuple[Move, ...]
    finish: Callable[[Bytes], Bytes] | None = None
    start: Callable[[Bytes], Bytes] | None = None

    def pack(self, base: Bytes) -> Bytes:
        """Convert plain blocks (groups x rows x `base_bytes`) to interleaved ones (groups x bytes): undoes `unpack`."""
        import numpy as np

        if (self.finish is None) != (self.start is None):
            raise ValueError("only unpacking is known")
        base = base if self.start is None else self.start(base.copy())
        order = _bits_of(self)
        bits = np.unpackbits(base, axis=2, bitorder="little").reshape(len(base), -1)
        return np.packbits(bits.take(order, axis=1), axis=1, bitorder="little")

    def unpack(self, packed: Bytes) -> Bytes:
        """Convert interleaved blocks (groups x bytes) to plain ones (groups x rows x `base_bytes`)."""
        import numpy as np

        base = np.empty((len(packed), self.rows, self.base_bytes), dtype=np.uint8)
        for step in _steps(self):
            base[:, :, step.base] = step.take(packed)
        return base if self.finish is None else self.finish(base)

    def bit_order(self) -> NDArray[np.intp]:
        """Return the bit of the group's block for each bit of the plain blocks (rows x bits)."""
        import numpy as np

        order = np.full((self.rows, 8 * self.base_bytes), -1, dtype=np.intp)
        for move in self.moves:
            fields = move.base if isinstance(move.base, tuple) else (move.base,)
            places = [(field.position(index), field.width) for field in fields for index in range(field.count)]
            for index, (at, width) in enumerate(places):
                for row in range(self.rows):
                    first = move.packed.position(row, index, self.rows)
                    order[row, at : at + width] = range(first, first + width)
        return order


@record
class _Step:
    """Fill bytes `base` of plain blocks from bytes `packed` of the group: atoms of `width` bits in order `order`."""

    base: slice
    packed: slice
    width: int
    order: NDArray[np.intp]  # rows x atoms

    def take(self, packed: Bytes) -> Bytes:
        """Return groups x rows x bytes."""
        import numpy as np

        data = packed[:, self.packed]
        if self.width == 1:
            bits = np.unpackbits(data, axis=1, bitorder="little").take(self.order.ravel(), axis=1)
            return np.packbits(bits.reshape(len(packed), *self.order.shape), axis=2, bitorder="little")
        mask = np.uint8((1 << self.width) - 1)
        # all lowest atoms, then all next ones: numpy is fast at long runs of the same shift
        atoms = np.concatenate([(data >> np.uint8(shift)) & mask for shift in range(0, 8, self.width)], axis=1)
        each = 8 // self.width
        byte, plane = self.order // each, self.order % each
        places = (plane * data.shape[1] + byte).reshape(len(self.order), -1, each)
        whole: Bytes = atoms.take(places[..., 0], axis=1)
        for number in range(1, each):
            whole |= atoms.take(places[..., number], axis=1) << np.uint8(number * self.width)
        return whole


@cache
def _bits_of(repack: Repack) -> NDArray[np.intp]:
    """The bit of the plain blocks for each bit of the group's block."""
    import numpy as np

    order = repack.bit_order().ravel()
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


@cache
def _steps(repack: Repack) -> tuple[_Step, ...]:
    """Return the steps that fill plain blocks: runs of bytes that move in atoms of one width."""
    order = repack.bit_order()
    widths = [_atom(order[:, 8 * byte : 8 * byte + 8]) for byte in range(repack.base_bytes)]
    steps = []
    begin = 0
    for end in range(1, repack.base_bytes + 1):
        if end == repack.base_bytes or widths[end] != widths[begin]:
            steps.append(_step(order, begin, end, widths[begin]))
            begin = end
    return tuple(steps)


def _atom(bits: NDArray[np.intp]) -> int:
    """Count the bits of a byte that move together in all rows: 8, 4, 2 or 1."""
    for width in (8, 4, 2):
        parts = bits.reshape(len(bits), -1, width)
        if (parts[:, :, 0] % width == 0).all() and (parts == parts[:, :, :1] + range(width)).all():
            return width
    return 1


def _step(order: NDArray[np.intp], begin: int, end: int, width: int) -> _Step:
    bits = order[:, 8 * begin : 8 * end]
    low, high = int(bits.min()) // 8, math.ceil((int(bits.max()) + 1) / 8)
    return _Step(
        base=slice(begin, end),
        packed=slice(low, high),
        width=width,
        order=(bits[:, ::width] - 8 * low) // width,
    )
