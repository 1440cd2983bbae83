"""Recover from a crash during a change in place, of one file or of a set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gguftool.errors import SourceError
from gguftool.format.file_names import parse_shard_name
from gguftool.record import replace
from gguftool.storage.execute.in_place import recover
from gguftool.storage.execute.publishing.sets import finish_set
from gguftool.storage.sources.locate import expand, is_url
from gguftool.storage.sources.sidecars import OLD, helper_path, is_being_published, undo_path
from gguftool.storage.system.ownership import remove_helper


def recover_model(spec: str | os.PathLike[str]) -> tuple[str, ...]:
    """Recover every file and set that `spec` names; returns a sentence for each step, empty if there is nothing to do.

    Raises `ExecuteError` or `FormatError` if recovery fails; then all files that it needs stay in place.
    """
    spec = os.fspath(spec)
    if is_url(spec):
        raise SourceError("is not local and cannot be changed in place; -o OUT writes a new file", source=spec)
    return tuple(_recovered(expand(spec, ".gguf")))


def _recovered(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        shard = parse_shard_name(name)
        first_shard = Path(str(replace(shard, number=1)) if shard else name)
        if os.path.lexists(undo_path(Path(name))):
            journal = recover(Path(name))
            yield f"{name} has its old bytes back ({len(journal.ranges)} range(s))"
        if is_being_published(first_shard):
            finished = finish_set(first_shard)
            yield (
                f"{first_shard}: nothing was replaced yet"
                if finished is None
                else f"{first_shard}: finished, all {len(finished.names)} replaced file(s) of the set are the new ones"
            )
        elif os.path.lexists(helper_path(Path(name), OLD)):
            remove_helper(helper_path(Path(name), OLD))
            yield f"{name} is the new file; its old copy, left by an interrupted run, is removed"
