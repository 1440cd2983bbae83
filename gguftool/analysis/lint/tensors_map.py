"""Rules that compare shards with the tensors.map files next to them: heads always, hashes on request."""

from __future__ import annotations

from collections.abc import Iterator

from gguftool.analysis.lint.rules import CannotEvaluate, Hit, Severity, rule
from gguftool.analysis.lint.target import LintTarget
from gguftool.analysis.verify import header_differs, verify_against_map
from gguftool.errors import printable
from gguftool.format.tensors_map import MapEntry
from gguftool.model.companions import MapIndex, find_maps

_FETCH = "fetch the shard again, or the map that belongs to it"


def _entries(target: LintTarget) -> tuple[MapEntry, ...]:
    """Collect the lines of all maps next to the shards: a cooked mix has one map for each label in it."""
    return tuple(entry for entries in find_maps(target.files).values() for entry in entries)


@rule("F28", Severity.ERROR, way_out=_FETCH)
def shard_against_map(target: LintTarget) -> Iterator[Hit]:
    """A shard's tensor does not match the tensors.map next to it."""
    index = MapIndex(_entries(target))
    for file in target.files:
        differences = [header_differs(file, entry) for entry in index.entries_of(file)]
        if differences and differences[0] is not None and None not in differences:
            yield Hit(message=differences[0], where=printable(file.source.name, 4096))


@rule("F29", Severity.ERROR, way_out=_FETCH)
def hash_against_map(target: LintTarget) -> Iterator[Hit]:
    """A shard's sha256 does not match the tensors.map next to it."""
    entries = _entries(target)
    if any(entry.sha256 for entry in entries) and not target.read_data:
        raise CannotEvaluate("hashing reads every shard whole; --data allows it")
    for verdict in verify_against_map(target.files, entries):
        if verdict.ok is False:
            yield Hit(message=verdict.detail, where=printable(verdict.name, 4096))
