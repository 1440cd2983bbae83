"""File types (`general.file_type`): the mixes that llama-quantize offers, by number.

A file type is not a tensor type: its number and even its name mean something else (file type IQ2_M has mostly IQ2_S
tensors, and 214 is Q4_K_R4 here but Q6_K_R4 among tensor types).  Engines use it only for display; if it is absent,
they guess it from the type of most tensors.

Sources: llama.cpp include/llama.h, src/llama-model-loader.cpp (guess); ik_llama.cpp the same files.
"""

from __future__ import annotations

from gguftool.errors import printable
from gguftool.format.engine_facts.engines import BOTH, IK, MAINLINE
from gguftool.format.ggml import find_type, nearest_types
from gguftool.record import record

FILE_TYPE_KEY = "general.file_type"
GUESSED = 1024  # flag that engines add to a guessed number


@record
class FType:
    """One file type; `tensor_type` is the type that llama-quantize writes by default under it.

    An engine guesses it for a file with mostly `majority_of` tensors; empty for types that are never guessed.
    """

    id: int
    name: str
    tensor_type: str
    engines: tuple[str, ...]
    majority_of: str = ""


def _ftype(id: int, name: str, tensor_type: str, engines: tuple[str, ...], *, majority_of: str = "") -> FType:
    return FType(id=id, name=name, tensor_type=tensor_type, engines=engines, majority_of=majority_of)


_FTYPES = (
    _ftype(0, "F32", "F32", BOTH, majority_of="F32"),
    _ftype(1, "F16", "F16", BOTH, majority_of="F16"),
    _ftype(2, "Q4_0", "Q4_0", BOTH, majority_of="Q4_0"),
    _ftype(3, "Q4_1", "Q4_1", BOTH, majority_of="Q4_1"),
    _ftype(7, "Q8_0", "Q8_0", BOTH, majority_of="Q8_0"),
    _ftype(8, "Q5_0", "Q5_0", BOTH, majority_of="Q5_0"),
    _ftype(9, "Q5_1", "Q5_1", BOTH, majority_of="Q5_1"),
    _ftype(10, "Q2_K", "Q2_K", BOTH, majority_of="Q2_K"),
    _ftype(11, "Q3_K_S", "Q3_K", BOTH),
    _ftype(12, "Q3_K_M", "Q3_K", BOTH, majority_of="Q3_K"),
    _ftype(13, "Q3_K_L", "Q3_K", BOTH),
    _ftype(14, "Q4_K_S", "Q4_K", BOTH),
    _ftype(15, "Q4_K_M", "Q4_K", BOTH, majority_of="Q4_K"),
    _ftype(16, "Q5_K_S", "Q5_K", BOTH),
    _ftype(17, "Q5_K_M", "Q5_K", BOTH, majority_of="Q5_K"),
    _ftype(18, "Q6_K", "Q6_K", BOTH, majority_of="Q6_K"),
    _ftype(19, "IQ2_XXS", "IQ2_XXS", BOTH, majority_of="IQ2_XXS"),
    _ftype(20, "IQ2_XS", "IQ2_XS", BOTH, majority_of="IQ2_XS"),
    _ftype(21, "Q2_K_S", "Q2_K", BOTH),
    _ftype(22, "IQ3_XS", "IQ3_S", BOTH),
    _ftype(23, "IQ3_XXS", "IQ3_XXS", BOTH, majority_of="IQ3_XXS"),
    _ftype(24, "IQ1_S", "IQ1_S", BOTH, majority_of="IQ1_S"),
    _ftype(25, "IQ4_NL", "IQ4_NL", BOTH, majority_of="IQ4_NL"),
    _ftype(26, "IQ3_S", "IQ3_S", BOTH, majority_of="IQ3_S"),
    _ftype(27, "IQ3_M", "IQ3_S", BOTH),
    _ftype(28, "IQ2_S", "IQ2_XS", IK),
    _ftype(28, "IQ2_S", "IQ2_XS", MAINLINE, majority_of="IQ2_S"),
    _ftype(29, "IQ2_M", "IQ2_S", IK, majority_of="IQ2_S"),
    _ftype(29, "IQ2_M", "IQ2_S", MAINLINE),
    _ftype(30, "IQ4_XS", "IQ4_XS", BOTH, majority_of="IQ4_XS"),
    _ftype(31, "IQ1_M", "IQ1_M", BOTH, majority_of="IQ1_M"),
    _ftype(32, "BF16", "BF16", BOTH, majority_of="BF16"),
    _ftype(33, "Q4_0_4_4", "Q4_0_4_4", IK, majority_of="Q4_0_4_4"),
    _ftype(34, "Q4_0_4_8", "Q4_0_4_8", IK, majority_of="Q4_0_4_8"),
    _ftype(35, "Q4_0_8_8", "Q4_0_8_8", IK, majority_of="Q4_0_8_8"),
    _ftype(36, "TQ1_0", "TQ1_0", MAINLINE, majority_of="TQ1_0"),
    _ftype(37, "TQ2_0", "TQ2_0", MAINLINE, majority_of="TQ2_0"),
    _ftype(38, "MXFP4", "MXFP4", IK, majority_of="MXFP4"),
    _ftype(38, "MXFP4_MOE", "MXFP4", MAINLINE),
    _ftype(39, "NVFP4", "", MAINLINE, majority_of="NVFP4"),
    _ftype(40, "Q1_0", "Q1_0", MAINLINE, majority_of="Q1_0"),
    _ftype(41, "Q1_0_G128", "Q1_0", IK),
    _ftype(41, "Q2_0", "Q2_0", MAINLINE, majority_of="Q2_0"),
    _ftype(135, "Q6_0", "Q6_0", IK, majority_of="Q6_0"),
    _ftype(136, "IQ1_BN", "IQ1_BN", IK, majority_of="IQ1_BN"),
    _ftype(137, "IQ2_BN", "IQ2_BN", IK, majority_of="IQ2_BN"),
    _ftype(138, "IQ2_K", "IQ2_K", IK, majority_of="IQ2_K"),
    _ftype(139, "IQ3_K", "IQ3_K", IK, majority_of="IQ3_K"),
    _ftype(140, "IQ4_K", "IQ4_K", IK, majority_of="IQ4_K"),
    _ftype(141, "IQ5_K", "IQ5_K", IK, majority_of="IQ5_K"),
    _ftype(142, "IQ6_K", "IQ6_K", IK, majority_of="IQ6_K"),
    _ftype(145, "IQ4_KS", "IQ4_KS", IK, majority_of="IQ4_KS"),
    _ftype(146, "IQ3_KL", "IQ3_K", IK),
    _ftype(147, "IQ2_KS", "IQ2_KS", IK, majority_of="IQ2_KS"),
    _ftype(148, "IQ4_KSS", "IQ4_KSS", IK, majority_of="IQ4_KSS"),
    _ftype(149, "Q8_KV", "Q8_KV", IK, majority_of="Q8_KV"),
    _ftype(150, "IQ5_KS", "IQ5_KS", IK, majority_of="IQ5_KS"),
    _ftype(151, "IQ2_KT", "IQ2_KT", IK, majority_of="IQ2_KT"),
    _ftype(152, "IQ3_KT", "IQ3_KT", IK, majority_of="IQ3_KT"),
    _ftype(153, "IQ4_KT", "IQ4_KT", IK, majority_of="IQ4_KT"),
    _ftype(154, "IQ3_KS", "IQ3_KS", IK, majority_of="IQ3_KS"),
    _ftype(155, "IQ2_KL", "IQ2_KL", IK, majority_of="IQ2_KL"),
    _ftype(156, "IQ1_KT", "IQ1_KT", IK, majority_of="IQ1_KT"),
    _ftype(202, "Q4_0_R8", "Q4_0_R8", IK, majority_of="Q4_0_R8"),
    _ftype(207, "Q8_0_R8", "Q8_0_R8", IK, majority_of="Q8_0_R8"),
    _ftype(208, "Q5_0_R4", "Q5_0_R4", IK, majority_of="Q5_0_R4"),
    _ftype(210, "Q2_K_R4", "Q2_K_R4", IK),
    _ftype(211, "Q3_K_R4", "Q3_K_R4", IK, majority_of="Q3_K_R4"),
    _ftype(214, "Q4_K_R4", "Q4_K_R4", IK, majority_of="Q4_K_R4"),
    _ftype(216, "Q5_K_R4", "Q5_K_R4", IK, majority_of="Q5_K_R4"),
    _ftype(218, "Q6_K_R4", "Q6_K_R4", IK, majority_of="Q6_K_R4"),
    _ftype(219, "IQ2_XXS_R4", "IQ2_XXS_R4", IK, majority_of="IQ2_XXS_R4"),
    _ftype(220, "IQ2_XS_R4", "IQ2_XS_R4", IK, majority_of="IQ2_XS_R4"),
    _ftype(223, "IQ3_XXS_R4", "IQ3_XXS_R4", IK, majority_of="IQ3_XXS_R4"),
    _ftype(224, "IQ1_S_R4", "IQ1_S_R4", IK, majority_of="IQ1_S_R4"),
    _ftype(225, "IQ4_NL_R4", "IQ4_NL_R4", IK, majority_of="IQ4_NL_R4"),
    _ftype(226, "IQ3_S_R4", "IQ3_S_R4", IK, majority_of="IQ3_S_R4"),
    _ftype(229, "IQ2_M_R4", "IQ2_S_R4", IK, majority_of="IQ2_S_R4"),
    _ftype(230, "IQ4_XS_R8", "IQ4_XS_R8", IK, majority_of="IQ4_XS_R8"),
    _ftype(231, "IQ1_M_R4", "IQ1_M_R4", IK, majority_of="IQ1_M_R4"),
    _ftype(232, "BF16_R16", "BF16_R16", IK, majority_of="BF16_R16"),
    _ftype(335, "Q6_0_R4", "Q6_0_R4", IK, majority_of="Q6_0_R4"),
    _ftype(337, "IQ2_BN_R4", "IQ2_BN_R4", IK, majority_of="IQ2_BN_R4"),
    _ftype(338, "IQ2_K_R4", "IQ2_K_R4", IK, majority_of="IQ2_K_R4"),
    _ftype(339, "IQ3_K_R4", "IQ3_K_R4", IK, majority_of="IQ3_K_R4"),
    _ftype(340, "IQ4_K_R4", "IQ4_K_R4", IK, majority_of="IQ4_K_R4"),
    _ftype(341, "IQ5_K_R4", "IQ5_K_R4", IK, majority_of="IQ5_K_R4"),
    _ftype(345, "IQ4_KS_R4", "IQ4_KS_R4", IK, majority_of="IQ4_KS_R4"),
    _ftype(350, "IQ5_KS_R4", "IQ5_KS_R4", IK, majority_of="IQ5_KS_R4"),
    _ftype(351, "MXFP4_R8", "MXFP4_R8", IK),
    _ftype(398, "Q8_KV_R8", "Q8_KV_R8", IK, majority_of="Q8_KV_R8"),
    _ftype(399, "Q8_K_R8", "Q8_K_R8", IK, majority_of="Q8_K_R8"),
)


def ftype_name(number: int) -> str:
    """Return the name of file type `number`, both names if the engines differ, or ``ftype#N``."""
    names = dict.fromkeys(ftype.name for ftype in _FTYPES if ftype.id == number & ~GUESSED)
    return "/".join(names) or f"ftype#{number}"


def ftypes_of(number: int) -> tuple[FType, ...]:
    """Return the meanings of file type `number` in the engines (with or without the flag of a guess)."""
    return tuple(ftype for ftype in _FTYPES if ftype.id == number & ~GUESSED)


def find_ftypes(name: str) -> tuple[FType, ...]:
    """Return the file types called `name` (case does not matter)."""
    return tuple(ftype for ftype in _FTYPES if ftype.name.lower() == name.strip().lower())


def all_ftypes(engine: str) -> tuple[FType, ...]:
    """Return the file types of `engine`, by number."""
    return tuple(ftype for ftype in _FTYPES if engine in ftype.engines)


def ftype_of_majority(tensor_type: str, engine: str) -> FType | None:
    """Return the file type that `engine` guesses for a file with mostly `tensor_type` tensors, or None.

    If it guesses none, the only file type that consists of the type by default (MXFP4 in llama.cpp).
    """
    ftypes = all_ftypes(engine)
    guessed = next((ftype for ftype in ftypes if ftype.majority_of == tensor_type), None)
    made = [ftype for ftype in ftypes if ftype.tensor_type == tensor_type]
    return guessed or (made[0] if len(made) == 1 else None)


def ftype_tensor_type(number: int) -> int | None:
    """Return the id of the tensor type that file type `number` stands for, or None."""
    for ftype in _FTYPES:
        if ftype.id == number & ~GUESSED and (traits := find_type(ftype.tensor_type)):
            return traits.id
    return None


def no_such_type(name: str) -> str:
    """Build the error message for a `name` that is not a tensor type: what it is instead, and the nearest names."""
    text = f"there is no tensor type '{printable(name)}'"
    ftypes = find_ftypes(name)
    if ftypes:
        main = ", ".join(dict.fromkeys(ftype.tensor_type for ftype in ftypes if ftype.tensor_type))
        text += f": it is a file type of llama-quantize, a mix whose tensors are mostly {main}"
    near = nearest_types(name)
    return f"{text}; nearest: {', '.join(traits.alias for traits in near)}" if near else f"{text}; see 'gguftool types'"
