"""Read the files that accompany a model: tensors.map files next to its shards, and importance matrices."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence

from gguftool.errors import LimitError
from gguftool.format.file_names import parse_shard_name
from gguftool.format.imatrix import MAX_IMATRIX, Imatrix, parse_imatrix
from gguftool.format.tensors_map import MapEntry, parse_map
from gguftool.model.model import ModelFile
from gguftool.storage.sources.locate import PACKED, open_source, siblings
from gguftool.storage.sources.source import Source

_MAX_MAP = 64 << 20  # bytes; 65,535 lines of 300 bytes take 20 MB
_NAMES = ("tensors.map", "tensors.*.map")


def find_maps(files: Sequence[ModelFile]) -> dict[str, tuple[MapEntry, ...]]:
    """Read the maps in the folders of the shards among `files`: path -> entries; a broken one raises `FormatError`."""
    maps: dict[str, tuple[MapEntry, ...]] = {}
    folders = {os.path.dirname(file.source.name): file for file in files if file.shard}
    for file in folders.values():
        for name in siblings(file.source.name, ".map"):
            if any(fnmatch.fnmatch(os.path.basename(name), pattern) for pattern in _NAMES):
                maps[name] = read_map(name)
    return maps


def read_map(name: str | os.PathLike[str]) -> tuple[MapEntry, ...]:
    """Read the map at `name`; raises `SourceError` if that fails, `FormatError` if it is too large or broken."""
    name = os.fspath(name)
    source = open_source(name)
    if source.size > _MAX_MAP:
        raise LimitError(
            f"has {source.size:,} bytes; gguftool reads a tensors.map of at most {_MAX_MAP:,}", source=name
        )
    return parse_map(source.read_at(0, source.size).decode("utf-8", "surrogateescape"), name)


class MapIndex:
    """The entries of one or more maps, indexed by a shard's content and by its file name."""

    def __init__(self, entries: Iterable[MapEntry]) -> None:
        self._by_name: dict[str, list[MapEntry]] = {}
        self._by_content: dict[object, list[MapEntry]] = {}
        for entry in entries:
            name = os.path.basename(entry.file)
            self._by_name.setdefault(name, []).append(entry)
            shard = parse_shard_name(name)
            if shard is not None:
                key = (shard.number, shard.count, entry.tensor, entry.type_id)
                self._by_content.setdefault(key, []).append(entry)

    def entries_of(self, file: ModelFile) -> list[MapEntry]:
        """Find the entries for `file` by shard number, tensor and type; if there are none, by its name.

        The content comes first: in a cooked mix all shards have the same label in their names, whatever type they hold,
        so by the map of that label every shard of another type would be wrong.
        """
        if file.shard is not None and len(file.header.tensors) == 1:
            info = file.header.tensors[0]
            found = self._by_content.get((file.shard.number, file.shard.count, info.name, info.type))
            if found:
                return found
        return self._by_name.get(os.path.basename(file.source.name).removesuffix(PACKED), [])


# --- imatrix -------------------------------------------------------------------------------------------------------


def open_imatrix(spec: str | os.PathLike[str]) -> Imatrix:
    """Read an imatrix file of either format.

    Raises `SourceError` if it cannot be read, `FormatError` with the place if it is not an imatrix.
    """
    return read_imatrix(open_source(os.fspath(spec)))


def read_imatrix(source: Source) -> Imatrix:
    """Read the imatrix in `source`; raises as `open_imatrix` does."""
    if source.size > MAX_IMATRIX:  # checked before reading
        raise LimitError(
            f"has {source.size:,} bytes; gguftool reads an imatrix of at most {MAX_IMATRIX:,}", source=source.name
        )
    return parse_imatrix(source.read_at(0, source.size), source.name)
