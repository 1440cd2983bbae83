"""Publish the files of a set together: old and new shards must never load together, even after a crash in between.

A set journal is written first, when all parts are complete and durable. The first shard, from which engines start,
moves aside first and gets its name last. An error undoes everything. After a crash, the next writer, or
`gguftool edit FILE --recover`, finishes with the help of the journal: a part file that still exists was not yet
published, wherever the run stopped. Readers refuse the set while the journal exists.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, command_line
from gguftool.storage.execute.part import (
    PartFile,
    busy,
    exists_already,
    publish,
    remove_quietly,
    replaced,
)
from gguftool.storage.execute.publishing.one_file import Modes, give_back, status_of, sync_quietly, unpublish
from gguftool.storage.execute.publishing.set_journal import SetJournal, read_journal, write_journal
from gguftool.storage.plan import Plan
from gguftool.storage.sources.sidecars import OLD, ONLY_COPY, PART, helper_path, set_journal_path
from gguftool.storage.system.fileio import close_quietly, set_size, sync_folders
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import rename, replace_file, unlink
from gguftool.storage.system.ownership import (
    check_helper,
    open_helper,
    remove_helper,
)


class HalfwayError(ExecuteError):
    """A set is half old, half new, and its journal exists to finish it: no part file may be removed."""


def publish_set(plan: Plan, parts: Sequence[PartFile], superseded: Path | None, *, replace: bool, sync: bool) -> None:
    """Publish several outputs; `parts` are all durable, in publishing order, the first shard's last.

    The resume journal at `superseded` is removed once all have their names: it is obsolete then.

    Raises `HalfwayError` if the set could be neither published nor rolled back, or its journal cannot be removed; then
    the journal stays.
    """
    first_shard = plan.first_shard_path
    if any(part.target.parent != first_shard.parent for part in parts):
        raise ExecuteError("the files of a set must be in one folder", source=str(first_shard))
    sizes = {output.path: output.size for output in plan.outputs}
    names = tuple((part.target.name, sizes[part.target]) for part in parts)
    suffix = ONLY_COPY if plan.consume is not None else PART
    journal = SetJournal(
        first_shard=first_shard, names=names, fingerprint=plan.fingerprint, replace=replace, suffix=suffix
    )
    for part in parts:
        part.require(parts[-1])
    with contextlib.ExitStack() as cleanup:
        fd = write_journal(journal, cleanup, sync=sync)
        done: list[PartFile] = []
        kept: dict[Path, os.stat_result | None] = {}
        try:
            _rename_all(journal, parts, done, kept, sync=sync)
        except BaseException as error:
            _roll_back(journal, fd, parts, done, kept, error)
            raise
        for path in journal.aside if replace else ():
            remove_quietly(helper_path(path, OLD))
        if superseded is not None:
            remove_quietly(superseded)
        try:
            _remove_journal(journal, fd)
        except OSError as error:
            raise HalfwayError(
                f"is complete, but its journal cannot be removed ({_reason(error)}): "
                f"{command_line('edit', str(journal.first_shard), '--recover')} tries again",
                source=str(first_shard),
            ) from error
        sync_quietly(first_shard.parent, sync=sync)


def _remove_journal(journal: SetJournal, fd: int) -> None:
    """Remove the journal; if that fails, empty it, which means the same."""
    try:
        unlink(journal.path)
    except OSError:
        set_size(fd, 0)


def _rename_all(
    journal: SetJournal,
    parts: Sequence[PartFile],
    done: list[PartFile],
    kept: dict[Path, os.stat_result | None],
    *,
    sync: bool,
) -> None:
    """Move old files aside, then publish; add each published part to `done`. Renames are tried without a check before.

    `kept` gets the status of each file that moves aside: another file in its place is not trusted later.
    """
    aside = journal.aside if journal.replace else ()
    for path in aside:
        remove_helper(helper_path(path, OLD))  # left by a run that was killed after publishing
    for path in aside:
        with contextlib.suppress(FileNotFoundError):
            kept[path] = status_of(path)
            rename(path, helper_path(path, OLD))
    modes = Modes(journal.first_shard)
    for part in parts:
        modes.give_written(part, old=helper_path(part.target, OLD) if journal.replace else None)
        publish(part.path, part.target, part.is_at)
        done.append(part)
    if journal.replace and journal.first_shard not in journal.targets:
        give_back(helper_path(journal.first_shard, OLD), journal.first_shard, kept.get(journal.first_shard))
    if sync:
        sync_folders([journal.first_shard.parent])


def _roll_back(
    journal: SetJournal,
    fd: int,
    parts: Sequence[PartFile],
    done: Sequence[PartFile],
    kept: Mapping[Path, os.stat_result | None],
    error: BaseException,
) -> None:
    """Undo `_rename_all` from any point; the first shard gets its name back last."""
    try:
        _move_back(journal, parts, done, kept)
        _remove_journal(journal, fd)
    except (OSError, ExecuteError) as second:
        raise HalfwayError(
            f"could be neither published ({_reason(error)}) nor rolled back ({_reason(second)}); all new data is "
            f"complete and safe: {command_line('edit', str(journal.first_shard), '--recover')} finishes",
            source=str(journal.first_shard),
        ) from error


def _move_back(
    journal: SetJournal, parts: Sequence[PartFile], done: Sequence[PartFile], kept: Mapping[Path, os.stat_result | None]
) -> None:
    if done and journal.replace and journal.first_shard not in journal.targets:
        with contextlib.suppress(FileNotFoundError):
            rename(journal.first_shard, helper_path(journal.first_shard, OLD))
    for part in reversed(parts):
        if part in done or part.is_published():
            unpublish(part)
    for path in reversed(journal.aside) if journal.replace else ():
        if _exists(helper_path(path, OLD)):
            give_back(helper_path(path, OLD), path, kept.get(path))


def _reason(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _exists(path: Path) -> bool:
    """Whether a file exists; unlike `lexists`, raise `OSError` if that cannot be determined."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def finish_set(first_shard: Path) -> SetJournal | None:
    """Finish publishing a set that an interrupted run began; None if there is nothing to finish.

    Raises `ExecuteError` if a live run holds the journal, if the journal is damaged, or if a foreign file has taken a
    name; then the journal stays.
    """
    try:
        fd = open_helper(set_journal_path(first_shard))
    except FileNotFoundError:
        return None
    try:
        if not lock(fd):
            raise busy(first_shard)
        journal = read_journal(first_shard, fd)
        if journal is not None:
            _roll_forward(journal)
        with contextlib.suppress(FileNotFoundError):
            unlink(set_journal_path(first_shard))
    finally:
        close_quietly(fd)
    return journal


def _roll_forward(journal: SetJournal) -> None:
    modes = Modes(journal.first_shard)
    for target, (_, size) in zip(journal.targets, journal.names, strict=True):
        part = helper_path(target, journal.suffix)
        if _exists(part):
            _finish_part(part, target, size, modes, replace=journal.replace)
    old_first = helper_path(journal.first_shard, OLD)
    if journal.first_shard not in journal.targets and _exists(old_first) and not _exists(journal.first_shard):
        check_helper(old_first)
        rename(old_first, journal.first_shard)
    for path in journal.aside if journal.replace else ():
        remove_quietly(helper_path(path, OLD))
    sync_folders([journal.first_shard.parent])


def _finish_part(part: Path, target: Path, size: int, modes: Modes, *, replace: bool) -> None:
    status = check_helper(part, target=target)
    if status.st_size != size:
        raise ExecuteError(f"has {status.st_size:,} bytes, but the journal says {size:,}", source=str(part))

    def is_written(path: Path) -> bool:
        return _exists(path) and os.path.samestat(os.lstat(path), status)

    there = os.lstat(target) if _exists(target) else None
    if there is not None and os.path.samestat(there, status):
        unlink(part)
    elif replace:
        modes.give(part, target, old=helper_path(target, OLD) if there is None else target)
        replace_file(part, target)
        if not is_written(target):
            raise replaced(part, None)
    elif there is None:
        modes.give(part, target, old=None)
        publish(part, target, is_written)
    else:
        raise exists_already(target)
