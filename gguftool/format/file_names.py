"""Names of the files of a split set: ``PREFIX-00001-of-00003.gguf``, numbers from 1.

Source: llama.cpp src/llama.cpp (llama_split_path: "%s-%05d-of-%05d.gguf"); split.no counts from 0.
"""

from __future__ import annotations

import re
from functools import lru_cache

from gguftool.format.ftypes import find_ftypes
from gguftool.format.ggml import find_type
from gguftool.record import record

MAX_SHARDS = 65535  # split.count is a u16
IK_MAX_SHARDS = 64  # GGML_MAX_CONTEXTS in ggml/include/ggml.h of ik_llama.cpp, one a shard; more needs an own build
KEY_NO, KEY_COUNT, KEY_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({KEY_NO, KEY_COUNT, KEY_TENSORS})

_PATTERN = re.compile(r"(?P<prefix>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


@record
class ShardName:
    """A shard's file name (or path) taken apart; `number` counts from 1."""

    prefix: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.prefix}-{self.number:05d}-of-{self.count:05d}.gguf"


@lru_cache(maxsize=8192)  # a large set's names are asked for several times
def parse_shard_name(name: str) -> ShardName | None:
    """Take `name` apart; None where it is not the name of a shard, or its numbers contradict each other."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    shard = ShardName(prefix=match["prefix"], number=int(match["number"]), count=int(match["count"]))
    return shard if 1 <= shard.number <= shard.count else None


# --- labels --------------------------------------------------------------------------------------------------------


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
