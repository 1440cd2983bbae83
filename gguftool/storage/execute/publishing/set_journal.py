"""The journal of a set that is being published: what it holds, how it is written and parsed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.execute.part import (
    busy,
    remove_quietly,
)
from gguftool.storage.sources.sidecars import ONLY_COPY, PART, set_journal_path
from gguftool.storage.system.fileio import close_quietly, sync_file, sync_folders
from gguftool.storage.system.locks import lock
from gguftool.storage.system.ownership import (
    create_helper,
)

_VERSION = "gguftool set 1"
_MAX_JOURNAL = 64 << 20  # bytes; 65,535 shards with names of 255 bytes take 20 million


@record
class SetJournal:
    """A set that is being published: `names` and sizes in publishing order, all in the folder of `first_shard`.

    `replace`: files under these names are old ones, to be replaced. `suffix`: the suffix of the part files.
    """

    first_shard: Path
    names: tuple[tuple[str, int], ...]
    fingerprint: str
    replace: bool
    suffix: str = PART

    @property
    def path(self) -> Path:
        """The journal's path."""
        return set_journal_path(self.first_shard)

    @property
    def targets(self) -> tuple[Path, ...]:
        """The final paths."""
        return tuple(self.first_shard.parent / name for name, _ in self.names)

    @property
    def aside(self) -> tuple[Path, ...]:
        """Paths that may have to move aside, the first shard at the front."""
        return tuple(dict.fromkeys((self.first_shard, *reversed(self.targets))))


def write_journal(journal: SetJournal, cleanup: contextlib.ExitStack, *, sync: bool) -> int:
    """Write the journal durably, and completely or not at all; lock it until `cleanup` ends."""
    fields = {
        "version": _VERSION,
        "fingerprint": journal.fingerprint,
        "replace": journal.replace,
        "names": journal.names,
    }
    if journal.suffix != PART:
        fields["suffix"] = journal.suffix
    import json  # not needed to publish a single file

    data = json.dumps(fields).encode() + b"\n"
    try:
        fd = create_helper(journal.path)
    except FileExistsError:
        raise busy(journal.first_shard) from None
    cleanup.callback(close_quietly, fd)
    try:
        if not lock(fd):
            raise busy(journal.first_shard)
        while data:
            data = data[os.write(fd, data) :]
        if sync:
            sync_file(fd)
            sync_folders([journal.first_shard.parent])
    except BaseException:
        remove_quietly(journal.path)
        raise
    return fd


def read_journal(first_shard: Path, fd: int) -> SetJournal | None:
    """Read the journal in `fd`; None if it was not written to its end: then nothing was renamed.

    Raises `ExecuteError` if it is damaged, or names other files than shards of this set.
    """
    return _parse(first_shard, _read(fd))


def _read(fd: int) -> bytes:
    data = b""
    while len(data) <= _MAX_JOURNAL:
        more = os.read(fd, 1 << 20)
        if not more:
            break
        data += more
    return data


def _parse(first_shard: Path, data: bytes) -> SetJournal | None:
    """Parse the journal; None if it was not written completely: then nothing was renamed."""
    if not data.endswith(b"\n"):
        return None
    import json

    try:
        fields = json.loads(data)
        names = tuple((str(name), int(size)) for name, size in fields["names"])
        journal = SetJournal(
            first_shard=first_shard,
            names=names,
            fingerprint=str(fields["fingerprint"]),
            replace=fields["replace"] is True,
            suffix=str(fields.get("suffix", PART)),
        )
        known = fields["version"] == _VERSION and journal.suffix in (PART, ONLY_COPY)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        known = False
    if not known or not all(_is_sibling(name, first_shard.name) for name, _ in names):
        raise ExecuteError(
            "is not a set journal of this gguftool, or is damaged", source=str(set_journal_path(first_shard))
        )
    return journal


def _is_sibling(name: str, first_shard: str) -> bool:
    """Whether `name` differs from the first shard's name only in digits: a journal must name no other files."""
    return re.sub("[0-9]", "0", name) == re.sub("[0-9]", "0", first_shard)
