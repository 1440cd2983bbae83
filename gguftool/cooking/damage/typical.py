"""How much each tensor type loses, if nothing better is known: the relative squared error on a trained matrix.

Measured: the attention and feed-forward matrices of a small trained llama, quantized by each engine's own
llama-quantize and decoded again (tests/cooking/damage/test_typical.py repeats that for the files in fixtures/).
Against the divergence of 26 whole models at 60 types, as published with GGUF-Tool-Suite, the ratio of two types is
right within a factor of 1.6 from 1.75 to 5.5 bits per weight.
"""

from __future__ import annotations

import math
from typing import Final

from gguftool.format.ggml import find_type

# Relative RMS error in percent.
_PERCENT: Final = {
    "F16": 0.0207, "BF16": 0.165, "BF16_R16": 0.165, "Q8_0": 0.54, "Q8_0_R8": 0.54, "Q8_KV": 0.674, "Q8_KV_R8": 0.697,
    "Q8_K_R8": 0.714, "IQ6_K": 1.54, "Q6_K": 1.72, "Q6_K_R4": 1.75, "Q6_0": 2.03, "Q6_0_R4": 2.02, "IQ5_K": 3.22,
    "IQ5_K_R4": 3.19, "Q5_1": 3.41, "IQ5_KS": 3.55, "IQ5_KS_R4": 3.53, "Q5_K": 3.55, "Q5_K_R4": 3.66, "Q5_0": 4.14,
    "Q5_0_R4": 4.01, "IQ4_K": 6.31, "IQ4_K_R4": 6.33, "Q4_1": 7.03, "Q4_K": 7.14, "Q4_K_R4": 7.18, "IQ4_KS": 7.38,
    "IQ4_KS_R4": 7.34, "IQ4_NL": 7.49, "IQ4_NL_R4": 7.5, "IQ4_XS": 7.5, "IQ4_XS_R8": 7.55, "Q4_0": 8.15,
    "Q4_0_R8": 8.33, "Q4_0_4_4": 8.15, "Q4_0_4_8": 8.15, "Q4_0_8_8": 8.15, "IQ4_KSS": 9.42, "NVFP4": 9.55,
    "IQ4_KT": 10, "MXFP4": 11.8, "MXFP4_R8": 11.6, "IQ3_K": 13.3, "IQ3_K_R4": 13.4, "IQ3_S": 14.2, "IQ3_S_R4": 13.9,
    "Q3_K": 14.1, "Q3_K_R4": 14.7, "IQ3_KS": 15.2, "IQ3_KT": 17.2, "IQ3_XXS": 19, "IQ3_XXS_R4": 19, "IQ2_KL": 23.2,
    "IQ2_S": 25.9, "IQ2_S_R4": 25.5, "Q2_K": 27.4, "Q2_K_R4": 27.6, "IQ2_K": 28.4, "IQ2_K_R4": 28.6, "IQ2_XS": 30.8,
    "IQ2_XS_R4": 31, "IQ2_KS": 31.3, "IQ2_KT": 32.3, "IQ2_XXS": 34.9, "IQ2_XXS_R4": 35.9, "IQ1_KT": 42, "IQ1_M": 46.2,
    "IQ1_M_R4": 45.1, "IQ1_S": 49.9, "IQ1_S_R4": 48.7, "Q1_0": 60.2, "Q2_0": 71.9, "TQ1_0": 79.6, "TQ2_0": 80.2,
    "IQ1_BN": 79.5, "IQ2_BN": 79.7, "IQ2_BN_R4": 80.9,
}  # fmt: skip
LOSSLESS: Final = 1e-12  # for F32 and F64: small, and a logarithm exists
# Types without a measurement: the error falls by a factor of four with each bit, and q4_K has 4.5 bits.
_SCALE: Final = (_PERCENT["Q4_K"] / 100) ** 2 * 4**4.5


def typical_error(type_name: str) -> float:
    """The relative squared error of a type, by any spelling; an unknown type counts as one of 4 bits."""
    traits = find_type(type_name)
    if traits is None:
        return _SCALE / 4**4
    if traits.name in ("F32", "F64") or traits.kind == "integer":
        return LOSSLESS
    percent = _PERCENT.get(traits.name)
    return _SCALE * 4.0**-traits.bits_per_weight if percent is None else (percent / 100) ** 2


def log_typical(type_name: str) -> float:
    """The logarithm of `typical_error`."""
    return math.log(typical_error(type_name))
