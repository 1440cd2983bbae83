"""ggml tensor types of llama.cpp and ik_llama.cpp: names, block layout, sizes.

The table is the only place where a type's numbers stand; everything else walks it.  Ids are not unique in the field:
forks reuse numbers, so an id has one primary meaning (what the two engines read) and other claims, which are listed but
never used for sizing.  An id nobody knows is data, not an error.

Sources: llama.cpp ggml/src/ggml.c (type_traits, ggml_row_size, ggml_nbytes), ggml/include/ggml.h; ik_llama.cpp
ggml/src/ggml.c (ggml_nbytes with the I2_S exception, row_meta_size).
"""

from __future__ import annotations

import difflib
import math
from enum import Enum

from gguftool.record import record

MAINLINE, IK = ("llama.cpp",), ("ik_llama.cpp",)
BOTH = MAINLINE + IK
INTEGER_TYPES = frozenset({"I8", "I16", "I32", "I64"})  # indices and tables, never weights


class Formula(Enum):
    """How a tensor's bytes follow from its dims."""

    STD = "rows x (row meta + blocks)"
    I2_S = "elements / 4 + 32"  # BitNet: one float scale, padded to 32 bytes, behind the data
    TL2 = "BitNet x86 lookup table"


@record
class TypeTraits:
    """One tensor type: `block_size` elements in `type_size` bytes, `row_meta_size` more bytes at the start of each row.

    `interleaved_rows` rows are packed together (dims[1] must divide by it); a row range is a byte range only at
    multiples of it.  `in_files` is false for types an engine makes at run time only.
    """

    id: int
    name: str
    block_size: int
    type_size: int
    engines: tuple[str, ...]
    row_meta_size: int = 0
    interleaved_rows: int = 1
    formula: Formula = Formula.STD
    needs_imatrix: bool = False
    repack_of: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    in_files: bool = True

    @property
    def alias(self) -> str:
        """The spelling of recipes and command lines: lower case but for the K of the k-quants (`q4_K`, `q8_KV`)."""
        lower = self.name.lower()
        k_quant = lower in {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k"} or lower.startswith("q8_kv")
        return lower.replace("_k", "_K").replace("_Kv", "_KV") if k_quant else lower

    @property
    def is_quantized(self) -> bool:
        """Whether values share scales in blocks (plain floats and integers do not)."""
        return self.name.rstrip("0123456789") not in {"F", "BF", "I"} and self.name != "BF16_R16"

    @property
    def bits_per_weight(self) -> float:
        """Bits per element without row meta; `tensor_bits_per_weight` gives the true figure of a tensor."""
        if self.formula is Formula.I2_S:
            return 2.0
        return self.type_size * 8 / self.block_size


@record
class Claim:
    """Another meaning of a type id, in a fork or in history; `type_size` 0 where nobody published the layout."""

    id: int
    name: str
    block_size: int
    type_size: int
    holder: str
    row_meta_size: int = 0
    formula: Formula = Formula.STD


def _type(
    id: int,
    name: str,
    block_size: int,
    type_size: int,
    engines: tuple[str, ...],
    *,
    row_meta_size: int = 0,
    interleaved_rows: int = 1,
    formula: Formula = Formula.STD,
    needs_imatrix: bool = False,
    repack_of: tuple[str, ...] = (),
    other_names: tuple[str, ...] = (),
    in_files: bool = True,
) -> TypeTraits:
    return TypeTraits(
        id=id,
        name=name,
        block_size=block_size,
        type_size=type_size,
        engines=engines,
        row_meta_size=row_meta_size,
        interleaved_rows=interleaved_rows,
        formula=formula,
        needs_imatrix=needs_imatrix,
        repack_of=repack_of,
        other_names=other_names,
        in_files=in_files,
    )


def _claim(
    id: int,
    name: str,
    block_size: int,
    type_size: int,
    holder: str,
    *,
    row_meta_size: int = 0,
    formula: Formula = Formula.STD,
) -> Claim:
    return Claim(
        id=id,
        name=name,
        block_size=block_size,
        type_size=type_size,
        holder=holder,
        row_meta_size=row_meta_size,
        formula=formula,
    )


_TYPES = (
    _type(0, "F32", 1, 4, BOTH),
    _type(1, "F16", 1, 2, BOTH),
    _type(2, "Q4_0", 32, 18, BOTH),
    _type(3, "Q4_1", 32, 20, BOTH),
    _type(6, "Q5_0", 32, 22, BOTH),
    _type(7, "Q5_1", 32, 24, BOTH),
    _type(8, "Q8_0", 32, 34, BOTH),
    _type(9, "Q8_1", 32, 36, BOTH, in_files=False),
    _type(10, "Q2_K", 256, 84, BOTH),
    _type(11, "Q3_K", 256, 110, BOTH),
    _type(12, "Q4_K", 256, 144, BOTH),
    _type(13, "Q5_K", 256, 176, BOTH),
    _type(14, "Q6_K", 256, 210, BOTH),
    _type(15, "Q8_K", 256, 292, MAINLINE, in_files=False),
    _type(16, "IQ2_XXS", 256, 66, BOTH, needs_imatrix=True),
    _type(17, "IQ2_XS", 256, 74, BOTH, needs_imatrix=True),
    _type(18, "IQ3_XXS", 256, 98, BOTH, needs_imatrix=True),
    _type(19, "IQ1_S", 256, 50, BOTH, needs_imatrix=True),
    _type(20, "IQ4_NL", 32, 18, BOTH),
    _type(21, "IQ3_S", 256, 110, BOTH),
    _type(22, "IQ2_S", 256, 82, BOTH, needs_imatrix=True),
    _type(23, "IQ4_XS", 256, 136, BOTH),
    _type(24, "I8", 1, 1, BOTH),
    _type(25, "I16", 1, 2, BOTH),
    _type(26, "I32", 1, 4, BOTH),
    _type(27, "I64", 1, 8, BOTH),
    _type(28, "F64", 1, 8, BOTH),
    _type(29, "IQ1_M", 256, 56, BOTH, needs_imatrix=True),
    _type(30, "BF16", 1, 2, BOTH),
    _type(31, "Q4_0_4_4", 32, 18, IK, interleaved_rows=4, other_names=("q4_0_4x4",)),
    _type(32, "Q4_0_4_8", 32, 18, IK, interleaved_rows=4, other_names=("q4_0_4x8",)),
    _type(33, "Q4_0_8_8", 32, 18, IK, interleaved_rows=8, other_names=("q4_0_8x8",)),
    _type(34, "TQ1_0", 256, 54, MAINLINE),
    _type(35, "TQ2_0", 256, 66, MAINLINE),
    _type(36, "I2_S", 1, 1, IK, formula=Formula.I2_S),
    _type(39, "MXFP4", 32, 17, BOTH),
    _type(40, "NVFP4", 64, 36, MAINLINE),
    _type(41, "Q1_0", 128, 18, BOTH, other_names=("q1_0_g128",)),
    _type(42, "Q2_0", 64, 18, MAINLINE),
    _type(97, "Q8_0_X4", 32, 34, IK, in_files=False),
    _type(98, "Q8_1_X4", 32, 36, IK, in_files=False),
    _type(99, "Q8_2_X4", 32, 36, IK, in_files=False),
    _type(133, "Q6_0", 32, 26, IK),
    _type(134, "IQ1_BN", 64, 13, IK, row_meta_size=2),
    _type(135, "IQ2_BN", 64, 16, IK, row_meta_size=4),
    _type(136, "Q8_K64", 64, 68, IK, in_files=False),
    _type(137, "IQ2_K", 256, 76, IK),
    _type(138, "IQ3_K", 256, 110, IK),
    _type(139, "IQ4_K", 256, 144, IK),
    _type(140, "IQ5_K", 256, 176, IK),
    _type(141, "IQ6_K", 256, 212, IK),
    _type(144, "IQ4_KS", 256, 136, IK, row_meta_size=4),
    _type(145, "IQ2_KS", 256, 70, IK, row_meta_size=2),
    _type(146, "IQ4_KSS", 256, 128, IK, row_meta_size=4),
    _type(147, "Q8_K16", 64, 64, IK, row_meta_size=20, in_files=False),
    _type(148, "Q8_K32", 256, 296, IK, in_files=False),
    _type(149, "Q8_KR8", 256, 296, IK, in_files=False),
    _type(150, "Q8_K128", 128, 140, IK, in_files=False),
    _type(151, "Q8_KV", 32, 32, IK, row_meta_size=8),
    _type(152, "IQ5_KS", 256, 168, IK, row_meta_size=4),
    _type(153, "IQ2_KT", 256, 68, IK, row_meta_size=4, needs_imatrix=True),
    _type(154, "IQ3_KT", 256, 100, IK, row_meta_size=4),
    _type(155, "IQ4_KT", 256, 128, IK, row_meta_size=4),
    _type(156, "IQ3_KS", 256, 102, IK, row_meta_size=2),
    _type(157, "IQ2_KL", 256, 86, IK, row_meta_size=2),
    _type(158, "IQ1_KT", 256, 56, IK, row_meta_size=4, needs_imatrix=True),
    _type(202, "Q4_0_R8", 32, 18, IK, interleaved_rows=8, repack_of=("Q4_0",)),
    _type(206, "Q5_0_R4", 32, 22, IK, interleaved_rows=4, repack_of=("Q5_0",)),
    _type(208, "Q8_0_R8", 32, 34, IK, interleaved_rows=8, repack_of=("Q8_0",)),
    _type(210, "Q2_K_R4", 256, 84, IK, interleaved_rows=4, repack_of=("Q2_K",)),
    _type(211, "Q3_K_R4", 256, 110, IK, interleaved_rows=4, repack_of=("Q3_K",)),
    _type(212, "Q4_K_R4", 256, 144, IK, interleaved_rows=4, repack_of=("Q4_K",)),
    _type(213, "Q5_K_R4", 256, 176, IK, interleaved_rows=4, repack_of=("Q5_K",)),
    _type(214, "Q6_K_R4", 256, 210, IK, interleaved_rows=4, repack_of=("Q6_K",)),
    _type(216, "IQ2_XXS_R4", 256, 66, IK, interleaved_rows=4, needs_imatrix=True, repack_of=("IQ2_XXS",)),
    _type(217, "IQ2_XS_R4", 256, 74, IK, interleaved_rows=4, needs_imatrix=True, repack_of=("IQ2_XS",)),
    _type(218, "IQ3_XXS_R4", 256, 98, IK, interleaved_rows=4, repack_of=("IQ3_XXS",)),
    _type(219, "IQ1_S_R4", 32, 6, IK, row_meta_size=2, interleaved_rows=4, needs_imatrix=True),
    _type(220, "IQ4_NL_R4", 32, 18, IK, interleaved_rows=4, repack_of=("IQ4_NL",)),
    _type(221, "IQ3_S_R4", 256, 110, IK, interleaved_rows=4, repack_of=("IQ3_S",)),
    _type(222, "IQ2_S_R4", 256, 82, IK, interleaved_rows=4, needs_imatrix=True, repack_of=("IQ2_S",)),
    _type(223, "IQ4_XS_R8", 256, 136, IK, interleaved_rows=8, repack_of=("IQ4_XS",)),
    _type(229, "IQ1_M_R4", 32, 7, IK, row_meta_size=2, interleaved_rows=4, needs_imatrix=True),
    _type(230, "BF16_R16", 1, 2, IK, interleaved_rows=16, repack_of=("BF16", "F16")),
    _type(233, "Q6_0_R4", 32, 26, IK, interleaved_rows=4, repack_of=("Q6_0",)),
    _type(335, "IQ2_BN_R4", 64, 16, IK, row_meta_size=4, interleaved_rows=4, repack_of=("IQ2_BN",)),
    _type(337, "IQ2_K_R4", 256, 76, IK, interleaved_rows=4, repack_of=("IQ2_K",)),
    _type(338, "IQ3_K_R4", 256, 110, IK, interleaved_rows=4, repack_of=("IQ3_K",)),
    _type(339, "IQ4_K_R4", 256, 144, IK, interleaved_rows=4, repack_of=("IQ4_K",)),
    _type(340, "IQ5_K_R4", 256, 176, IK, interleaved_rows=4, repack_of=("IQ5_K",)),
    _type(344, "IQ4_KS_R4", 256, 136, IK, row_meta_size=4, interleaved_rows=4, repack_of=("IQ4_KS",)),
    _type(352, "IQ5_KS_R4", 256, 168, IK, row_meta_size=4, interleaved_rows=4, repack_of=("IQ5_KS",)),
    _type(353, "MXFP4_R8", 32, 17, IK, interleaved_rows=8, repack_of=("MXFP4",)),
    _type(397, "Q8_K_R16", 256, 258, IK, interleaved_rows=16, in_files=False),
    _type(398, "Q8_KV_R8", 32, 32, IK, row_meta_size=4, interleaved_rows=8, repack_of=("Q8_KV",)),
    _type(399, "Q8_K_R8", 256, 258, IK, interleaved_rows=8, repack_of=("Q8_K",)),
)

_CLAIMS = (
    _claim(4, "Q4_2", 0, 0, "removed"),
    _claim(4, "MXFP4", 32, 17, "ollama"),
    _claim(5, "Q4_3", 0, 0, "removed"),
    _claim(31, "IQ1_BN", 64, 13, "ik-history"),
    _claim(31, "TQ3_1S_AP1", 0, 0, "turboquant:turbo-tan"),
    _claim(32, "IQ2_BN", 64, 16, "ik-history"),
    _claim(32, "Q4_0_TQ", 0, 0, "turboquant:turbo-tan"),
    _claim(33, "Q4_1_TQ", 0, 0, "turboquant:turbo-tan"),
    _claim(34, "IQ1_BN", 64, 13, "ik-history"),
    _claim(35, "IQ2_BN", 64, 16, "ik-history"),
    _claim(36, "IQ4_NL_4_4", 32, 18, "removed"),
    _claim(36, "TQ4_1S", 32, 20, "turboquant:zapabob"),
    _claim(36, "TQ3_4SE", 32, 18, "turboquant:turbo-tan"),
    _claim(37, "IQ4_NL_4_8", 32, 18, "removed"),
    _claim(37, "I8_S", 1, 1, "bitnet"),
    _claim(37, "IQ2_K", 256, 76, "ik-history"),
    _claim(37, "TQ3_4SV", 0, 0, "turboquant:turbo-tan"),
    _claim(38, "IQ4_NL_8_8", 32, 18, "removed"),
    _claim(38, "TL1", 1, 1, "bitnet", formula=Formula.I2_S),
    _claim(38, "IQ3_K", 256, 110, "ik-history"),
    _claim(39, "TL2", 1, 1, "bitnet", formula=Formula.TL2),
    _claim(39, "IQ4_K", 256, 144, "ik-history"),
    _claim(40, "IQ5_K", 256, 176, "ik-history"),
    _claim(40, "Q1_0", 32, 6, "prismml"),
    _claim(41, "IQ6_K", 256, 212, "ik-history"),
    _claim(41, "SX8", 32, 30, "fork:MarlaLabs"),
    _claim(41, "TQ3_0", 0, 0, "turboquant:unixsysdev"),
    _claim(41, "Q2_0", 0, 0, "turboquant:turbo-tan"),
    _claim(42, "IQ2_TN", 256, 66, "ik-history"),
    _claim(42, "TQ3_0V", 0, 0, "turboquant:unixsysdev"),
    _claim(42, "TURBO2_0", 0, 0, "turboquant:TheTom-2026-04"),
    _claim(42, "Q1_0", 0, 0, "turboquant:turbo-tan"),
    _claim(43, "Q2_0_G128", 128, 34, "fork:ArifiLabs"),
    _claim(43, "TURBO3_0", 0, 0, "turboquant:TheTom-2026-04"),
    _claim(43, "TURBO2_0", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(44, "TURBO4_0", 0, 0, "turboquant:TheTom-2026-04"),
    _claim(44, "TURBO3_0", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(44, "TQ3_1S", 32, 16, "turboquant:AgustinJimenez"),
    _claim(44, "TQ3_1S", 32, 16, "turboquant:turbo-tan"),
    _claim(45, "TQ3_1S", 32, 16, "turboquant:TheTom"),
    _claim(45, "TURBO3_TCQ", 0, 0, "turboquant:beellama"),
    _claim(45, "TQ4_1S", 32, 20, "turboquant:AgustinJimenez"),
    _claim(46, "TQ4_1S", 32, 20, "turboquant:TheTom"),
    _claim(46, "TURBO2_TCQ", 0, 0, "turboquant:beellama"),
    _claim(46, "TQ3_4S", 32, 16, "turboquant:turbo-tan"),
    _claim(47, "TURBO4_0", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(47, "TQ3_1S", 32, 16, "turboquant:beellama"),
    _claim(48, "Q2_0_64", 0, 0, "fork"),
    _claim(48, "Q8_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(48, "TQ4_1S", 32, 20, "turboquant:beellama"),
    _claim(49, "Q5_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(50, "Q6_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _claim(100, "Q4_0_ROCMFP4", 32, 18, "rocmfpx"),
    _claim(101, "Q4_0_ROCMFP4_FAST", 32, 17, "rocmfpx"),
    _claim(102, "Q6_0_ROCMFPX", 32, 26, "rocmfpx"),
    _claim(103, "Q8_0_ROCMFPX", 32, 33, "rocmfpx"),
    _claim(104, "Q3_0_ROCMFPX", 32, 14, "rocmfpx"),
    _claim(105, "TURBO3_0", 32, 14, "rocmfpx"),
    _claim(106, "TURBO4_0", 32, 18, "rocmfpx"),
    _claim(107, "Q2_0_ROCMFPX", 32, 10, "rocmfpx"),
    _claim(108, "Q4_0_ROCMI4", 0, 0, "rocmfpx"),
    _claim(142, "IQ2_TN", 256, 64, "removed", row_meta_size=4),
    _claim(142, "PQ2_0", 128, 34, "prismml"),
    _claim(143, "IQ1_TN", 256, 52, "removed", row_meta_size=2),
    _claim(143, "PTQ1_0", 128, 28, "prismml"),
    _claim(200, "TQ3_0", 32, 14, "turboquant:turbo-tan"),
    _claim(201, "TURBO3_0", 0, 0, "turboquant:turbo-tan"),
    _claim(202, "TURBO4_0", 0, 0, "turboquant:turbo-tan"),
    _claim(203, "TURBO2_0", 0, 0, "turboquant:turbo-tan"),
    _claim(1024, "NVFP4", 0, 0, "fork:rustllama"),
)

TYPES: dict[int, TypeTraits] = {traits.id: traits for traits in _TYPES}

_BY_NAME: dict[str, TypeTraits] = {
    spelling: traits for traits in _TYPES for spelling in (traits.name.lower(), *traits.other_names)
}


def claims(type_id: int) -> tuple[Claim, ...]:
    """Return the other meanings of `type_id` that forks and older engines gave it."""
    return tuple(claim for claim in _CLAIMS if claim.id == type_id)


def type_name(type_id: int) -> str:
    """Return the canonical upper-case name, or ``type#N`` for an id nobody in the table holds."""
    traits = TYPES.get(type_id)
    return traits.name if traits else f"type#{type_id}"


def type_alias(type_id: int) -> str:
    """Return the recipe spelling (`q4_K`, `iq4_ks`), or ``type#N``."""
    traits = TYPES.get(type_id)
    return traits.alias if traits else f"type#{type_id}"


def find_type(name: str) -> TypeTraits | None:
    """Look a type up by any spelling: case does not matter, ``-`` counts as ``_``."""
    return _BY_NAME.get(name.strip().lower().replace("-", "_"))


def nearest_types(name: str, limit: int = 4) -> tuple[TypeTraits, ...]:
    """Return the types that may occur in a file whose names are closest to `name`, best first."""
    wanted = name.strip().lower().replace("-", "_")
    names = [spelling for spelling, traits in _BY_NAME.items() if traits.in_files]
    close = difflib.get_close_matches(wanted, names, n=limit, cutoff=0.5)
    return tuple(dict.fromkeys(_BY_NAME[spelling] for spelling in close))


def nbytes(type_id: int, dims: tuple[int, ...]) -> int | None:
    """Return the bytes of a tensor of `dims` (ggml order, dims[0] = row length), without padding.

    None where it cannot be known: an unknown type id, or a row that is not a whole number of blocks.
    Source: ggml_nbytes in ggml/src/ggml.c of both engines.
    """
    traits = TYPES.get(type_id)
    return None if traits is None else layout_nbytes(traits, dims)


def layout_nbytes(layout: TypeTraits | Claim, dims: tuple[int, ...]) -> int | None:
    """Return the bytes that `dims` take in `layout`; None where that is unknown or rows are not whole blocks."""
    elements = math.prod(dims)
    ne0 = dims[0] if dims else 1
    if layout.formula is Formula.I2_S:
        return elements // 4 + 32
    if layout.formula is Formula.TL2:
        ne1 = dims[1] if len(dims) > 1 else 1
        data = (ne0 - 256) * ne1 // 3 * 5 // 8 + 256 * ne1 // 2 * 4 // 8
        return -(-data // 32) * 32 + 32
    if layout.type_size == 0 or ne0 % layout.block_size:
        return None
    if elements == 0:
        return 0
    row_size = layout.row_meta_size + layout.type_size * ne0 // layout.block_size
    return row_size * (elements // ne0)
