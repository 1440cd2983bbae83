"""The interleaved types: the place of each field of the plain block in the block of a group of rows.

Sources: the structs of ggml/src/ggml-common.h and the `repack_*` functions of ggml/src/iqk/iqk_quantize.cpp in
ik_llama.cpp; of Q4_0_4_4 to Q4_0_8_8 ggml/src/ggml-aarch64.c of both.
The plain layouts are those of llama.cpp's ggml-common.h and of `types` here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguftool.format.quants.fields import Bits, nibbles, pairs, single_bits
from gguftool.format.quants.packing import EvenOdd, Move, Quads, Repack, Striped, Units
from gguftool.record import replace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_Places = tuple[tuple[int, int], ...]

# Where the eight fours of 32 elements start: (byte, shift).
_NIBBLES: _Places = ((0, 0), (32, 0), (0, 4), (32, 4), (16, 0), (48, 0), (16, 4), (48, 4))
_NIBBLES_R8: _Places = tuple((32 * (four // 2), 4 * (four % 2)) for four in range(8))
_PAIRS: _Places = tuple((16 * (four // 4), 2 * (four % 4)) for four in range(8))
_PAIRS_Q6_K: _Places = tuple((byte, shift) for byte in (0, 16) for shift in (0, 4, 2, 6))


def _one_byte(*shifts: int) -> _Places:
    return tuple((0, shift) for shift in shifts)


_IN_ORDER = _one_byte(0, 1, 2, 3, 4, 5, 6, 7)


def _units(base: int, packed: int, size: int, count: int = 1) -> Move:
    """Return the move of `count` units of `size` bytes."""
    return Move(base=Bits(at=base, count=count * size, width=8), packed=Units(at=packed, size=size))


def _halves(base: int, packed: int) -> Move:
    return _units(base, packed, 2)


def _k_scales(at: int, high: int, low: int) -> tuple[Move, ...]:
    """Return the moves of the 6-bit scales and mins of Q4_K and Q5_K, in 12 bytes from `at`."""

    def lows(first: int, shift: int) -> tuple[Bits, ...]:
        near = tuple(Bits(at=first + j, count=1, width=4) for j in range(4))
        return near + tuple(Bits(at=at + 8 + j, count=1, width=4, shifts=(shift,)) for j in range(4))

    def highs(first: int) -> tuple[Bits, ...]:
        return tuple(Bits(at=first + j, count=1, width=2, shifts=(shift,)) for shift in (4, 6) for j in range(4))

    return (
        Move(base=lows(at, 0), packed=Striped(at=low, nbytes=32, step=8)),
        Move(base=lows(at + 4, 4), packed=Striped(at=low, nbytes=32, step=8, lift=4)),
        Move(base=highs(at), packed=Striped(at=high, nbytes=16, step=4)),
        Move(base=highs(at + 4), packed=Striped(at=high, nbytes=16, step=4, lift=2)),
    )


# --- scrambled signs -------------------------------------------------------------------------------------------------


def _gray_words(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Replace each of the four 7-bit fields s of a word by s ^ (s << 1): signs as differences, as stored."""
    import numpy as np

    return words ^ ((words << np.uint32(1)) & np.uint32(sum(0x7E << 7 * field for field in range(4))))


def _plain_words(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Undo `_gray_words`: each bit becomes the sum of those below it in its field."""
    import numpy as np

    for shift, field_mask in ((1, 0x7E), (2, 0x7C), (4, 0x70)):
        mask = np.uint32(sum(field_mask << 7 * field for field in range(4)))
        words = words ^ ((words << np.uint32(shift)) & mask)
    return words


def _flip_nibbles(blocks: Bytes) -> Bytes:
    """Flip the highest bit of every code of Q4_0: the old interleaved forms store signed codes."""
    import numpy as np

    blocks[..., 2:] ^= np.uint8(0x88)
    return blocks


def _start_iq2_xxs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 2:]).view("<u4")
    words[..., 1::2] = _plain_words(words[..., 1::2])
    return np.concatenate([blocks[..., :2], words.view(np.uint8)], axis=-1)


def _start_iq3_xxs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 66:]).view("<u4")
    return np.concatenate([blocks[..., :66], _plain_words(words).view(np.uint8)], axis=-1)


def _start_iq2_xs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 2:66]).view("<u2")
    for shift, mask in ((1, 0xFC00), (2, 0xF800), (4, 0xE000)):
        words ^= (words << np.uint16(shift)) & np.uint16(mask)
    return np.concatenate([blocks[..., :2], words.view(np.uint8), blocks[..., 66:]], axis=-1)


def _finish_iq2_xxs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 2:]).view("<u4")
    words[..., 1::2] = _gray_words(words[..., 1::2])
    return np.concatenate([blocks[..., :2], words.view(np.uint8)], axis=-1)


def _finish_iq3_xxs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 66:]).view("<u4")
    return np.concatenate([blocks[..., :66], _gray_words(words).view(np.uint8)], axis=-1)


def _finish_iq2_xs(blocks: Bytes) -> Bytes:
    import numpy as np

    words = np.ascontiguousarray(blocks[..., 2:66]).view("<u2")
    words ^= (words << np.uint16(1)) & np.uint16(0xFC00)  # the 9 bits below are a grid row
    return np.concatenate([blocks[..., :2], words.view(np.uint8), blocks[..., 66:]], axis=-1)


def _xxs_signs(bases: tuple[int, ...], packed: int) -> tuple[Move, ...]:
    """Return the moves of 32-bit words with four 7-bit signs and 4 bits of scale: a byte has a sign and one bit."""
    words = [(word, field) for word in bases for field in range(4)]
    signs = tuple(Bits(at=at + 7 * field // 8, count=1, width=7, shifts=(7 * field % 8,)) for at, field in words)
    scales = tuple(Bits(at=at + 3, count=1, width=1, shifts=(4 + field,)) for at, field in words)
    return (
        Move(base=signs, packed=Quads(at=packed, step=128, places=tuple((16 * four, 1) for four in range(8)))),
        Move(base=scales, packed=Quads(at=packed, step=128, places=tuple((16 * four, 0) for four in range(8)))),
    )


# --- the types -------------------------------------------------------------------------------------------------------


def _repack(base: str, rows: int, base_bytes: int, *moves: Move | tuple[Move, ...]) -> Repack:
    flat = tuple(one for move in moves for one in (move if isinstance(move, tuple) else (move,)))
    return Repack(base=base, rows=rows, base_bytes=base_bytes, moves=flat)


def _quads(base: Bits, packed: int, step: int, places: _Places) -> Move:
    return Move(base=base, packed=Quads(at=packed, step=step, places=places))


def _striped(base: Bits, packed: int, nbytes: int, step: int) -> Move:
    return Move(base=base, packed=Striped(at=packed, nbytes=nbytes, step=step))


def _low_16(base: int, packed: int) -> Move:
    """Return the move of the low 4 bits of 16 scales, in 32 bytes."""
    return _striped(nibbles(base, 16, 1), packed, 32, 4)


def _high_16(base: int, packed: int) -> Move:
    return _striped(pairs(base, 16, 1), packed, 16, 2)


def _extra(packed: int) -> Move:
    return Move(base=single_bits(2, 16, 1), packed=EvenOdd(at=packed))


_IQ5_BITS = _one_byte(0, 4, 1, 5, 2, 6, 3, 7)

REPACKS: dict[str, Repack] = {
    "BF16_R16": _repack("BF16", 16, 4, _units(0, 0, 4)),
    "Q4_0_4_4": replace(
        _repack("Q4_0", 4, 18, _halves(0, 0), _units(2, 8, 4, 4)), finish=_flip_nibbles, start=_flip_nibbles
    ),
    "Q4_0_4_8": replace(
        _repack("Q4_0", 4, 18, _halves(0, 0), _units(2, 8, 8, 2)), finish=_flip_nibbles, start=_flip_nibbles
    ),
    "Q4_0_8_8": replace(
        _repack("Q4_0", 8, 18, _halves(0, 0), _units(2, 16, 8, 2)), finish=_flip_nibbles, start=_flip_nibbles
    ),
    "Q4_0_R8": _repack("Q4_0", 8, 18, _halves(0, 0), _units(2, 16, 4, 4)),
    "Q5_0_R4": _repack(
        "Q5_0",
        4,
        22,
        _halves(0, 0),
        _quads(single_bits(2, 32, 1), 8, 16, _one_byte(0, 2, 4, 6, 1, 3, 5, 7)),
        _quads(nibbles(6, 32, 16), 24, 64, _NIBBLES),
    ),
    "Q6_0_R4": _repack(
        "Q6_0",
        4,
        26,
        _halves(0, 0),
        _quads(Bits(at=2, count=32, width=2, run=8, shifts=(0, 4, 2, 6)), 8, 32, _PAIRS),
        _quads(nibbles(10, 32, 16), 40, 64, _NIBBLES),
    ),
    "Q8_0_R8": _repack("Q8_0", 8, 34, _halves(0, 0), _units(2, 16, 4, 8)),
    "Q8_KV_R8": _repack("Q8_KV", 8, 32, _units(0, 0, 4, 8)),
    "Q8_K_R8": _repack("Q8_K_R8", 8, 258, _halves(0, 0), _units(2, 16, 4, 64)),
    "IQ4_NL_R4": _repack("IQ4_NL", 4, 18, _halves(0, 0), _quads(nibbles(2, 32, 16), 8, 64, _NIBBLES)),
    "MXFP4_R8": _repack("MXFP4", 8, 17, _units(0, 0, 1), _units(1, 8, 4, 4)),
    "Q2_K_R4": _repack(
        "Q2_K",
        4,
        84,
        _halves(80, 0),
        _halves(82, 8),
        _units(0, 16, 1, 16),
        _quads(pairs(16, 256, 32), 80, 32, _PAIRS),
    ),
    "Q3_K_R4": _repack(
        "Q3_K",
        4,
        110,
        _halves(108, 0),
        _striped(pairs(104, 16, 4), 8, 16, 2),
        _striped(nibbles(96, 16, 8), 24, 32, 4),
        _quads(single_bits(0, 256, 32), 56, 16, _IN_ORDER),
        _quads(pairs(32, 256, 32), 184, 32, _PAIRS),
    ),
    "Q4_K_R4": _repack(
        "Q4_K",
        4,
        144,
        _halves(0, 0),
        _halves(2, 8),
        _k_scales(4, 16, 32),
        _quads(nibbles(16, 256, 32), 64, 64, _NIBBLES),
    ),
    "Q5_K_R4": _repack(
        "Q5_K",
        4,
        176,
        _halves(0, 0),
        _halves(2, 8),
        _k_scales(4, 16, 32),
        _quads(single_bits(16, 256, 32), 64, 16, _one_byte(0, 2, 1, 3, 4, 6, 5, 7)),
        _quads(nibbles(48, 256, 32), 192, 64, _NIBBLES),
    ),
    "Q6_K_R4": _repack(
        "Q6_K",
        4,
        210,
        _halves(208, 0),
        _units(192, 8, 1, 16),
        _quads(pairs(128, 256, 32), 72, 32, _PAIRS_Q6_K),
        _quads(nibbles(0, 256, 64), 328, 64, _NIBBLES),
    ),
    "IQ4_XS_R8": _repack(
        "IQ4_XS",
        8,
        136,
        _halves(0, 0),
        _striped(pairs(2, 8, 1), 16, 16, 2),
        _striped(nibbles(4, 8, 1), 32, 32, 4),
        _quads(nibbles(8, 256, 16), 64, 128, _NIBBLES_R8),
    ),
    "IQ2_XXS_R4": replace(
        _repack(
            "IQ2_XXS",
            4,
            66,
            _halves(0, 0),
            _xxs_signs(tuple(range(6, 66, 8)), 8),
            tuple(
                Move(base=Bits(at=2 + 8 * word, count=4, width=8), packed=Units(at=136 + 16 * word, size=4))
                for word in range(8)
            ),
        ),
        finish=_finish_iq2_xxs,
        start=_start_iq2_xxs,
    ),
    "IQ2_XS_R4": replace(
        _repack("IQ2_XS", 4, 74, _halves(0, 0), _units(2, 8, 8, 8), _units(66, 264, 1, 8)),
        finish=_finish_iq2_xs,
        start=_start_iq2_xs,
    ),
    "IQ2_S_R4": _repack(
        "IQ2_S",
        4,
        82,
        _halves(0, 0),
        _units(2, 8, 4, 8),
        _units(66, 136, 1, 8),
        _units(34, 168, 4, 8),
        _units(74, 296, 1, 8),
    ),
    "IQ3_XXS_R4": replace(
        _repack("IQ3_XXS", 4, 98, _halves(0, 0), _xxs_signs(tuple(range(66, 98, 4)), 8), _units(2, 136, 8, 8)),
        finish=_finish_iq3_xxs,
        start=_start_iq3_xxs,
    ),
    "IQ3_S_R4": _repack(
        "IQ3_S",
        4,
        110,
        _halves(0, 0),
        Move(
            base=Bits(at=2, count=64, width=8),
            packed=Striped(at=8, nbytes=256, step=8, order=(0, 2, 4, 6, 1, 3, 5, 7)),
        ),
        _units(66, 264, 1, 8),
        _quads(Bits(at=74, count=256, width=1, shifts=tuple(range(8))), 296, 16, _IN_ORDER),
        _striped(nibbles(106, 8, 1), 424, 16, 4),
    ),
    "IQ2_K_R4": _repack(
        "IQ2_K", 4, 76, _halves(0, 0), _extra(8), _low_16(4, 16), _quads(pairs(12, 256, 32), 48, 32, _PAIRS)
    ),
    "IQ3_K_R4": _repack(
        "IQ3_K",
        4,
        110,
        _halves(0, 0),
        _extra(8),
        _striped(single_bits(4, 16, 1), 16, 8, 1),
        _low_16(6, 24),
        _quads(pairs(14, 256, 32), 56, 32, _PAIRS),
        _quads(single_bits(78, 256, 32), 312, 16, _IN_ORDER),
    ),
    "IQ4_K_R4": _repack(
        "IQ4_K",
        4,
        144,
        _halves(0, 0),
        _extra(8),
        _high_16(4, 16),
        _low_16(8, 32),
        _quads(nibbles(16, 256, 16), 64, 64, _NIBBLES),
    ),
    "IQ5_K_R4": _repack(
        "IQ5_K",
        4,
        176,
        _halves(0, 0),
        _extra(8),
        _high_16(4, 16),
        _low_16(8, 32),
        _quads(nibbles(16, 256, 32), 64, 64, _NIBBLES),
        _quads(single_bits(144, 256, 32), 576, 16, _IQ5_BITS),
    ),
    "IQ4_KS_R4": _repack("IQ4_KS", 4, 136, _units(0, 0, 1, 8), _quads(nibbles(8, 256, 16), 32, 64, _NIBBLES)),
    "IQ5_KS_R4": _repack(
        "IQ5_KS",
        4,
        168,
        _units(0, 0, 1, 8),
        _quads(nibbles(8, 256, 32), 32, 64, _NIBBLES),
        _quads(single_bits(136, 256, 32), 544, 16, _IQ5_BITS),
    ),
    "IQ2_BN_R4": _repack("IQ2_BN", 4, 16, _quads(pairs(0, 64, 16), 0, 32, _PAIRS)),
    # These only take rows apart: they are not repacks of another type.
    "IQ1_S_R4": _repack("IQ1_S_R4", 4, 6, _units(0, 0, 1, 4), _units(4, 16, 2)),
    "IQ1_M_R4": _repack("IQ1_M_R4", 4, 7, _units(0, 0, 1, 4), _units(4, 16, 1, 2), _units(6, 24, 1)),
}
