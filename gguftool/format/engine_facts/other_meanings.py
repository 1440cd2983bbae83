"""Type ids that forks and older engines use for something else: names for messages, and layouts to check sizes against.

Files are read by what llama.cpp and ik_llama.cpp mean by an id (`format/ggml.py`), never by these.
"""

from __future__ import annotations

from typing import Any

from gguftool.format.ggml import Formula
from gguftool.record import record


@record
class OtherMeaning:
    """Another meaning of a type id, in a fork or in history; `type_size` 0 if the layout was never published."""

    id: int
    name: str
    block_size: int
    type_size: int
    holder: str
    row_meta_size: int = 0
    formula: Formula = Formula.STD


def _also(id: int, name: str, block_size: int, type_size: int, holder: str, **rest: Any) -> OtherMeaning:
    return OtherMeaning(id=id, name=name, block_size=block_size, type_size=type_size, holder=holder, **rest)


_OTHER_MEANINGS = (
    _also(4, "Q4_2", 0, 0, "removed"),
    _also(4, "MXFP4", 32, 17, "ollama"),
    _also(5, "Q4_3", 0, 0, "removed"),
    _also(31, "IQ1_BN", 64, 13, "ik-history"),
    _also(31, "TQ3_1S_AP1", 0, 0, "turboquant:turbo-tan"),
    _also(32, "IQ2_BN", 64, 16, "ik-history"),
    _also(32, "Q4_0_TQ", 0, 0, "turboquant:turbo-tan"),
    _also(33, "Q4_1_TQ", 0, 0, "turboquant:turbo-tan"),
    _also(34, "IQ1_BN", 64, 13, "ik-history"),
    _also(35, "IQ2_BN", 64, 16, "ik-history"),
    _also(36, "IQ4_NL_4_4", 32, 18, "removed"),
    _also(36, "TQ4_1S", 32, 20, "turboquant:zapabob"),
    _also(36, "TQ3_4SE", 32, 18, "turboquant:turbo-tan"),
    _also(37, "IQ4_NL_4_8", 32, 18, "removed"),
    _also(37, "I8_S", 1, 1, "bitnet"),
    _also(37, "IQ2_K", 256, 76, "ik-history"),
    _also(37, "TQ3_4SV", 0, 0, "turboquant:turbo-tan"),
    _also(38, "IQ4_NL_8_8", 32, 18, "removed"),
    _also(38, "TL1", 1, 1, "bitnet", formula=Formula.I2_S),
    _also(38, "IQ3_K", 256, 110, "ik-history"),
    _also(39, "TL2", 1, 1, "bitnet", formula=Formula.TL2),
    _also(39, "IQ4_K", 256, 144, "ik-history"),
    _also(40, "IQ5_K", 256, 176, "ik-history"),
    _also(40, "Q1_0", 32, 6, "prismml"),
    _also(41, "IQ6_K", 256, 212, "ik-history"),
    _also(41, "SX8", 32, 30, "fork:MarlaLabs"),
    _also(41, "TQ3_0", 0, 0, "turboquant:unixsysdev"),
    _also(41, "Q2_0", 0, 0, "turboquant:turbo-tan"),
    _also(42, "IQ2_TN", 256, 66, "ik-history"),
    _also(42, "TQ3_0V", 0, 0, "turboquant:unixsysdev"),
    _also(42, "TURBO2_0", 0, 0, "turboquant:TheTom-2026-04"),
    _also(42, "Q1_0", 0, 0, "turboquant:turbo-tan"),
    _also(43, "Q2_0_G128", 128, 34, "fork:ArifiLabs"),
    _also(43, "TURBO3_0", 0, 0, "turboquant:TheTom-2026-04"),
    _also(43, "TURBO2_0", 0, 0, "turboquant:TheTom-2026-08"),
    _also(44, "TURBO4_0", 0, 0, "turboquant:TheTom-2026-04"),
    _also(44, "TURBO3_0", 0, 0, "turboquant:TheTom-2026-08"),
    _also(44, "TQ3_1S", 32, 16, "turboquant:AgustinJimenez"),
    _also(44, "TQ3_1S", 32, 16, "turboquant:turbo-tan"),
    _also(45, "TQ3_1S", 32, 16, "turboquant:TheTom"),
    _also(45, "TURBO3_TCQ", 0, 0, "turboquant:beellama"),
    _also(45, "TQ4_1S", 32, 20, "turboquant:AgustinJimenez"),
    _also(46, "TQ4_1S", 32, 20, "turboquant:TheTom"),
    _also(46, "TURBO2_TCQ", 0, 0, "turboquant:beellama"),
    _also(46, "TQ3_4S", 32, 16, "turboquant:turbo-tan"),
    _also(47, "TURBO4_0", 0, 0, "turboquant:TheTom-2026-08"),
    _also(47, "TQ3_1S", 32, 16, "turboquant:beellama"),
    _also(48, "Q2_0_64", 0, 0, "fork"),
    _also(48, "Q8_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _also(48, "TQ4_1S", 32, 20, "turboquant:beellama"),
    _also(49, "Q5_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _also(50, "Q6_CR", 0, 0, "turboquant:TheTom-2026-08"),
    _also(100, "Q4_0_ROCMFP4", 32, 18, "rocmfpx"),
    _also(101, "Q4_0_ROCMFP4_FAST", 32, 17, "rocmfpx"),
    _also(102, "Q6_0_ROCMFPX", 32, 26, "rocmfpx"),
    _also(103, "Q8_0_ROCMFPX", 32, 33, "rocmfpx"),
    _also(104, "Q3_0_ROCMFPX", 32, 14, "rocmfpx"),
    _also(105, "TURBO3_0", 32, 14, "rocmfpx"),
    _also(106, "TURBO4_0", 32, 18, "rocmfpx"),
    _also(107, "Q2_0_ROCMFPX", 32, 10, "rocmfpx"),
    _also(108, "Q4_0_ROCMI4", 0, 0, "rocmfpx"),
    _also(142, "IQ2_TN", 256, 64, "removed", row_meta_size=4),
    _also(142, "PQ2_0", 128, 34, "prismml"),
    _also(143, "IQ1_TN", 256, 52, "removed", row_meta_size=2),
    _also(143, "PTQ1_0", 128, 28, "prismml"),
    _also(200, "TQ3_0", 32, 14, "turboquant:turbo-tan"),
    _also(201, "TURBO3_0", 0, 0, "turboquant:turbo-tan"),
    _also(202, "TURBO4_0", 0, 0, "turboquant:turbo-tan"),
    _also(203, "TURBO2_0", 0, 0, "turboquant:turbo-tan"),
    _also(1024, "NVFP4", 0, 0, "fork:rustllama"),
)


def other_meanings(type_id: int) -> tuple[OtherMeaning, ...]:
    """Return the other meanings of `type_id`, in forks and older engines."""
    return tuple(meaning for meaning in _OTHER_MEANINGS if meaning.id == type_id)
