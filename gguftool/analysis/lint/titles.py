"""The title of each code, which is its heading in docs/lint.md, and what it makes an engine do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

TITLES: Final[Mapping[str, str]] = {
    "N01": "No such file, or it cannot be read",
    "N02": "A folder without GGUF files",
    "N03": "An empty file",
    "N04": "A git-lfs pointer",
    "N05": "A web page",
    "N06": "A server's error message",
    "N07": "A zeroed head",
    "N08": "A part of a file that was split by bytes",
    "N09": "Truncated",
    "N10": "A model file from before GGUF",
    "N11": "Another kind of file",
    "N12": "An importance matrix in the old format",
    "N13": "An unknown GGUF version",
    "N14": "A damaged head",
    "N15": "Neither GGUF nor a known format",
    "N16": "More than gguftool reads",
    "F01": "Less space than the type needs",
    "F02": "Row metadata was forgotten",
    "F03": "Unexplained bytes between tensors",
    "F04": "Two tensors start at the same place",
    "F05": "Data is not in the order of the infos",
    "F06": "An offset is not a multiple of the alignment",
    "F07": "Padding is not zero",
    "F08": "Unusual alignment",
    "F09": "A metadata key occurs twice",
    "F10": "An odd metadata key",
    "F11": "A BOOL that is neither 0 nor 1",
    "F12": "Text that is not UTF-8",
    "F13": "A name with hidden or control characters",
    "F14": "A type that neither engine knows",
    "F15": "No architecture",
    "F16": "Big-endian",
    "F17": "Bytes after the data",
    "F18": "Another GGUF after the data",
    "F19": "Large tensors of zeros",
    "F20": "Shards are missing",
    "F21": "A later shard of a set",
    "F22": "Split keys contradict the name",
    "F23": "Wrong split.tensors.count",
    "F24": "A tensor in more than one shard",
    "F25": "Byte orders differ between shards",
    "F26": "A shard that engines cannot find",
    "F27": "Not a language model",
    "T04": "The space fits a fork's type",
    "F28": "A shard is not what its tensors.map says",
    "F29": "A shard's hash is not what its tensors.map says",
    "T01": "Not a type of llama.cpp",
    "T02": "Not a type of ik_llama.cpp",
    "T03": "Not a type for files",
    "T05": "An abandoned layout",
    "T06": "Types that engines cannot compute with",
    "S01": "Rows are not whole blocks",
    "S02": "A row length that the kernel cannot take",
    "S03": "Rows cannot be interleaved",
    "S04": "Too few rows for the kernel",
    "S05": "A token embedding that cannot be looked up",
    "S06": "A tied embedding that cannot be multiplied with",
    "S07": "A dimension of zero",
    "B01": "A ternary type in an ordinary model",
    "B02": "I2_S",
    "B03": "A type that cannot be requantized",
    "B04": "A broken repack to Q8_KV_R8",
    "Q01": "No importance matrix is named",
    "M01": "Experts: up and gate differ",
    "M02": "Dense ffn: up and gate differ",
    "M03": "-muge will not merge",
    "M04": "-mqkv will not merge",
    "M05": "Both merged and separate experts",
    "M06": "Expert rows that are not a multiple of 16",
    "M07": "A scale for a weight that is not NVFP4",
    "M08": "NVFP4 without a scale",
    "M09": "A scale without its weight",
    "D01": "attn_k_b with short rows",
    "D02": "MLA tensors that llama.cpp does not expect",
    "D03": "MLA tensors that ik_llama.cpp does not expect",
    "D04": "MLA tensors are computed at load",
    "G01": "No CUDA kernel",
    "G02": "No quantized multiplication on CUDA",
    "G03": "IQ1_M experts",
    "K01": "An architecture that the engine does not know",
    "K02": "A key with the wrong value type",
    "K03": "A required key is absent",
    "K04": "An array that does not match the number of layers",
    "K05": "Expert counts that contradict each other",
    "K06": "A value out of range",
    "V01": "An unknown tokenizer",
    "V02": "An incomplete vocabulary",
    "V03": "A token occurs twice",
    "V04": "A special token out of range",
    "V05": "A chat template that does not parse",
    "A01": "A tensor is missing",
    "A02": "Dims that the metadata contradicts",
    "A03": "A tensor that nothing asks for",
    "A04": "Multi-token prediction layers without their tensors",
    "P01": "GGUF version 1",
    "P02": "An empty key",
    "P03": "Arrays of arrays",
    "P04": "More than 4 dimensions",
    "S08": "Offsets that llama.cpp does not expect",
    "S09": "An alignment other than 32",
    "S10": "A tensor name longer than 63 bytes",
    "S11": "Missing or extra layers",
    "H01": "Shards that loaders refuse",
    "H02": "general.file_type is not a u32",
    "H03": "general.file_type does not match the majority",
    "E01": "The engine refuses it",
    "E02": "The engine crashes",
    "E03": "The engine hangs, or exceeds its limits",
    "E04": "The engine itself does not work",
}


class Effect(IntEnum):
    """What an engine does with a file that has an error of some rule; the worst comes first."""

    CRASH = 0
    REFUSAL = 1
    OTHER = 2


# Codes that end at least one engine with a signal: an assertion, a division by zero, a read out of bounds.
_CRASHES: Final = frozenset(("E02", "H02", "K05", "P03", "S02", "S04", "S06", "S07", "T02", "T06", "V03"))
_REFUSALS: Final = frozenset(
    (
        *("E01", "F04", "F06", "F09", "F15", "F16", "F20", "F22", "F23", "F24", "F25", "F26"),
        *("A01", "A02", "A03", "H01", "K01", "K02", "K03", "K04", "K06", "M05", "M09"),
        *("P01", "P02", "P04", "S01", "S08", "S09", "S10", "S11", "T01", "T03", "V01", "V02", "V05"),
    )
)


def effect_of(code: str) -> Effect:
    """Find the worst that an engine does with a file that has an error of this code."""
    return Effect.CRASH if code in _CRASHES else Effect.REFUSAL if code in _REFUSALS else Effect.OTHER


def anchor_of(code: str) -> str:
    """Make the anchor of the code's section in docs/lint.md."""
    heading = f"{code}: {TITLES[code]}" if code in TITLES else code
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")
