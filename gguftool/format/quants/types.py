"""The types with a decoder here ("lookup" in `format/ggml.py`), as fields of their blocks.

Sources of the layouts: the structs of ggml/src/ggml-common.h and the `dequantize_row_*` functions of
ggml/src/iqk/iqk_quantize.cpp in ik_llama.cpp; ggml/src/ggml-quants.c of llama.cpp for Q1_0 and Q2_0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguftool.format.quants.fields import Bits, nibbles, pairs, single_bits, whole_bytes
from gguftool.format.quants.lookup import Lookup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


def _unscramble_kss(blocks: Bytes) -> Bytes:
    """Convert IQ4_KSS to IQ4_KS blocks: bit 0 of eight 16-bit words is a scale byte, the rest Gray-coded nibbles."""
    import numpy as np

    words = np.ascontiguousarray(blocks).view("<u2")
    scales = np.packbits((words & 1).astype(np.uint8), axis=1, bitorder="little")
    plain = words & np.uint16(0xFFFE)
    plain ^= plain >> np.uint16(1)
    return np.concatenate([scales, plain.view(np.uint8)], axis=1)


def _spread_trits(blocks: Bytes) -> Bytes:
    """Spread IQ1_BN to one byte an element, its base-3 digit: 3 bytes have 15 elements, byte 12 every sixteenth."""
    import numpy as np

    # byte index and power of 3 of each of the 64 elements
    where = [(3 * (e // 16) + e % 16 // 5, e % 16 % 5) if e % 16 < 15 else (12, e // 16) for e in range(64)]
    powers = np.array([(81, 27, 9, 3, 1)[power] for _, power in where], dtype=np.uint8)
    parts = blocks[:, [byte for byte, _ in where]] * powers  # in bytes: only the fraction remains
    return ((parts.astype(np.uint16) * 3) >> 8).astype(np.uint8)


def _spread_iq1_s(blocks: Bytes) -> Bytes:
    """Spread the four 3-bit numbers in the last 16 bits of a row's block of IQ1_S_R4 to one byte each."""
    import numpy as np

    word = np.ascontiguousarray(blocks[:, 4:6]).view("<u2")
    spread = (word >> np.array([0, 3, 6, 9, 12], dtype=np.uint16)) & np.uint16(15)
    return np.concatenate([blocks[:, :4], spread.astype(np.uint8)], axis=1)


def _spread_iq4_kt(blocks: Bytes) -> Bytes:
    """Spread IQ4_KT to scale bytes, the block's other fields, and its 8 x 8 3-bit numbers in one byte each."""
    import numpy as np

    words = np.ascontiguousarray(blocks[:, :32]).view("<u4")
    high = (words[:, :, None] >> np.arange(8, 32, 3, dtype=np.uint32)) & np.uint32(7)
    scales = words.astype(np.uint8)  # the lowest byte of each
    return np.concatenate([scales, blocks[:, 32:], high.astype(np.uint8).reshape(len(blocks), 64)], axis=1)


_IQ4_KS = Lookup(
    codes=(nibbles(8, 256, 16),),
    values="iq4",
    scales=(whole_bytes(0, 8),),
    scale_values="even_minus127",
    shift_bits=Bits(at=0, count=8, width=1),
)


LOOKUPS: dict[str, Lookup] = {
    "Q1_0": Lookup(scale_at=0, codes=(single_bits(2, 128, 1),), values="sign"),
    "Q2_0": Lookup(scale_at=0, codes=(pairs(2, 64, 1),), values="ternary"),
    "Q6_0": Lookup(
        scale_at=0,
        codes=(nibbles(10, 32, 16), Bits(at=2, count=32, width=2, run=8, shifts=(0, 4, 2, 6))),
        values="centred6",
    ),
    "Q8_KV": Lookup(codes=(whole_bytes(0, 32),), values="int8"),
    "IQ1_BN": Lookup(half_meta=True, codes=(whole_bytes(0, 64),), values="ternary", prepare=_spread_trits),
    "IQ2_BN": Lookup(codes=(pairs(0, 64, 16),), values="ternary"),
    "IQ2_K": Lookup(
        scale_at=0,
        codes=(pairs(12, 256, 32),),
        values="iq2",
        scales=(nibbles(4, 16, 1),),
        scale_values="minus8",
        shift_bits=single_bits(2, 16, 1),
    ),
    "IQ3_K": Lookup(
        scale_at=0,
        codes=(pairs(14, 256, 32), single_bits(78, 256, 32)),
        values="iq3",
        scales=(nibbles(6, 16, 1), single_bits(4, 16, 1)),
        scale_values="odd16_sign",
        shift_bits=single_bits(2, 16, 1),
    ),
    "IQ4_K": Lookup(
        scale_at=0,
        codes=(nibbles(16, 256, 16),),
        values="iq4",
        scales=(nibbles(8, 16, 1), pairs(4, 16, 1)),
        scale_values="minus32",
        shift_bits=single_bits(2, 16, 1),
    ),
    "IQ5_K": Lookup(
        scale_at=0,
        codes=(nibbles(16, 256, 32), single_bits(144, 256, 32)),
        values="iq5",
        scales=(nibbles(8, 16, 1), pairs(4, 16, 1)),
        scale_values="minus32",
        shift_bits=single_bits(2, 16, 1),
    ),
    "IQ6_K": Lookup(
        scale_at=0,
        codes=(nibbles(20, 256, 32), pairs(148, 256, 32)),
        values="iq6",
        scales=(whole_bytes(4, 16),),
        scale_values="int8",
        shift_bits=single_bits(2, 16, 1),
    ),
    "IQ2_KS": Lookup(
        half_meta=True,
        codes=(pairs(6, 256, 32),),
        values="iq2",
        scales=(nibbles(2, 8, 1), single_bits(1, 8, 1)),
        scale_values="minus16",
        shift_bits=single_bits(0, 8, 1),
    ),
    "IQ3_KS": Lookup(
        half_meta=True,
        codes=(pairs(6, 256, 32), single_bits(70, 256, 32)),
        values="iq3",
        scales=(nibbles(2, 8, 4), single_bits(0, 8, 1)),
        scale_values="minus16",
        shift_bits=single_bits(1, 8, 1),
    ),
    "IQ2_KL": Lookup(
        half_meta=True,
        codes=(nibbles(6, 128, 16), single_bits(70, 128, 16)),
        values="iq2_kl",
        scales=(nibbles(2, 8, 4), pairs(0, 8, 1)),
        scale_values="minus32",
    ),
    "IQ4_KS": _IQ4_KS,
    "IQ4_KSS": Lookup(
        codes=_IQ4_KS.codes,
        values=_IQ4_KS.values,
        scales=_IQ4_KS.scales,
        scale_values=_IQ4_KS.scale_values,
        shift_bits=_IQ4_KS.shift_bits,
        prepare=_unscramble_kss,
    ),
    "IQ5_KS": Lookup(
        codes=(nibbles(8, 256, 32), single_bits(136, 256, 32)),
        values="iq5",
        scales=(whole_bytes(0, 8),),
        scale_values="even_minus127",
        shift_bits=Bits(at=0, count=8, width=1),
    ),
    "IQ1_KT": Lookup(
        codes=(whole_bytes(8, 32), nibbles(40, 32, 16), Bits(at=0, count=32, width=1, shifts=(4, 5, 6, 7))),
        values="trellis13",
        scales=(Bits(at=0, count=8, width=4),),
        scale_values="iq4_scale",
    ),
    "IQ2_KT": Lookup(
        codes=(Bits(at=4, count=32, width=16),),
        values="trellis16",
        scales=(nibbles(0, 8, 4),),
        scale_values="iq4_scale",
    ),
    "IQ3_KT": Lookup(
        codes=(Bits(at=4, count=32, width=16),),
        values="trellis16_abs",
        scales=(nibbles(0, 8, 4),),
        scale_values="plain16",
        signs=single_bits(68, 256, 32),
    ),
    "IQ4_KT": Lookup(
        codes=(whole_bytes(8, 64), nibbles(72, 64, 32), Bits(at=104, count=64, width=3)),
        values="trellis16_4",
        scales=(Bits(at=0, count=8, width=7, shifts=(1,)),),
        scale_values="minus64",
        shift_bits=Bits(at=0, count=8, width=1),
        prepare=_spread_iq4_kt,
    ),
    # Single rows of IQ1_S_R4 and IQ1_M_R4: these are not repacks of types that files have.
    "IQ1_S_R4": Lookup(
        half_meta=True,
        codes=(whole_bytes(0, 4), Bits(at=4, count=4, width=3)),
        values="iq1_grid",
        scales=(Bits(at=8, count=1, width=3),),
        scale_values="odd8",
        shift_bits=Bits(at=8, count=1, width=1, shifts=(3,)),
        prepare=_spread_iq1_s,
    ),
    "IQ1_M_R4": Lookup(
        half_meta=True,
        codes=(whole_bytes(0, 4), nibbles(4, 4, 1)),
        values="iq1_grid",
        scales=(nibbles(6, 2, 1),),
        scale_values="plain16",
    ),
    "Q8_K_R8": Lookup(scale_at=0, codes=(whole_bytes(2, 256),), values="int8"),
}
