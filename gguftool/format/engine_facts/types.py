"""What each engine does with a tensor type, beyond its bytes: kernels, fallbacks, imatrix policy.

A row holds only what differs from the usual: a kernel that takes any number of whole blocks and of interleaved rows, on
CPU and CUDA, no fallback, no imatrix.  Rows cover every type that may stand in a file, and those quantizers make.

Sources: ik_llama.cpp ggml/src/iqk/iqk_mul_mat.cpp (MulMat::num_rows), iqk_gemm_*.cpp (row widths),
ggml/src/ggml-cuda.cu (supports_op) and mmq.cu, src/llama-quantize.cpp (change_type_if_necessary,
interleaved_properties, imatrix policy); llama.cpp src/llama-quant.cpp (tensor_type_fallback, imatrix policy).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from gguftool.format.ggml import BOTH, IK, MAINLINE, TYPES, find_type
from gguftool.record import record

# What stands in place of a fallback type.
THROWS: Final = "throws"  # llama-quantize stops with an error
UNCHECKED: Final = "unchecked"  # llama-quantize does not look: an assertion or garbage


class Imatrix(Enum):
    """What llama-quantize wants before it quantizes to a type."""

    NO = "not needed"
    SMALL = "needed in a file of type Q2_K_S"
    YES = "refuses without"
    ASSERTED = "refuses without, and so does ggml itself"


@record
class EngineRules:
    """How the engines treat one type; pairs are (llama.cpp, ik_llama.cpp).

    `kernel_ne0` and `kernel_ne1` are the multiples of dims[0] and dims[1] that ik_llama.cpp's CPU kernel needs,
    `avx512_ne1` the latter on CPUs with AVX-512. `row_fallback` is what its llama-quantize writes where rows do not
    divide by the interleave, `ne0_fallback` what each engine's writes where dims[0] is not a whole number of blocks: a
    type's name, `THROWS`, `UNCHECKED`, or None where the engine lacks the type or takes any width.
    `cpu`, `cuda`, `mmq` speak of ik_llama.cpp: CPUs with a kernel, matrix multiplication on CUDA, and a quantized one.
    `no_token_embd` names the engines that cannot look rows of such a token_embd up.
    """

    name: str
    kernel_ne0: int
    kernel_ne1: int
    avx512_ne1: int
    row_fallback: str | None = None
    ne0_fallback: tuple[str | None, str | None] = (None, None)
    imatrix: tuple[Imatrix, Imatrix] = (Imatrix.NO, Imatrix.NO)
    cpu: tuple[str, ...] = ("x86", "arm")
    cuda: bool = True
    mmq: bool = True
    no_token_embd: tuple[str, ...] = ()
    ik_name: str

    def imatrix_policy(self, engine: str) -> Imatrix:
        """Return what the llama-quantize of `engine` wants."""
        return self.imatrix[BOTH.index(engine)]


def _rules(
    name: str,
    *,
    kernel_ne0: int = 0,
    kernel_ne1: int = 0,
    avx512_ne1: int = 0,
    row_fallback: str | None = None,
    ne0: tuple[str | None, str | None] = (None, None),
    imatrix: tuple[Imatrix, Imatrix] = (Imatrix.NO, Imatrix.NO),
    cpu: tuple[str, ...] = ("x86", "arm"),
    cuda: bool = True,
    mmq: bool = True,
    no_token_embd: tuple[str, ...] = (),
    ik_name: str = "",
) -> EngineRules:
    traits = find_type(name)
    if traits is None:
        raise LookupError(name)
    ne1 = kernel_ne1 or traits.interleaved_rows
    return EngineRules(
        name=name,
        kernel_ne0=kernel_ne0 or traits.block_size,
        kernel_ne1=ne1,
        avx512_ne1=avx512_ne1 or ne1,
        row_fallback=row_fallback,
        ne0_fallback=ne0,
        imatrix=imatrix,
        cpu=cpu,
        cuda=cuda,
        mmq=cuda and mmq,
        no_token_embd=no_token_embd,
        ik_name=ik_name or traits.alias,
    )


_ROWS = (
    _rules("F32", kernel_ne0=4, mmq=False),
    _rules("F16", kernel_ne0=4, mmq=False),
    _rules("Q4_0", ne0=("F16", UNCHECKED)),
    _rules("Q4_1", ne0=("F16", UNCHECKED)),
    _rules("Q5_0", ne0=("F16", UNCHECKED)),
    _rules("Q5_1", ne0=("F16", UNCHECKED)),
    _rules("Q8_0", ne0=("F16", UNCHECKED)),
    _rules("Q2_K", ne0=("Q4_0", "IQ4_NL"), imatrix=(Imatrix.SMALL, Imatrix.SMALL)),
    _rules("Q3_K", ne0=("Q4_0", "IQ4_NL")),
    _rules("Q4_K", ne0=("Q5_0", "Q5_0")),
    _rules("Q5_K", ne0=("Q5_1", "Q6_0")),
    _rules("Q6_K", ne0=("Q8_0", "Q8_0")),
    _rules("IQ2_XXS", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.ASSERTED, Imatrix.ASSERTED)),
    _rules("IQ2_XS", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.ASSERTED, Imatrix.ASSERTED)),
    _rules("IQ3_XXS", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.YES, Imatrix.NO)),
    _rules("IQ1_S", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.ASSERTED, Imatrix.ASSERTED)),
    _rules("IQ4_NL", ne0=("F16", UNCHECKED)),
    _rules("IQ3_S", ne0=("IQ4_NL", "IQ4_NL")),
    _rules("IQ2_S", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.YES, Imatrix.YES)),
    _rules("IQ4_XS", ne0=("IQ4_NL", "IQ4_NL")),
    _rules("I8", cpu=(), cuda=False, no_token_embd=BOTH),
    _rules("I16", cpu=(), cuda=False, no_token_embd=BOTH),
    _rules("I32", cpu=(), cuda=False, no_token_embd=BOTH),
    _rules("I64", cpu=(), cuda=False, no_token_embd=BOTH),
    _rules("F64", cpu=(), cuda=False, no_token_embd=BOTH),
    _rules("IQ1_M", ne0=("IQ4_NL", "IQ4_NL"), imatrix=(Imatrix.YES, Imatrix.YES), mmq=False),
    _rules("BF16", kernel_ne0=8, mmq=False),
    _rules(
        "Q4_0_4_4", row_fallback="Q4_0", ne0=(None, UNCHECKED), cpu=(), cuda=False, no_token_embd=IK, ik_name="q4_0_4x4"
    ),
    _rules(
        "Q4_0_4_8", row_fallback="Q4_0", ne0=(None, UNCHECKED), cpu=(), cuda=False, no_token_embd=IK, ik_name="q4_0_4x8"
    ),
    _rules(
        "Q4_0_8_8", row_fallback="Q4_0", ne0=(None, UNCHECKED), cpu=(), cuda=False, no_token_embd=IK, ik_name="q4_0_8x8"
    ),
    _rules("TQ1_0", ne0=("Q4_0", None), cpu=(), cuda=False),
    _rules("TQ2_0", ne0=("Q4_0", None), cpu=(), cuda=False),
    _rules("I2_S", ne0=(None, UNCHECKED), cpu=(), cuda=False, no_token_embd=IK),
    _rules("MXFP4", ne0=("F16", UNCHECKED)),
    _rules("NVFP4", ne0=(THROWS, None), cpu=(), cuda=False),
    _rules("Q1_0", ne0=(THROWS, UNCHECKED), cuda=False, ik_name="q1_0_g128"),
    _rules("Q2_0", ne0=("Q4_0", None), cpu=(), cuda=False),
    _rules("Q6_0", ne0=(None, UNCHECKED)),
    _rules("IQ1_BN", ne0=(None, THROWS), mmq=False, no_token_embd=IK),
    _rules("IQ2_BN", ne0=(None, THROWS), mmq=False, no_token_embd=IK),
    _rules("IQ2_K", ne0=(None, "IQ4_NL")),
    _rules("IQ3_K", ne0=(None, "IQ4_NL")),
    _rules("IQ4_K", ne0=(None, "Q5_0")),
    _rules("IQ5_K", ne0=(None, "Q6_0")),
    _rules("IQ6_K", ne0=(None, "Q8_0")),
    _rules("IQ4_KS", ne0=(None, "IQ4_NL")),
    _rules("IQ2_KS", ne0=(None, "IQ4_NL")),
    _rules("IQ4_KSS", ne0=(None, "IQ4_NL")),
    _rules("Q8_KV", kernel_ne0=256, kernel_ne1=8, ne0=(None, UNCHECKED), cuda=False),
    _rules("IQ5_KS", ne0=(None, "Q5_0")),
    _rules("IQ2_KT", ne0=(None, "IQ4_NL"), imatrix=(Imatrix.NO, Imatrix.YES)),
    _rules("IQ3_KT", ne0=(None, "IQ4_NL")),
    _rules("IQ4_KT", ne0=(None, "IQ4_NL")),
    _rules("IQ3_KS", ne0=(None, "IQ4_NL")),
    _rules("IQ2_KL", ne0=(None, "IQ4_NL")),
    _rules("IQ1_KT", ne0=(None, "IQ4_NL"), imatrix=(Imatrix.NO, Imatrix.YES)),
    _rules("Q4_0_R8", avx512_ne1=16, row_fallback="Q4_0", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("Q5_0_R4", avx512_ne1=8, row_fallback="Q5_0", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("Q8_0_R8", avx512_ne1=16, row_fallback="Q8_0", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("Q2_K_R4", row_fallback="Q2_K", ne0=(None, "IQ4_NL"), cuda=False, no_token_embd=IK),
    _rules("Q3_K_R4", row_fallback="Q3_K", ne0=(None, "IQ4_NL"), cuda=False, no_token_embd=IK),
    _rules("Q4_K_R4", avx512_ne1=8, row_fallback="Q4_K", ne0=(None, "Q5_0"), cuda=False, no_token_embd=IK),
    _rules("Q5_K_R4", avx512_ne1=8, row_fallback="Q5_K", ne0=(None, "Q6_0"), cuda=False, no_token_embd=IK),
    _rules("Q6_K_R4", row_fallback="Q6_K", ne0=(None, "Q8_0"), cuda=False, no_token_embd=IK),
    _rules(
        "IQ2_XXS_R4",
        row_fallback="IQ2_XXS",
        ne0=(None, "IQ4_NL"),
        imatrix=(Imatrix.NO, Imatrix.YES),
        cuda=False,
        no_token_embd=IK,
    ),
    _rules(
        "IQ2_XS_R4",
        row_fallback="IQ2_XS",
        ne0=(None, "IQ4_NL"),
        imatrix=(Imatrix.NO, Imatrix.YES),
        cuda=False,
        no_token_embd=IK,
    ),
    _rules("IQ3_XXS_R4", row_fallback="IQ3_XXS", ne0=(None, "IQ4_NL"), cuda=False, no_token_embd=IK),
    _rules(
        "IQ1_S_R4",
        kernel_ne0=128,
        row_fallback="IQ1_S",
        ne0=(None, UNCHECKED),
        imatrix=(Imatrix.NO, Imatrix.YES),
        no_token_embd=IK,
    ),
    _rules("IQ4_NL_R4", avx512_ne1=8, row_fallback="IQ4_NL", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("IQ3_S_R4", row_fallback="IQ3_S", ne0=(None, "IQ4_NL"), cuda=False, no_token_embd=IK),
    _rules(
        "IQ2_S_R4",
        row_fallback="IQ2_S",
        ne0=(None, "IQ4_NL"),
        imatrix=(Imatrix.NO, Imatrix.YES),
        cuda=False,
        no_token_embd=IK,
    ),
    _rules("IQ4_XS_R8", row_fallback="IQ4_XS", ne0=(None, "IQ4_NL"), cuda=False, no_token_embd=IK),
    _rules(
        "IQ1_M_R4",
        kernel_ne0=128,
        row_fallback="IQ1_M",
        ne0=(None, UNCHECKED),
        imatrix=(Imatrix.NO, Imatrix.YES),
        mmq=False,
        no_token_embd=IK,
    ),
    _rules("BF16_R16", kernel_ne0=16, row_fallback="BF16", cpu=("x86",), cuda=False, no_token_embd=IK),
    _rules("Q6_0_R4", avx512_ne1=8, row_fallback="Q6_0", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("IQ2_BN_R4", avx512_ne1=8, row_fallback="IQ2_BN", ne0=(None, THROWS), cuda=False, no_token_embd=IK),
    _rules("IQ2_K_R4", row_fallback="IQ2_K", ne0=(None, "IQ4_NL"), no_token_embd=IK),
    _rules("IQ3_K_R4", row_fallback="IQ3_K", ne0=(None, "IQ4_NL"), no_token_embd=IK),
    _rules("IQ4_K_R4", row_fallback="IQ4_K", ne0=(None, "Q5_0"), no_token_embd=IK),
    _rules("IQ5_K_R4", row_fallback="IQ5_K", ne0=(None, "Q6_0"), no_token_embd=IK),
    _rules("IQ4_KS_R4", row_fallback="IQ4_KS", ne0=(None, "IQ4_NL"), no_token_embd=IK),
    _rules("IQ5_KS_R4", row_fallback="IQ5_KS", ne0=(None, "Q5_0"), no_token_embd=IK),
    _rules(
        "MXFP4_R8",
        avx512_ne1=16,
        row_fallback="MXFP4",
        ne0=(None, UNCHECKED),
        cpu=("x86",),
        cuda=False,
        no_token_embd=IK,
    ),
    _rules("Q8_K_R16", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("Q8_KV_R8", kernel_ne0=256, row_fallback="Q8_KV", ne0=(None, UNCHECKED), cuda=False, no_token_embd=IK),
    _rules("Q8_K_R8", row_fallback="Q8_0", ne0=(None, "Q8_0"), cuda=False, no_token_embd=IK),
)

_BY_NAME: Final = {row.name: row for row in _ROWS}


def engine_rules(type_id: int) -> EngineRules | None:
    """Return the rules of a type by its id, None for one that no file holds or nobody knows."""
    traits = TYPES.get(type_id)
    return _BY_NAME.get(traits.name) if traits else None


def engine_rules_of(name: str) -> EngineRules | None:
    """Return the rules of a type by any spelling of its name."""
    traits = find_type(name)
    return _BY_NAME.get(traits.name) if traits else None


def written_type(name: str, ne0: int, engine: str) -> str:
    """Return the type that llama-quantize of `engine` writes for rows of `ne0` elements when asked for `name`.

    `THROWS` where it stops instead, `UNCHECKED` where it goes on without looking. Raises `LookupError` for a name
    without rules. Source: llama.cpp tensor_type_fallback, ik_llama.cpp change_type_if_necessary.
    """
    rules, traits = engine_rules_of(name), find_type(name)
    if rules is None or traits is None:
        raise LookupError(name)
    if ne0 % traits.block_size == 0:
        return traits.name
    fallback = rules.ne0_fallback[BOTH.index(engine)] or UNCHECKED
    replaced = find_type(fallback)
    if replaced is None or ne0 % replaced.block_size == 0:
        return fallback
    return "F16" if engine in MAINLINE else UNCHECKED
