"""Lossless changes of a tensor's type: the same blocks with rows interleaved in another way, or not at all.

Q4_K and Q4_K_R4 are such a pair; so are Q4_0 and the old Q4_0_4_4, Q4_0_4_8, Q4_0_8_8, which llama.cpp no longer reads.
Both directions follow the one description in `quants/repacks.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gguftool.format.ggml import TYPES, TypeTraits
from gguftool.format.quants.packing import Repack
from gguftool.format.quants.repacks import REPACKS
from gguftool.record import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


@record
class Relayout:
    """From one interleaving to another: `unit_bytes` are the bytes of the rows that must be converted together."""

    old: Repack | None
    new: Repack | None
    rows: int
    blocks: int
    block_bytes: int
    meta_bytes: int

    @property
    def unit_bytes(self) -> int:
        """Bytes of the rows that are converted together, the same in both types."""
        return self.rows * (self.meta_bytes + self.blocks * self.block_bytes)

    def convert(self, data: bytes) -> bytes:
        """Convert whole units."""
        import numpy as np

        plain = np.frombuffer(data, dtype=np.uint8)
        if self.old is not None:
            plain = self._unpacked(plain, self.old)
        return (plain if self.new is None else self._packed(plain, self.new)).tobytes()

    def _unpacked(self, data: Bytes, repack: Repack) -> Bytes:
        import numpy as np

        units = data.reshape(-1, repack.rows * (self.meta_bytes + self.blocks * self.block_bytes))
        split = repack.rows * self.meta_bytes
        meta = units[:, :split].reshape(len(units), repack.rows, self.meta_bytes)
        blocks = np.ascontiguousarray(units[:, split:]).reshape(-1, repack.rows * self.block_bytes)
        plain = repack.unpack(blocks).reshape(len(units), self.blocks, repack.rows, self.block_bytes)
        rows = plain.swapaxes(1, 2).reshape(len(units), repack.rows, -1)
        return np.concatenate([meta, rows], axis=2)

    def _packed(self, data: Bytes, repack: Repack) -> Bytes:
        import numpy as np

        rows = data.reshape(-1, repack.rows, self.meta_bytes + self.blocks * self.block_bytes)
        meta = rows[:, :, : self.meta_bytes].reshape(len(rows), -1)
        plain = rows[:, :, self.meta_bytes :].reshape(len(rows), repack.rows, self.blocks, self.block_bytes)
        blocks = np.ascontiguousarray(plain.swapaxes(1, 2)).reshape(-1, repack.rows, self.block_bytes)
        return np.concatenate([meta, repack.pack(blocks).reshape(len(rows), -1)], axis=1)


def relayout_of(old: int, new: int, dims: tuple[int, ...]) -> Relayout | None:
    """The relayout of a tensor of `dims` (ggml order) from type `old` to type `new`; None if it is not one."""
    kinds = TYPES.get(old), TYPES.get(new)
    if kinds[0] is None or kinds[1] is None or old == new or not dims:
        return None
    packs = tuple(REPACKS.get(kind.name) for kind in kinds if kind is not None)
    bases = {pack.base if pack else kind.name for pack, kind in zip(packs, kinds, strict=True) if kind is not None}
    rows = math.lcm(*(kind.interleaved_rows for kind in kinds if kind is not None))
    base = _base(kinds[0])
    if len(bases) != 1 or base is None or kinds[0].row_meta_size != kinds[1].row_meta_size:
        return None
    if (dims[1] if len(dims) > 1 else 1) % rows or dims[0] % base.block_size:
        return None
    block_bytes = next(pack.base_bytes for pack in packs if pack)
    if dims[0] * base.type_size // base.block_size % block_bytes:
        return None
    count = dims[0] * base.type_size // base.block_size // block_bytes  # BF16 is moved in pairs
    return Relayout(
        old=packs[0], new=packs[1], rows=rows, blocks=count, block_bytes=block_bytes, meta_bytes=base.row_meta_size
    )


def _base(kind: TypeTraits) -> TypeTraits | None:
    pack = REPACKS.get(kind.name)
    return kind if pack is None else next((one for one in TYPES.values() if one.name == pack.base), None)
