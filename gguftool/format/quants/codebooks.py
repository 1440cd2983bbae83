"""The values of the codes of quantized types.

Values are facts of the formats: ggml/src/ggml-common.h of ik_llama.cpp (`iq2nl_values` ... `iq6nl_values`,
`iq2kl_values`), ggml/src/iqk/iqk_quantize.cpp (the trellis's generator, the polynomial of IQ6_K), and the grid of IQ1_S
as `gguf.quants` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_IQ2 = (-31, -13, 1, 17)
_IQ3 = (-63, -40, -23, -10, 1, 13, 28, 47)
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# fmt: off
_IQ5 = (
    -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
    -1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121,
)
# Pairs of indices into _IQ3.
_IQ2_KL = (
    (0, 2), (0, 5), (1, 0), (1, 3), (1, 5), (1, 7), (2, 1), (2, 2), (2, 4), (2, 5), (2, 6), (3, 0), (3, 4), (3, 5),
    (3, 7), (4, 2), (4, 3), (4, 4), (4, 5), (4, 6), (5, 1), (5, 2), (5, 3), (5, 4), (5, 5), (6, 0), (6, 2), (6, 4),
    (6, 6), (6, 7), (7, 2), (7, 5),
)
# fmt: on
# Added to the values of a block with its shift bit set.
_SHIFTS = {"iq2": 5, "iq3": 4, "iq4": 4, "iq5": 2, "iq6": 1}

_TRELLIS_FACTOR = 0xCBAC1FED
_TRELLIS_START = 4096
_IQ1_DELTA = 0.125


def _shifted(values: tuple[int, ...], name: str) -> tuple[int, ...]:
    return values + tuple(value + _SHIFTS[name] for value in values)


def _iq6() -> Any:
    import numpy as np

    q = np.arange(64, dtype=np.float32)
    f = np.float32
    values = f(-127) + q * (f(6.2568) + q * (f(-0.11218) + q * f(0.0011972)))
    return np.concatenate([values, values + f(_SHIFTS["iq6"])])


def _trellis(bits: int, size: int) -> Any:
    """Return `size` values for each of 2**bits codes: sums of four 6-bit numbers of a multiplicative generator."""
    import numpy as np

    state = np.arange(1 << bits, dtype=np.uint32) + np.uint32(_TRELLIS_START)
    columns = []
    for _ in range(size):
        state = state * np.uint32(_TRELLIS_FACTOR)
        parts = (state & np.uint32(0x3F3F3F3F)).view(np.uint8).reshape(-1, 4)
        columns.append(parts.sum(axis=1, dtype=np.int32) - 126)
    return np.stack(columns, axis=1)


def _iq1_grid() -> Any:
    """Return the 2048 grid rows of IQ1_S plus delta, followed by the same rows minus delta."""
    import numpy as np
    from gguf.quants import IQ1_S

    kind: Any = IQ1_S
    kind.init_grid()
    grid = np.asarray(kind.grid, dtype=np.float32).reshape(2048, 8)
    return np.concatenate([grid + np.float32(_IQ1_DELTA), grid - np.float32(_IQ1_DELTA)])


_BUILDERS: dict[str, Callable[[], Any]] = {
    "iq2": lambda: _shifted(_IQ2, "iq2"),
    "iq3": lambda: _shifted(_IQ3, "iq3"),
    "iq4": lambda: _shifted(_IQ4, "iq4"),
    "iq5": lambda: _shifted(_IQ5, "iq5"),
    "iq6": _iq6,
    "iq2_kl": lambda: [(_IQ3[first], _IQ3[second]) for first, second in _IQ2_KL],
    "trellis13": lambda: _trellis(13, 8),
    "trellis16": lambda: _trellis(16, 8),
    "trellis16_4": lambda: _trellis(16, 4),
    "trellis16_abs": lambda: abs(_trellis(16, 8)),
    "iq1_grid": _iq1_grid,
    "ternary": lambda: (-1, 0, 1, 2),
    "sign": lambda: (-1, 1),
    "centred6": lambda: range(-32, 32),
    "int8": lambda: [*range(128), *range(-128, 0)],
    # Scales: the values of the stored number of a sub-block.
    "minus8": lambda: range(-8, 8),
    "minus16": lambda: range(-16, 16),
    "minus32": lambda: range(-32, 32),
    "plain16": lambda: range(16),
    "odd8": lambda: range(1, 17, 2),
    "odd16_sign": lambda: [*range(1, 33, 2), *range(-1, -33, -2)],
    "even_minus127": lambda: [(number & 254) - 127 for number in range(256)],
    "iq4_scale": lambda: _IQ4,
    "minus64": lambda: range(-64, 64),
}


@cache
def codebook(name: str) -> NDArray[np.float32]:
    """Return a table as float32: codes, or codes x values if a code stands for several."""
    import numpy as np

    table: NDArray[np.float32] = np.asarray(_BUILDERS[name](), dtype=np.float32)
    table.setflags(write=False)
    return table
