"""How each engine treats a tensor type, beyond its bytes: kernels, fallbacks, imatrix policy, history.

A row holds only differences from the usual: a kernel that takes any number of whole blocks and of interleaved rows, on
CPU and CUDA, no fallback, no imatrix.  Rows cover every type that may be in a file and those that quantizers make; a
type without a row has no known facts.

Sources: ik_llama.cpp ggml/src/iqk/iqk_mul_mat.cpp (MulMat::num_rows), iqk_gemm_*.cpp (row widths), iqk_quantize.cpp
(conversion to floats), ggml/src/ggml-cuda.cu (supports_op) and mmq.cu, src/llama-quantize.cpp
(change_type_if_necessary, interleaved_properties, imatrix policy), and its history; llama.cpp src/llama-quant.cpp
(tensor_type_fallback, imatrix policy).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from gguftool.format.engine_facts.engines import BOTH, ENGINES, IK, IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.ggml import TYPES, find_type
from gguftool.record import record

# In place of a fallback type.
THROWS: Final = "throws"  # llama-quantize stops with an error
UNCHECKED: Final = "unchecked"  # llama-quantize does not check: an assertion or garbage


class ImatrixPolicy(Enum):
    """Whether llama-quantize needs an imatrix to quantize to a type."""

    NO = "not needed"
    SMALL = "needed in a file of type Q2_K_S"
    YES = "refuses without"
    ASSERTED = "refuses without, and so does ggml itself"


@record
class TypeFacts:
    """How the engines treat one type; mappings are by engine.

    `kernel_ne0` and `kernel_ne1` are the multiples of dims[0] and dims[1] that ik_llama.cpp's CPU kernel needs,
    `avx512_ne1` the latter on CPUs with AVX-512. `row_fallback` is the type that its llama-quantize writes if rows do
    not divide by the interleave.  `ne0_fallback` is the type that each engine's llama-quantize writes if dims[0] is not
    a whole number of blocks, or `THROWS` or `UNCHECKED`; an engine is left out if it lacks the type or takes any width.
    `imatrix` leaves out engines that need none.
    `no_token_embd` names the engines that cannot look up rows of a token_embd of this type.
    The rest is about ik_llama.cpp: `cpu` names the CPUs with a kernel; `cuda`: it multiplies on CUDA, `mmq`: with a
    quantized kernel; `to_float`: it converts the type back to floats without errors.  `layout_changed` is the date when
    the same id and size got another layout; `old_row_meta` is the bytes of row metadata in an older layout, and the
    date when that ended.
    """

    name: str
    kernel_ne0: int
    kernel_ne1: int
    avx512_ne1: int
    row_fallback: str | None = None
    ne0_fallback: Mapping[str, str]
    imatrix: Mapping[str, ImatrixPolicy]
    cpu: tuple[str, ...] = ("x86", "arm")
    cuda: bool = True
    mmq: bool = True
    to_float: bool = True
    layout_changed: str = ""
    old_row_meta: tuple[int, str] | None = None
    no_token_embd: tuple[str, ...] = ()

    def imatrix_policy(self, engine: str) -> ImatrixPolicy:
        """The policy of the llama-quantize of `engine`."""
        return self.imatrix.get(engine, ImatrixPolicy.NO)


def _facts(
    name: str,
    *,
    kernel_ne0: int = 0,
    kernel_ne1: int = 0,
    avx512_ne1: int = 0,
    ne0: Mapping[str, str] | None = None,
    imatrix: Mapping[str, ImatrixPolicy] | None = None,
    cuda: bool = True,
    mmq: bool = True,
    **rest: Any,
) -> TypeFacts:
    traits = find_type(name)
    if traits is None:
        raise LookupError(name)
    ne1 = kernel_ne1 or traits.interleaved_rows
    return TypeFacts(
        name=name,
        kernel_ne0=kernel_ne0 or traits.block_size,
        kernel_ne1=ne1,
        avx512_ne1=avx512_ne1 or ne1,
        ne0_fallback=ne0 or {},
        imatrix=imatrix or {},
        cuda=cuda,
        mmq=cuda and mmq,
        **rest,
    )


_ML, _IK = LLAMA_CPP, IK_LLAMA_CPP
_SMALL, _YES, _ASSERTED = ImatrixPolicy.SMALL, ImatrixPolicy.YES, ImatrixPolicy.ASSERTED

_ROWS = (
    _facts("F32", kernel_ne0=4, mmq=False),
    _facts("F16", kernel_ne0=4, mmq=False),
    _facts("Q4_0", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("Q4_1", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("Q5_0", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("Q5_1", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("Q8_0", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("Q2_K", ne0={_ML: "Q4_0", _IK: "IQ4_NL"}, imatrix={_ML: _SMALL, _IK: _SMALL}),
    _facts("Q3_K", ne0={_ML: "Q4_0", _IK: "IQ4_NL"}),
    _facts("Q4_K", ne0={_ML: "Q5_0", _IK: "Q5_0"}),
    _facts("Q5_K", ne0={_ML: "Q5_1", _IK: "Q6_0"}),
    _facts("Q6_K", ne0={_ML: "Q8_0", _IK: "Q8_0"}),
    _facts("IQ2_XXS", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _ASSERTED, _IK: _ASSERTED}),
    _facts("IQ2_XS", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _ASSERTED, _IK: _ASSERTED}),
    _facts("IQ3_XXS", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _YES}),
    _facts("IQ1_S", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _ASSERTED, _IK: _ASSERTED}),
    _facts("IQ4_NL", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("IQ3_S", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}),
    _facts("IQ2_S", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _YES, _IK: _YES}),
    _facts("IQ4_XS", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}),
    _facts("I8", cpu=(), cuda=False, no_token_embd=BOTH),
    _facts("I16", cpu=(), cuda=False, no_token_embd=BOTH),
    _facts("I32", cpu=(), cuda=False, no_token_embd=BOTH),
    _facts("I64", cpu=(), cuda=False, no_token_embd=BOTH),
    _facts("F64", cpu=(), cuda=False, no_token_embd=BOTH),
    _facts("IQ1_M", ne0={_ML: "IQ4_NL", _IK: "IQ4_NL"}, imatrix={_ML: _YES, _IK: _YES}, mmq=False),
    _facts("BF16", kernel_ne0=8, mmq=False),
    _facts("Q4_0_4_4", row_fallback="Q4_0", ne0={_IK: UNCHECKED}, cpu=(), cuda=False, no_token_embd=IK),
    _facts("Q4_0_4_8", row_fallback="Q4_0", ne0={_IK: UNCHECKED}, cpu=(), cuda=False, no_token_embd=IK),
    _facts("Q4_0_8_8", row_fallback="Q4_0", ne0={_IK: UNCHECKED}, cpu=(), cuda=False, no_token_embd=IK),
    _facts("TQ1_0", ne0={_ML: "Q4_0"}, cpu=(), cuda=False),
    _facts("TQ2_0", ne0={_ML: "Q4_0"}, cpu=(), cuda=False),
    _facts("I2_S", ne0={_IK: UNCHECKED}, cpu=(), cuda=False, no_token_embd=IK),
    _facts("MXFP4", ne0={_ML: "F16", _IK: UNCHECKED}),
    _facts("NVFP4", ne0={_ML: THROWS}, cpu=(), cuda=False),
    _facts("Q1_0", ne0={_ML: THROWS, _IK: UNCHECKED}, cuda=False),
    _facts("Q2_0", ne0={_ML: "Q4_0"}, cpu=(), cuda=False),
    _facts("Q6_0", ne0={_IK: UNCHECKED}),
    _facts("IQ1_BN", ne0={_IK: THROWS}, mmq=False, no_token_embd=IK, old_row_meta=(0, "2024-10-25"), to_float=False),
    _facts("IQ2_BN", ne0={_IK: THROWS}, mmq=False, no_token_embd=IK, old_row_meta=(0, "2024-10-25"), to_float=False),
    _facts("IQ2_K", ne0={_IK: "IQ4_NL"}),
    _facts("IQ3_K", ne0={_IK: "IQ4_NL"}),
    _facts("IQ4_K", ne0={_IK: "Q5_0"}),
    _facts("IQ5_K", ne0={_IK: "Q6_0"}),
    _facts("IQ6_K", ne0={_IK: "Q8_0"}),
    _facts("IQ4_KS", ne0={_IK: "IQ4_NL"}),
    _facts("IQ2_KS", ne0={_IK: "IQ4_NL"}),
    _facts("IQ4_KSS", ne0={_IK: "IQ4_NL"}),
    _facts("Q8_KV", kernel_ne0=256, kernel_ne1=8, ne0={_IK: UNCHECKED}, cuda=False),
    _facts("IQ5_KS", ne0={_IK: "Q5_0"}),
    _facts("IQ2_KT", ne0={_IK: "IQ4_NL"}, imatrix={_IK: _YES}, layout_changed="2025-06-18"),
    _facts("IQ3_KT", ne0={_IK: "IQ4_NL"}, layout_changed="2025-06-18"),
    _facts("IQ4_KT", ne0={_IK: "IQ4_NL"}, old_row_meta=(8, "2025-06-18")),
    _facts("IQ3_KS", ne0={_IK: "IQ4_NL"}),
    _facts("IQ2_KL", ne0={_IK: "IQ4_NL"}),
    _facts("IQ1_KT", ne0={_IK: "IQ4_NL"}, imatrix={_IK: _YES}),
    _facts(
        "Q4_0_R8",
        avx512_ne1=16,
        row_fallback="Q4_0",
        ne0={_IK: UNCHECKED},
        cuda=False,
        no_token_embd=IK,
        layout_changed="2025-01-27",
    ),
    _facts("Q5_0_R4", avx512_ne1=8, row_fallback="Q5_0", ne0={_IK: UNCHECKED}, cuda=False, no_token_embd=IK),
    _facts(
        "Q8_0_R8",
        avx512_ne1=16,
        row_fallback="Q8_0",
        ne0={_IK: UNCHECKED},
        cuda=False,
        no_token_embd=IK,
        layout_changed="2025-01-27",
    ),
    _facts("Q2_K_R4", row_fallback="Q2_K", ne0={_IK: "IQ4_NL"}, cuda=False, no_token_embd=IK),
    _facts("Q3_K_R4", row_fallback="Q3_K", ne0={_IK: "IQ4_NL"}, cuda=False, no_token_embd=IK),
    _facts("Q4_K_R4", avx512_ne1=8, row_fallback="Q4_K", ne0={_IK: "Q5_0"}, cuda=False, no_token_embd=IK),
    _facts("Q5_K_R4", avx512_ne1=8, row_fallback="Q5_K", ne0={_IK: "Q6_0"}, cuda=False, no_token_embd=IK),
    _facts("Q6_K_R4", row_fallback="Q6_K", ne0={_IK: "Q8_0"}, cuda=False, no_token_embd=IK),
    _facts(
        "IQ2_XXS_R4", row_fallback="IQ2_XXS", ne0={_IK: "IQ4_NL"}, imatrix={_IK: _YES}, cuda=False, no_token_embd=IK
    ),
    _facts("IQ2_XS_R4", row_fallback="IQ2_XS", ne0={_IK: "IQ4_NL"}, imatrix={_IK: _YES}, cuda=False, no_token_embd=IK),
    _facts("IQ3_XXS_R4", row_fallback="IQ3_XXS", ne0={_IK: "IQ4_NL"}, cuda=False, no_token_embd=IK),
    _facts(
        "IQ1_S_R4", kernel_ne0=128, row_fallback="IQ1_S", ne0={_IK: UNCHECKED}, imatrix={_IK: _YES}, no_token_embd=IK
    ),
    _facts("IQ4_NL_R4", avx512_ne1=8, row_fallback="IQ4_NL", ne0={_IK: UNCHECKED}, cuda=False, no_token_embd=IK),
    _facts("IQ3_S_R4", row_fallback="IQ3_S", ne0={_IK: "IQ4_NL"}, cuda=False, no_token_embd=IK),
    _facts("IQ2_S_R4", row_fallback="IQ2_S", ne0={_IK: "IQ4_NL"}, imatrix={_IK: _YES}, cuda=False, no_token_embd=IK),
    _facts(
        "IQ4_XS_R8",
        row_fallback="IQ4_XS",
        ne0={_IK: "IQ4_NL"},
        cuda=False,
        no_token_embd=IK,
        layout_changed="2025-01-27",
    ),
    _facts(
        "IQ1_M_R4",
        kernel_ne0=128,
        row_fallback="IQ1_M",
        ne0={_IK: UNCHECKED},
        imatrix={_IK: _YES},
        mmq=False,
        no_token_embd=IK,
    ),
    _facts("BF16_R16", kernel_ne0=16, row_fallback="BF16", cpu=("x86",), cuda=False, no_token_embd=IK, to_float=False),
    _facts("Q6_0_R4", avx512_ne1=8, row_fallback="Q6_0", ne0={_IK: UNCHECKED}, cuda=False, no_token_embd=IK),
    _facts("IQ2_BN_R4", avx512_ne1=8, row_fallback="IQ2_BN", ne0={_IK: THROWS}, cuda=False, no_token_embd=IK),
    _facts("IQ2_K_R4", row_fallback="IQ2_K", ne0={_IK: "IQ4_NL"}, no_token_embd=IK),
    _facts("IQ3_K_R4", row_fallback="IQ3_K", ne0={_IK: "IQ4_NL"}, no_token_embd=IK),
    _facts("IQ4_K_R4", row_fallback="IQ4_K", ne0={_IK: "Q5_0"}, no_token_embd=IK),
    _facts("IQ5_K_R4", row_fallback="IQ5_K", ne0={_IK: "Q6_0"}, no_token_embd=IK),
    _facts("IQ4_KS_R4", row_fallback="IQ4_KS", ne0={_IK: "IQ4_NL"}, no_token_embd=IK),
    _facts("IQ5_KS_R4", row_fallback="IQ5_KS", ne0={_IK: "Q5_0"}, no_token_embd=IK),
    _facts(
        "MXFP4_R8",
        avx512_ne1=16,
        row_fallback="MXFP4",
        ne0={_IK: UNCHECKED},
        cpu=("x86",),
        cuda=False,
        no_token_embd=IK,
        to_float=False,
    ),
    _facts("Q8_K_R16", ne0={_IK: UNCHECKED}, cuda=False, no_token_embd=IK),
    _facts("Q8_KV_R8", kernel_ne0=256, row_fallback="Q8_KV", ne0={_IK: UNCHECKED}, cuda=False, no_token_embd=IK),
    _facts("Q8_K_R8", row_fallback="Q8_0", ne0={_IK: "Q8_0"}, cuda=False, no_token_embd=IK),
)

_BY_NAME: Final = {row.name: row for row in _ROWS}


def type_facts(type_id: int) -> TypeFacts | None:
    """The facts about a type, by its id; None for run-time types and unknown ids."""
    traits = TYPES.get(type_id)
    return _BY_NAME.get(traits.name) if traits else None


def type_facts_of(name: str) -> TypeFacts | None:
    """The facts about a type, by any spelling of its name."""
    traits = find_type(name)
    return _BY_NAME.get(traits.name) if traits else None


def written_type(name: str, ne0: int, engine: str) -> str:
    """The type that the llama-quantize of `engine` writes for rows of `ne0` elements when asked for `name`.

    `THROWS` if it stops instead, `UNCHECKED` if it does not check. Raises `LookupError` for a name without facts.
    Source: llama.cpp tensor_type_fallback, ik_llama.cpp change_type_if_necessary.
    """
    facts, traits = type_facts_of(name), find_type(name)
    if facts is None or traits is None:
        raise LookupError(name)
    if ne0 % traits.block_size == 0:
        return traits.name
    fallback = facts.ne0_fallback.get(engine, UNCHECKED)
    replaced = find_type(fallback)
    if replaced is None or ne0 % replaced.block_size == 0:
        return fallback
    return ENGINES[engine].second_fallback or UNCHECKED
