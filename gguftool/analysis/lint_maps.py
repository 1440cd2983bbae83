"""Rules about the tensors.map files that lie beside shards: what heads say, and, when asked, what hashes say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguftool.analysis.lint import CannotEvaluate, Hit, Severity, rule
from gguftool.analysis.subject import Subject
from gguftool.analysis.verify import header_differs, verify_against_map
from gguftool.errors import printable
from gguftool.format.maps import MapEntry
from gguftool.model.maps import entry_of, find_maps
from gguftool.model.model import ModelFile

_FETCH = "fetch the shard anew, or the map that belongs to it"


def _entries(subject: Subject) -> Iterator[tuple[ModelFile, MapEntry]]:
    for entries in find_maps(subject.files).values():
        for file in subject.files:
            if (entry := entry_of(file, entries)) is not None:
                yield file, entry


@rule("F28", Severity.ERROR, way_out=_FETCH)
def shard_against_map(subject: Subject) -> Iterator[Hit]:
    """A shard's tensor is not what the tensors.map beside it says."""
    for file, entry in _entries(subject):
        said = header_differs(file, entry)
        if said is not None:
            yield Hit(message=said, where=printable(file.source.name, 4096))


@rule("F29", Severity.ERROR, way_out=_FETCH)
def hash_against_map(subject: Subject) -> Iterator[Hit]:
    """A shard's sha256 is not what the tensors.map beside it says."""
    maps = find_maps(subject.files)
    hashed = sum(entry.sha256 is not None for entries in maps.values() for entry in entries)
    if hashed and not subject.read_data:
        raise CannotEvaluate("hashing reads every shard whole; --data asks for that")
    for entries in maps.values():
        yield from _hash_hits(subject.files, entries)


def _hash_hits(files: Sequence[ModelFile], entries: tuple[MapEntry, ...]) -> Iterator[Hit]:
    for verdict in verify_against_map(files, entries):
        if verdict.ok is False:
            yield Hit(message=verdict.detail, where=printable(verdict.name, 4096))
