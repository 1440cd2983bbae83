"""Parse file names: shards of a split set, and labels such as ``q4_k_m`` in ``Model-Q4_K_M.gguf``.

A shard is called ``PREFIX-00001-of-00003.gguf``, with ``.zbst`` appended if it is compressed; names count from 1,
split.no from 0.  A label is a tensor type or a file type; the last one in a name counts.

Source: llama.cpp src/llama.cpp (llama_split_path: "%s-%05d-of-%05d.gguf").
"""

from __future__ import annotations

import re
from functools import lru_cache

from gguftool.format.ftypes import find_ftypes
from gguftool.format.ggml import find_type
from gguftool.record import record

MAX_SHARDS = 65535  # split.count is a u16
IK_MAX_SHARDS = 64  # GGML_MAX_CONTEXTS in ik_llama.cpp's ggml/include/ggml.h, one per shard; more needs a custom build
KEY_NO, KEY_COUNT, KEY_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({KEY_NO, KEY_COUNT, KEY_TENSORS})

THIREUS_TAIL = "-SPECIAL_TENSOR"
_SEPARATOR = re.compile(r"[-.\s]")
_SHARD = re.compile(r"(?P<prefix>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf(?P<packed>\.zbst)?", re.DOTALL)


# --- shards ----------------------------------------------------------------------------------------------------------


@record
class ShardName:
    """The parts of a shard's file name (or path); `number` counts from 1."""

    prefix: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.prefix}-{self.number:05d}-of-{self.count:05d}.gguf"


@lru_cache(maxsize=8192)  # the names of a large set are parsed several times
def parse_shard_name(name: str) -> ShardName | None:
    """Parse `name`, compressed or not; None if it is not that of a shard, or its numbers contradict each other."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    shard = ShardName(prefix=match["prefix"], number=int(match["number"]), count=int(match["count"]))
    return shard if 1 <= shard.number <= shard.count else None


# --- labels ----------------------------------------------------------------------------------------------------------


def normal_label(label: str) -> str:
    """Normalize a label for comparisons: lower case, ``-`` as ``_``."""
    return label.strip().lower().replace("-", "_")


def label_of_name(name: str) -> str | None:
    """Return the last tensor type or file type in the name of a file or set, normalized, or None."""
    shard = parse_shard_name(name)
    stem = shard.prefix if shard else name.removesuffix(".zbst").removesuffix(".gguf")
    stem = re.split(r"[\\/]", stem)[-1]
    for word in reversed(_SEPARATOR.split(stem)):
        if word and (find_type(word) or find_ftypes(word)):
            return normal_label(word)
    return None


def is_label_of(label: str, type_id: int) -> bool:
    """Whether `label` (normalized) is a name of tensor type `type_id`."""
    traits = find_type(label)
    return traits is not None and traits.id == type_id
