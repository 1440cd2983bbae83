"""The tensors.map files that lie beside a model's shards."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence

from gguftool.format.maps import MapEntry, parse_map
from gguftool.format.shards import parse_shard_name
from gguftool.model.model import ModelFile
from gguftool.storage.locate import open_source, siblings

_MAX_MAP = 64 << 20  # bytes; 65,535 lines of 300 bytes take 20 MB
_NAMES = ("tensors.map", "tensors.*.map")


def find_maps(files: Sequence[ModelFile]) -> dict[str, tuple[MapEntry, ...]]:
    """Read the maps in the folders of those of `files` that are shards: path -> entries.

    A broken map is a `FormatError`.
    """
    maps: dict[str, tuple[MapEntry, ...]] = {}
    folders = {os.path.dirname(file.source.name): file for file in files if file.shard}
    for file in folders.values():
        for name in siblings(file.source.name, ".map"):
            if any(fnmatch.fnmatch(os.path.basename(name), pattern) for pattern in _NAMES):
                maps[name] = read_map(name)
    return maps


def read_map(name: str) -> tuple[MapEntry, ...]:
    """Read the map at `name`; raise `SourceError` or `FormatError` where that cannot be done."""
    source = open_source(name)
    return parse_map(source.read_at(0, min(source.size, _MAX_MAP)).decode("utf-8", "surrogateescape"), name)


def entry_of(file: ModelFile, entries: tuple[MapEntry, ...]) -> MapEntry | None:
    """Return the entry for `file`: by its name, else by shard number, tensor and type.

    In a cooked mix every shard carries one label in its name whatever it holds, so names alone would miss.
    """
    base = os.path.basename(file.source.name)
    for entry in entries:
        if entry.file == base:
            return entry
    if file.shard is None or len(file.header.tensors) != 1:
        return None
    info = file.header.tensors[0]
    for entry in entries:
        named = parse_shard_name(entry.file)
        if (
            named is not None
            and (named.number, named.count) == (file.shard.number, file.shard.count)
            and (entry.tensor, entry.type_id) == (info.name, info.type)
        ):
            return entry
    return None
