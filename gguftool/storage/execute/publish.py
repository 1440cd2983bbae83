"""Giving finished part files their final names.

One file: a link that never replaces, or an atomic rename over the old file, of which a hard link is kept until the
folder is durable.  Several: old and new shards must never load together, also not after a crash in between.  So a set
journal is written first (all parts are complete and durable by then); the first shard, from which engines start, moves
aside first and gets its name last.  An error undoes everything; after a crash the journal lets the next writer, or
`gguftool edit FILE --recover`, finish: a part that is still there was not yet published, whatever was interrupted.
Readers refuse the set as long as the journal lies there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.record import record
from gguftool.storage.execute.part import (
    CREATE,
    REOPEN,
    PartFile,
    busy,
    exists_already,
    lock,
    publish,
    remove_quietly,
)
from gguftool.storage.plan import Plan
from gguftool.storage.sources.sidecars import OLD, ONLY_COPY, PART, helper_path, set_journal_path
from gguftool.storage.system.fileio import close_quietly, sync_file, sync_folders

_VERSION = "gguftool set 1"
_MAX_JOURNAL = 64 << 20  # bytes; 65,535 shards with names of 255 bytes take 20 million


class HalfwayError(ExecuteError):
    """A set is between old and new, and the journal that finishes it is there: no part file may go."""


# --- one file --------------------------------------------------------------------------------------------------------


def publish_one(part: PartFile, *, replace: bool, sync: bool) -> None:
    """Publish a single output; where that fails, the final name is what it was before."""
    backup = _second_name(part.target) if replace else None
    try:
        if replace:
            os.replace(part.path, part.target)
        else:
            publish(part.path, part.target)
        if sync:
            sync_folders([part.target.parent])
    except BaseException:
        if part.is_published():
            _take_back(part)
            if backup is not None:
                os.rename(backup, part.target)
        elif backup is not None:
            remove_quietly(backup)
        raise
    if backup is not None:
        remove_quietly(backup)
        _sync_quietly(part.target.parent, sync=sync)


def _sync_quietly(folder: Path, *, sync: bool) -> None:
    """Make the removal of helper files durable: they would be in the way, or take space, after a power cut."""
    if sync:
        with contextlib.suppress(OSError):
            sync_folders([folder])


def _second_name(target: Path) -> Path | None:
    """Keep the old file by a second name; None where there is none, or the file system has no hard links."""
    backup = helper_path(target, OLD)
    remove_quietly(backup)
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError:
        return None
    return backup


def _take_back(part: PartFile) -> None:
    """Make a published file a part file again."""
    os.rename(part.target, part.path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part.target)  # where both are names of one file, rename does nothing


# --- a set -----------------------------------------------------------------------------------------------------------


@record
class SetJournal:
    """What is being published: `names` and sizes in the order of publishing, all beside `first_shard`.

    `replace`: files under these names are old ones, to be replaced; `suffix`: that of the part files.
    """

    first_shard: Path
    names: tuple[tuple[str, int], ...]
    fingerprint: str
    replace: bool
    suffix: str = PART

    @property
    def path(self) -> Path:
        """Where the journal lies."""
        return set_journal_path(self.first_shard)

    @property
    def targets(self) -> tuple[Path, ...]:
        """The final paths."""
        return tuple(self.first_shard.parent / name for name, _ in self.names)

    @property
    def aside(self) -> tuple[Path, ...]:
        """What may have to move aside, the first shard foremost."""
        return tuple(dict.fromkeys((self.first_shard, *reversed(self.targets))))


def publish_set(plan: Plan, parts: Sequence[PartFile], superseded: Path | None, *, replace: bool, sync: bool) -> None:
    """Publish several outputs; `parts`, all durable, in the order of publishing, the first shard's last.

    A journal `superseded` says nothing any more when all have their names, and goes then.

    Raises `HalfwayError` where the set could be neither published nor taken back; then the journal stays.
    """
    first_shard = plan.first_shard_path
    if any(part.target.parent != first_shard.parent for part in parts):
        raise ExecuteError("the files of a set must lie in one folder", source=str(first_shard))
    sizes = {output.path: output.size for output in plan.outputs}
    names = tuple((part.target.name, sizes[part.target]) for part in parts)
    suffix = ONLY_COPY if plan.consume is not None else PART
    journal = SetJournal(
        first_shard=first_shard, names=names, fingerprint=plan.fingerprint, replace=replace, suffix=suffix
    )
    with contextlib.ExitStack() as cleanup:
        fd = _begin(journal, cleanup, sync=sync)
        done: list[PartFile] = []
        try:
            _rename_all(journal, parts, done, sync=sync)
        except BaseException as error:
            _roll_back(journal, fd, parts, done, error)
            raise
        for path in journal.aside if replace else ():
            remove_quietly(helper_path(path, OLD))
        if superseded is not None:
            remove_quietly(superseded)
        try:
            _end(journal, fd)
        except OSError as error:
            raise HalfwayError(
                f"is complete, but its journal cannot be removed ({_reason(error)}): "
                f"'gguftool edit {journal.first_shard.name} --recover' tries again",
                source=str(first_shard),
            ) from error
        _sync_quietly(first_shard.parent, sync=sync)


def _end(journal: SetJournal, fd: int) -> None:
    """Remove the journal; where that cannot be, empty it, which says the same."""
    try:
        os.unlink(journal.path)
    except OSError:
        os.ftruncate(fd, 0)


def _rename_all(journal: SetJournal, parts: Sequence[PartFile], done: list[PartFile], *, sync: bool) -> None:
    """Move old files aside, publish; `done` takes each part that has its name. No probing: a name is there or not."""
    aside = journal.aside if journal.replace else ()
    for path in aside:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(helper_path(path, OLD))  # of a run that was killed when it was done
    for path in aside:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, helper_path(path, OLD))
    for part in parts:
        publish(part.path, part.target)
        done.append(part)
    if journal.replace and journal.first_shard not in journal.targets:
        os.rename(helper_path(journal.first_shard, OLD), journal.first_shard)
    if sync:
        sync_folders([journal.first_shard.parent])


def _roll_back(
    journal: SetJournal, fd: int, parts: Sequence[PartFile], done: Sequence[PartFile], error: BaseException
) -> None:
    """Undo `_rename_all` from any point: the first shard's name is the last to come back."""
    try:
        _move_back(journal, parts, done)
        _end(journal, fd)
    except OSError as second:
        raise HalfwayError(
            f"could be neither published ({_reason(error)}) nor taken back ({_reason(second)}); all new data is "
            f"complete and safe: 'gguftool edit {journal.first_shard.name} --recover' finishes",
            source=str(journal.first_shard),
        ) from error


def _move_back(journal: SetJournal, parts: Sequence[PartFile], done: Sequence[PartFile]) -> None:
    if done and journal.replace and journal.first_shard not in journal.targets:
        with contextlib.suppress(FileNotFoundError):
            os.rename(journal.first_shard, helper_path(journal.first_shard, OLD))
    for part in reversed(parts):
        if part in done or part.is_published():
            _take_back(part)
    for path in reversed(journal.aside) if journal.replace else ():
        if _is_there(helper_path(path, OLD)):
            os.rename(helper_path(path, OLD), path)


def _is_there(path: Path) -> bool:
    """Whether there is a file; unlike `lexists`, no answer is an error, not a no."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _reason(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _begin(journal: SetJournal, cleanup: contextlib.ExitStack, *, sync: bool) -> int:
    """Write the journal, lock it for as long as `cleanup` lives, and make it durable; whole or not at all."""
    said = {"version": _VERSION, "fingerprint": journal.fingerprint, "replace": journal.replace, "names": journal.names}
    if journal.suffix != PART:
        said["suffix"] = journal.suffix
    import json  # a single file needs none

    data = json.dumps(said).encode() + b"\n"
    try:
        fd = os.open(journal.path, CREATE, 0o666)
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


# --- after a crash ---------------------------------------------------------------------------------------------------


def finish_set(first_shard: Path) -> SetJournal | None:
    """Finish publishing a set where a run was interrupted in it; None where there is nothing to finish.

    Raises `ExecuteError` where a living run is at it, or a foreign file has taken a name; then the journal stays.
    """
    try:
        fd = os.open(set_journal_path(first_shard), REOPEN)
    except FileNotFoundError:
        return None
    try:
        if not lock(fd):
            raise busy(first_shard)
        journal = _parse(first_shard, _read(fd))
        if journal is not None:
            _roll_forward(journal)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(set_journal_path(first_shard))
    finally:
        close_quietly(fd)
    return journal


def _read(fd: int) -> bytes:
    data = b""
    while len(data) <= _MAX_JOURNAL:
        more = os.read(fd, 1 << 20)
        if not more:
            break
        data += more
    return data


def _parse(first_shard: Path, data: bytes) -> SetJournal | None:
    """Return the journal, or None where it was not written to its end: then nothing had been renamed."""
    if not data.endswith(b"\n"):
        return None
    import json

    try:
        said = json.loads(data)
        names = tuple((str(name), int(size)) for name, size in said["names"])
        journal = SetJournal(
            first_shard=first_shard,
            names=names,
            fingerprint=str(said["fingerprint"]),
            replace=said["replace"] is True,
            suffix=str(said.get("suffix", PART)),
        )
        known = said["version"] == _VERSION and journal.suffix in (PART, ONLY_COPY)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        known = False
    if not known or not all(_is_like(name, first_shard.name) for name, _ in names):
        raise ExecuteError(
            "is not a set journal of this gguftool, or is damaged", source=str(set_journal_path(first_shard))
        )
    return journal


def _is_like(name: str, first_shard: str) -> bool:
    """Whether `name` differs from the first shard's name in its digits only: no journal reaches further."""
    return re.sub("[0-9]", "0", name) == re.sub("[0-9]", "0", first_shard)


def _roll_forward(journal: SetJournal) -> None:
    for target, (_, size) in zip(journal.targets, journal.names, strict=True):
        part = helper_path(target, journal.suffix)
        if _is_there(part):
            _publish_left(part, target, size, replace=journal.replace)
    old_first = helper_path(journal.first_shard, OLD)
    if journal.first_shard not in journal.targets and _is_there(old_first) and not _is_there(journal.first_shard):
        os.rename(old_first, journal.first_shard)
    for path in journal.aside if journal.replace else ():
        remove_quietly(helper_path(path, OLD))
    sync_folders([journal.first_shard.parent])


def _publish_left(part: Path, target: Path, size: int, *, replace: bool) -> None:
    status = os.lstat(part)
    if status.st_size != size:
        raise ExecuteError(f"has {status.st_size:,} bytes, the journal says {size:,}", source=str(part))
    if replace and not (_is_there(target) and os.path.samestat(os.lstat(target), status)):
        os.replace(part, target)
    elif not _is_there(target):
        publish(part, target)
    elif os.path.samestat(os.lstat(target), status):
        os.unlink(part)
    else:
        raise exists_already(target)
