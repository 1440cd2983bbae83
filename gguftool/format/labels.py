"""Quantization labels in file names: ``DeepSeek-R1-THIREUS-IQ1_M_R4-SPECIAL_TENSOR-00001-of-01148.gguf`` is IQ1_M_R4.

A label is a claim about a whole file or set, not about each tensor in it.
"""

from __future__ import annotations

import re

from gguftool.format.file_names import parse_shard_name
from gguftool.format.ftypes import find_ftypes
from gguftool.format.ggml import find_type

THIREUS_TAIL = "-SPECIAL_TENSOR"
_TOKENS = re.compile(r"[-.\s]")


def normal_label(label: str) -> str:
    """Return the spelling under which labels are compared: lower case, ``-`` as ``_``."""
    return label.strip().lower().replace("-", "_")


def label_of_name(name: str) -> str | None:
    """Return the last word of a file or set name that is a tensor type or a file type, normalized; None without one."""
    shard = parse_shard_name(name)
    stem = shard.prefix if shard else name.removesuffix(".gguf")
    stem = re.split(r"[\\/]", stem)[-1]
    for word in reversed(_TOKENS.split(stem)):
        if word and (find_type(word) or find_ftypes(word)):
            return normal_label(word)
    return None


def is_label_of(label: str, type_id: int) -> bool:
    """Whether `label` (normalized) is a name of tensor type `type_id`."""
    traits = find_type(label)
    return traits is not None and traits.id == type_id
