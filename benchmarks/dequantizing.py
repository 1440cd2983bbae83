"""How fast each type becomes floats, in millions of elements a second of one thread.

    python -m benchmarks.dequantizing

There is no bar: figures of one machine, to see which type is slow. A chunk is 131,072 elements or the rows of 4,096
elements that a type interleaves, as `diff --data` takes them.
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
    """Return millions of elements a second, None for types that are not dequantized."""
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
