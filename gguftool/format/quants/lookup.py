"""The arithmetic of nearly all these types: row or block scale x sub-block scale x value of the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gguftool.format.quants.codebooks import codebook
from gguftool.format.quants.fields import Bits, numbers
from gguftool.record import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


@record
class Lookup:
    """How the blocks of one type become numbers.

    `codes` choose from the table `values`; if a table row has several values, a code stands for that many elements.
    `scales` are the sub-block scales by the table `scale_values`, `shift_bits` (one a sub-block) choose the upper half
    of `values`, `signs` (one an element) negate.  `scale_at` is the byte of the block's half float, or None if a row
    has one scale for all its blocks: float32 or, with `half_meta`, a half, at the start of the row.
    `prepare` rewrites blocks with scrambled bits.
    """

    codes: tuple[Bits, ...]
    values: str
    scale_at: int | None = None
    half_meta: bool = False
    scales: tuple[Bits, ...] = ()
    scale_values: str = ""
    shift_bits: Bits | None = None
    signs: Bits | None = None
    prepare: Callable[[Bytes], Bytes] | None = None

    def row_scales(self, metas: Bytes) -> NDArray[np.float32]:
        """Return the scale of each row of `metas` (rows x bytes)."""
        import numpy as np

        kind, size = ("<f2", 2) if self.half_meta else ("<f4", 4)
        return np.ascontiguousarray(metas[:, :size]).view(kind)[:, 0].astype(np.float32)

    def decode(self, blocks: Bytes, scale: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Decode `blocks` (blocks x bytes) to blocks x elements; `scale` is one a block or None."""
        import numpy as np

        if self.prepare is not None:
            blocks = self.prepare(blocks)
        if scale is None:
            at = self.scale_at or 0
            scale = np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)
        scale = scale[:, None]
        if self.scales:
            scale = scale * codebook(self.scale_values).take(numbers(self.scales, blocks))
        index = numbers(self.codes, blocks)
        count = len(blocks)
        if self.shift_bits is not None:
            index = self._shift(index, numbers((self.shift_bits,), blocks))
        grouped = codebook(self.values).take(index, axis=0).reshape(count, scale.shape[1], -1)
        grouped *= scale[:, :, None]
        elements: NDArray[np.float32] = grouped.reshape(count, -1)
        if self.signs is not None:
            floats = elements.view(np.uint32)
            floats ^= numbers((self.signs,), blocks).astype(np.uint32) << np.uint32(31)
        return elements

    def _shift(self, index: NDArray[Any], shift: NDArray[Any]) -> NDArray[Any]:
        half = len(codebook(self.values)) // 2
        shifted: NDArray[Any] = index.reshape(*shift.shape, -1) | (shift * index.dtype.type(half))[:, :, None]
        return shifted.reshape(index.shape)
