"""Speed of dequantizing each type, in millions of elements per second on one thread.

    python -m benchmarks.dequantizing

There is no bar: these are figures of one machine, to show which type is slow. A chunk has 131,072 elements, or the rows
of 4,096 elements that a type interleaves, as in `diff --data`.
"""

from __future__ import annotations

import random
import statistics

from benchmarks.measure import wall
from gguftool.format.dequantize import decoded_by, decoder_of
from gguftool.format.ggml import TYPES, nbytes
from gguftool.format.kv import ByteOrder

_DIMS = (4096, 32)
_ROUNDS = 9


def speed(type_id: int) -> float | None:
    """Millions of elements per second, or None if there is no dequantizer."""
    decoder, size = decoder_of(type_id, ByteOrder.LITTLE, _DIMS), nbytes(type_id, _DIMS)
    if decoder is None or size is None:
        return None
    data = random.Random(7).randbytes(size)
    decoder.decode(data)
    seconds = statistics.median(wall(lambda: decoder.decode(data)) for _ in range(_ROUNDS))
    return _DIMS[0] * _DIMS[1] / seconds / 1e6


def main() -> None:
    for traits in TYPES.values():
        found = speed(traits.id)
        if found is not None:
            print(f"{traits.name:12} {decoded_by(traits.id):9} {found:7.0f}")


if __name__ == "__main__":
    main()
