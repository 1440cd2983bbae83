"""ggml tensor types of llama.cpp and ik_llama.cpp: names, block layout, sizes, who decodes and who quantizes them.

Only this table has these facts; other code reads its columns.  To add a type, add a row; if its decoder is "lookup" or
"repack", add that to `quants/types.py` or `quants/repacks.py` under the same name.  `engine_facts/` has the behaviour
of engines for each type.

Ids are not unique in the field: forks reuse numbers.  So an id has one primary meaning (what the two engines read), and
other meanings, never used for sizing (`engine_facts/other_meanings.py`).  An id that is not in the table is data, not
an error.

Sources: llama.cpp ggml/src/ggml.c (type_traits, ggml_row_size, ggml_nbytes), ggml/include/ggml.h; ik_llama.cpp
ggml/src/ggml.c (ggml_nbytes with the I2_S exception, row_meta_size).
"""

from __future__ import annotations

import difflib
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from gguftool.format.engine_facts.engines import BOTH, IK, IK_LLAMA_CPP, MAINLINE
from gguftool.record import record

if TYPE_CHECKING:
    from gguftool.format.engine_facts.other_meanings import OtherMeaning

# How a type stores numbers: plain floats and integers; blocks with a scale, perhaps a minimum ("legacy"); the same with
# scales of scales ("k"); codes that index a codebook or grid of values ("i") or seed a generator of values ("trellis");
# floats of 4 bits that share a scale ("fp4"); -1, 0 and 1 ("ternary").
Kind = Literal["float", "integer", "legacy", "k", "i", "trellis", "fp4", "ternary"]

# Decoders of types: numpy, by `dtype`; libgguf or gguf.quants, which give the same floats; a table of
# `quants/types.py`; the decoder of another type, after `quants/repacks.py` has unpacked its rows; or none.
DecodedBy = Literal["", "numpy", "gguf", "lookup", "repack"]

# Back ends that quantize, see `format/quantizers.py`.
PLAIN: Final = "gguftool"  # rounds floats
LIBGGUF: Final = "libgguf"
XLLAMACPP: Final = "xllamacpp"  # in libgguf's place, if it is installed
GGUF: Final = "gguf"
EXTERNAL: Final = "llama-quantize"  # of each engine that has the type


class Formula(Enum):
    """The formula for a tensor's bytes from its dims."""

    STD = "rows x (row meta + blocks)"
    I2_S = "elements / 4 + 32"  # BitNet: one float scale, padded to 32 bytes, after the data
    TL2 = "BitNet x86 lookup table"


@record
class TypeTraits:
    """One tensor type: `block_size` elements in `type_size` bytes, `row_meta_size` more bytes at the start of each row.

    `alias` is the spelling of recipes and command lines: lower case except for the K of the k-quants (`q4_K`, `q8_KV`);
    `other_names` are pairs of an engine and its own spelling.  `dtype` is numpy's name of plain numbers, without byte
    order.  `interleaved_rows` rows are packed together (dims[1] must divide by it); a row range is a byte range only at
    multiples of it.  `in_files` is false for types that an engine makes only at run time.
    """

    id: int
    name: str
    kind: Kind
    block_size: int
    type_size: int
    engines: tuple[str, ...]
    decoded_by: DecodedBy
    quantized_by: tuple[str, ...]
    alias: str
    dtype: str = ""
    row_meta_size: int = 0
    interleaved_rows: int = 1
    formula: Formula = Formula.STD
    needs_imatrix: bool = False
    repack_of: tuple[str, ...] = ()
    other_names: tuple[tuple[str, str], ...] = ()
    in_files: bool = True

    @property
    def is_quantized(self) -> bool:
        """Whether values share scales in blocks (plain floats and integers do not)."""
        return self.kind not in ("float", "integer")

    @property
    def is_plain_float(self) -> bool:
        """Whether each element is a float that numpy reads in place."""
        return self.kind == "float" and bool(self.dtype)

    @property
    def bits_per_weight(self) -> float:
        """Bits per element, without row meta."""
        if self.formula is Formula.I2_S:
            return 2.0
        return self.type_size * 8 / self.block_size

    def spelling(self, engine: str) -> str:
        """The type's name in `engine`."""
        return dict(self.other_names).get(engine, self.alias)


def _type(
    id: int,
    name: str,
    kind: Kind,
    block_size: int,
    type_size: int,
    engines: tuple[str, ...],
    decoded_by: DecodedBy,
    quantized_by: tuple[str, ...],
    **rest: Any,
) -> TypeTraits:
    return TypeTraits(
        id=id,
        name=name,
        kind=kind,
        block_size=block_size,
        type_size=type_size,
        engines=engines,
        decoded_by=decoded_by,
        quantized_by=quantized_by,
        **{"alias": name.lower(), **rest},
    )


def _packed(
    id: int, name: str, kind: Kind, block_size: int, type_size: int, rows: int, *repack_of: str, **rest: Any
) -> TypeTraits:
    """An interleaved type of ik_llama.cpp."""
    return _type(
        id,
        name,
        kind,
        block_size,
        type_size,
        IK,
        "repack",
        _ENGINE,
        interleaved_rows=rows,
        repack_of=repack_of,
        **rest,
    )


_FLOATS = (PLAIN,)
_ENGINE = (EXTERNAL,)
_NATIVE = (LIBGGUF, EXTERNAL)
_ALL = (LIBGGUF, GGUF, EXTERNAL)
# Integers, F64, run-time types, and leftovers that engines load but no longer make (ggml_quantize_chunk aborts).
_NONE: tuple[str, ...] = ()


def _old(name: str) -> tuple[tuple[str, str], ...]:
    return ((IK_LLAMA_CPP, name),)


# _type: id, name, kind, block, bytes, engines, decoded by, quantized by; then values that few types have.
# _packed: id, name, kind, block, bytes, rows packed together, the types from which `--repack` makes it.
_TYPES = (
    _type(0, "F32", "float", 1, 4, BOTH, "numpy", _FLOATS, dtype="f4"),
    _type(1, "F16", "float", 1, 2, BOTH, "numpy", _FLOATS, dtype="f2"),
    _type(2, "Q4_0", "legacy", 32, 18, BOTH, "gguf", _ALL),
    _type(3, "Q4_1", "legacy", 32, 20, BOTH, "gguf", _ALL),
    _type(6, "Q5_0", "legacy", 32, 22, BOTH, "gguf", _ALL),
    _type(7, "Q5_1", "legacy", 32, 24, BOTH, "gguf", _ALL),
    _type(8, "Q8_0", "legacy", 32, 34, BOTH, "gguf", _ALL),
    _type(9, "Q8_1", "legacy", 32, 36, BOTH, "", _NONE, in_files=False),
    _type(10, "Q2_K", "k", 256, 84, BOTH, "gguf", _NATIVE, alias="q2_K"),
    _type(11, "Q3_K", "k", 256, 110, BOTH, "gguf", _NATIVE, alias="q3_K"),
    _type(12, "Q4_K", "k", 256, 144, BOTH, "gguf", _NATIVE, alias="q4_K"),
    _type(13, "Q5_K", "k", 256, 176, BOTH, "gguf", _NATIVE, alias="q5_K"),
    _type(14, "Q6_K", "k", 256, 210, BOTH, "gguf", _NATIVE, alias="q6_K"),
    _type(15, "Q8_K", "k", 256, 292, MAINLINE, "", _NONE, alias="q8_K", in_files=False),
    _type(16, "IQ2_XXS", "i", 256, 66, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(17, "IQ2_XS", "i", 256, 74, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(18, "IQ3_XXS", "i", 256, 98, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(19, "IQ1_S", "i", 256, 50, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(20, "IQ4_NL", "i", 32, 18, BOTH, "gguf", _NATIVE),
    _type(21, "IQ3_S", "i", 256, 110, BOTH, "gguf", _NATIVE),
    _type(22, "IQ2_S", "i", 256, 82, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(23, "IQ4_XS", "i", 256, 136, BOTH, "gguf", _NATIVE),
    _type(24, "I8", "integer", 1, 1, BOTH, "numpy", _NONE, dtype="i1"),
    _type(25, "I16", "integer", 1, 2, BOTH, "numpy", _NONE, dtype="i2"),
    _type(26, "I32", "integer", 1, 4, BOTH, "numpy", _NONE, dtype="i4"),
    _type(27, "I64", "integer", 1, 8, BOTH, "numpy", _NONE, dtype="i8"),
    _type(28, "F64", "float", 1, 8, BOTH, "numpy", _NONE, dtype="f8"),
    _type(29, "IQ1_M", "i", 256, 56, BOTH, "gguf", _NATIVE, needs_imatrix=True),
    _type(30, "BF16", "float", 1, 2, BOTH, "numpy", _FLOATS, dtype="u2"),
    _type(
        31,
        "Q4_0_4_4",
        "legacy",
        32,
        18,
        IK,
        "repack",
        _NONE,
        interleaved_rows=4,
        other_names=((IK_LLAMA_CPP, "q4_0_4x4"),),
    ),
    _type(
        32,
        "Q4_0_4_8",
        "legacy",
        32,
        18,
        IK,
        "repack",
        _NONE,
        interleaved_rows=4,
        other_names=((IK_LLAMA_CPP, "q4_0_4x8"),),
    ),
    _type(
        33,
        "Q4_0_8_8",
        "legacy",
        32,
        18,
        IK,
        "repack",
        _NONE,
        interleaved_rows=8,
        other_names=((IK_LLAMA_CPP, "q4_0_8x8"),),
    ),
    _type(34, "TQ1_0", "ternary", 256, 54, MAINLINE, "gguf", _ALL),
    _type(35, "TQ2_0", "ternary", 256, 66, MAINLINE, "gguf", _ALL),
    _type(36, "I2_S", "ternary", 1, 1, IK, "", _NONE, formula=Formula.I2_S),
    _type(39, "MXFP4", "fp4", 32, 17, BOTH, "gguf", _ALL),
    _type(40, "NVFP4", "fp4", 64, 36, MAINLINE, "gguf", _NATIVE),
    _type(41, "Q1_0", "legacy", 128, 18, BOTH, "lookup", _NATIVE, other_names=((IK_LLAMA_CPP, "q1_0_g128"),)),
    _type(42, "Q2_0", "legacy", 64, 18, MAINLINE, "lookup", _ENGINE),
    _type(97, "Q8_0_X4", "legacy", 32, 34, IK, "", _NONE, in_files=False),
    _type(98, "Q8_1_X4", "legacy", 32, 36, IK, "", _NONE, in_files=False),
    _type(99, "Q8_2_X4", "legacy", 32, 36, IK, "", _NONE, in_files=False),
    _type(133, "Q6_0", "legacy", 32, 26, IK, "lookup", _ENGINE),
    _type(134, "IQ1_BN", "ternary", 64, 13, IK, "lookup", _ENGINE, row_meta_size=2),
    _type(135, "IQ2_BN", "ternary", 64, 16, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(136, "Q8_K64", "k", 64, 68, IK, "", _NONE, in_files=False),
    _type(137, "IQ2_K", "i", 256, 76, IK, "lookup", _ENGINE),
    _type(138, "IQ3_K", "i", 256, 110, IK, "lookup", _ENGINE),
    _type(139, "IQ4_K", "i", 256, 144, IK, "lookup", _ENGINE),
    _type(140, "IQ5_K", "i", 256, 176, IK, "lookup", _ENGINE),
    _type(141, "IQ6_K", "i", 256, 212, IK, "lookup", _ENGINE),
    _type(144, "IQ4_KS", "i", 256, 136, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(145, "IQ2_KS", "i", 256, 70, IK, "lookup", _ENGINE, row_meta_size=2),
    _type(146, "IQ4_KSS", "i", 256, 128, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(147, "Q8_K16", "k", 64, 64, IK, "", _NONE, row_meta_size=20, in_files=False),
    _type(148, "Q8_K32", "k", 256, 296, IK, "", _NONE, in_files=False),
    _type(149, "Q8_KR8", "k", 256, 296, IK, "", _NONE, in_files=False),
    _type(150, "Q8_K128", "k", 128, 140, IK, "", _NONE, in_files=False),
    _type(151, "Q8_KV", "k", 32, 32, IK, "lookup", _ENGINE, alias="q8_KV", row_meta_size=8),
    _type(152, "IQ5_KS", "i", 256, 168, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(153, "IQ2_KT", "trellis", 256, 68, IK, "lookup", _ENGINE, row_meta_size=4, needs_imatrix=True),
    _type(154, "IQ3_KT", "trellis", 256, 100, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(155, "IQ4_KT", "trellis", 256, 128, IK, "lookup", _ENGINE, row_meta_size=4),
    _type(156, "IQ3_KS", "i", 256, 102, IK, "lookup", _ENGINE, row_meta_size=2),
    _type(157, "IQ2_KL", "i", 256, 86, IK, "lookup", _ENGINE, row_meta_size=2),
    _type(158, "IQ1_KT", "trellis", 256, 56, IK, "lookup", _ENGINE, row_meta_size=4, needs_imatrix=True),
    _packed(202, "Q4_0_R8", "legacy", 32, 18, 8, "Q4_0"),
    _packed(206, "Q5_0_R4", "legacy", 32, 22, 4, "Q5_0"),
    _packed(208, "Q8_0_R8", "legacy", 32, 34, 8, "Q8_0"),
    _packed(210, "Q2_K_R4", "k", 256, 84, 4, "Q2_K"),
    _packed(211, "Q3_K_R4", "k", 256, 110, 4, "Q3_K"),
    _packed(212, "Q4_K_R4", "k", 256, 144, 4, "Q4_K"),
    _packed(213, "Q5_K_R4", "k", 256, 176, 4, "Q5_K"),
    _packed(214, "Q6_K_R4", "k", 256, 210, 4, "Q6_K"),
    _packed(216, "IQ2_XXS_R4", "i", 256, 66, 4, "IQ2_XXS", needs_imatrix=True),
    _packed(217, "IQ2_XS_R4", "i", 256, 74, 4, "IQ2_XS", needs_imatrix=True),
    _packed(218, "IQ3_XXS_R4", "i", 256, 98, 4, "IQ3_XXS"),
    _packed(219, "IQ1_S_R4", "i", 32, 6, 4, row_meta_size=2, needs_imatrix=True),
    _packed(220, "IQ4_NL_R4", "i", 32, 18, 4, "IQ4_NL"),
    _packed(221, "IQ3_S_R4", "i", 256, 110, 4, "IQ3_S"),
    _packed(222, "IQ2_S_R4", "i", 256, 82, 4, "IQ2_S", needs_imatrix=True),
    _packed(223, "IQ4_XS_R8", "i", 256, 136, 8, "IQ4_XS"),
    _packed(229, "IQ1_M_R4", "i", 32, 7, 4, row_meta_size=2, needs_imatrix=True),
    _packed(230, "BF16_R16", "float", 1, 2, 16, "BF16", "F16"),
    _packed(233, "Q6_0_R4", "legacy", 32, 26, 4, "Q6_0"),
    _packed(335, "IQ2_BN_R4", "ternary", 64, 16, 4, "IQ2_BN", row_meta_size=4),
    _packed(337, "IQ2_K_R4", "i", 256, 76, 4, "IQ2_K"),
    _packed(338, "IQ3_K_R4", "i", 256, 110, 4, "IQ3_K"),
    _packed(339, "IQ4_K_R4", "i", 256, 144, 4, "IQ4_K"),
    _packed(340, "IQ5_K_R4", "i", 256, 176, 4, "IQ5_K"),
    _packed(344, "IQ4_KS_R4", "i", 256, 136, 4, "IQ4_KS", row_meta_size=4),
    _packed(352, "IQ5_KS_R4", "i", 256, 168, 4, "IQ5_KS", row_meta_size=4),
    _packed(353, "MXFP4_R8", "fp4", 32, 17, 8, "MXFP4"),
    _type(397, "Q8_K_R16", "k", 256, 258, IK, "", _NONE, interleaved_rows=16, in_files=False),
    _packed(398, "Q8_KV_R8", "k", 32, 32, 8, "Q8_KV", alias="q8_KV_r8", row_meta_size=4),
    _packed(399, "Q8_K_R8", "k", 256, 258, 8, "Q8_K"),
)

TYPES: dict[int, TypeTraits] = {traits.id: traits for traits in _TYPES}

_BY_NAME: dict[str, TypeTraits] = {
    spelling: traits
    for traits in _TYPES
    for spelling in (traits.name.lower(), *(name.lower() for _, name in traits.other_names))
}


def type_name(type_id: int) -> str:
    """Return the canonical upper-case name, or ``type#N`` for an id that is not in the table."""
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
    """Return the types with the names closest to `name`, best first; without run-time types."""
    wanted = name.strip().lower().replace("-", "_")
    names = [spelling for spelling, traits in _BY_NAME.items() if traits.in_files]
    close = difflib.get_close_matches(wanted, names, n=limit, cutoff=0.5)
    return tuple(dict.fromkeys(_BY_NAME[spelling] for spelling in close))


def nbytes(type_id: int, dims: tuple[int, ...]) -> int | None:
    """Return the bytes of a tensor of `dims` (ggml order, dims[0] = row length), without padding.

    None if it cannot be known: an unknown type id, or a row that is not a whole number of blocks.
    Source: ggml_nbytes in ggml/src/ggml.c of both engines.
    """
    traits = TYPES.get(type_id)
    return None if traits is None else layout_nbytes(traits, dims)


def layout_nbytes(layout: TypeTraits | OtherMeaning, dims: tuple[int, ...]) -> int | None:
    """Return the bytes that `dims` take in `layout`; None if that is unknown or rows are not whole blocks."""
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
