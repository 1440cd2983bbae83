"""Publish: give complete part files their final names.

One file: a hard link, which never replaces, or an atomic rename over the old file. Before that rename the old file
gets a second name (a hard link), which is kept until the folder is durable.

Several files: old and new shards must never load together, even after a crash in between. So a set journal is written
first, when all parts are complete and durable. The first shard, from which engines start, moves aside first and gets
its name last. An error undoes everything. After a crash, the next writer, or `gguftool edit FILE --recover`, finishes
with the help of the journal: a part file that still exists was not yet published, wherever the run stopped.
Readers refuse the set while the journal exists.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguftool.errors import ExecuteError, command_line
from gguftool.record import record
from gguftool.storage.execute.part import (
    PartFile,
    busy,
    exists_already,
    publish,
    remove_quietly,
    replaced,
)
from gguftool.storage.plan import Plan
from gguftool.storage.sources.sidecars import MODE, OLD, ONLY_COPY, PART, helper_path, set_journal_path
from gguftool.storage.system.fileio import close_quietly, set_size, sync_file, sync_folders
from gguftool.storage.system.locks import lock
from gguftool.storage.system.names import rename, replace_file, unlink
from gguftool.storage.system.ownership import (
    check_helper,
    create_helper,
    open_helper,
    own_mode,
    plain_mode,
    remove_helper,
    reopen_written,
    set_mode,
)

_VERSION = "gguftool set 1"
_MAX_JOURNAL = 64 << 20  # bytes; 65,535 shards with names of 255 bytes take 20 million


class HalfwayError(ExecuteError):
    """A set is half old, half new, and its journal exists to finish it: no part file may be removed."""


# --- one file --------------------------------------------------------------------------------------------------------


def publish_one(part: PartFile, *, replace: bool, sync: bool, private: bool = False) -> None:
    """Publish a single output; if that fails, restore what had the final name before.

    `private`: it is a journal, and keeps the mode of a helper file.
    """
    if not private:
        _Modes(part.target).give_written(part, old=part.target if replace else None)
    backup = _keep_old(part.target) if replace else None
    kept = None if backup is None else _status(backup)
    is_named = False
    try:
        part.require()
        if replace:
            replace_file(part.path, part.target)
        else:
            publish(part.path, part.target, part.is_at)
        is_named = True
        if not part.is_published():
            raise replaced(part.path, None)
        if sync:
            sync_folders([part.target.parent])
    except BaseException:
        if is_named or part.is_published():
            _unpublish(part)
            if backup is not None:
                _give_back(backup, part.target, kept)
        elif backup is not None:
            remove_quietly(backup)
        raise
    if backup is not None:
        remove_quietly(backup)
        _sync_quietly(part.target.parent, sync=sync)


class _Modes:
    """Modes for files that get their names in one folder; the mode of plain creation there is probed once.

    The name of the probe file is made from `target`: the run that finishes after a kill probes again, and removes it.
    """

    def __init__(self, target: Path) -> None:
        self._probe = helper_path(target, MODE)
        self._plain: int | None = None

    def give(self, part: Path, target: Path, *, old: Path | None) -> None:
        """Give an earlier run's part file the mode of `old`, the file that it replaces, or else that of plain creation.

        The mode of another user's file is not used: it might let that user write the new one.
        """
        fd = open_helper(part, target=target)
        try:
            set_mode(fd, self._mode(old))
        finally:
            close_quietly(fd)

    def give_written(self, part: PartFile, *, old: Path | None) -> None:
        """Give a part file of this run its mode, as `give`; raise `ExecuteError` if it is no longer at its path."""
        fd = reopen_written(part.path, part.is_file)
        if fd is None:
            raise replaced(part.path, None)
        try:
            set_mode(fd, self._mode(old))
        finally:
            close_quietly(fd)

    def _mode(self, old: Path | None) -> int:
        mode = own_mode(old) if old is not None else None
        if mode is not None:
            return mode
        self._plain = plain_mode(self._probe) if self._plain is None else self._plain
        return self._plain


def _sync_quietly(folder: Path, *, sync: bool) -> None:
    """Make the removal of helper files durable: after a power failure they would block a run, or take space."""
    if sync:
        with contextlib.suppress(OSError):
            sync_folders([folder])


def _keep_old(target: Path) -> Path | None:
    """Keep the old file under a second name; None if there is no old file, or the file system has no hard links."""
    backup = helper_path(target, OLD)
    remove_helper(backup)
    try:
        os.link(target, backup, follow_symlinks=False)
    except OSError:
        return None
    return backup


def _status(path: Path) -> os.stat_result | None:
    """The status of a file, or None if there is none or it cannot be read."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def _give_back(old: Path, target: Path, kept: os.stat_result | None) -> None:
    """Give the old file its name back; raise `ExecuteError` if another file is at the path `old` now.

    `kept`: the status of the file that moved aside; if it is unknown, the file is checked as a helper file is.
    """
    if kept is None:
        check_helper(old)
    elif not os.path.samestat(os.lstat(old), kept):
        raise ExecuteError(
            f"was replaced while it held the old {target.name}, and does not get that name", source=str(old)
        )
    rename(old, target)


def _unpublish(part: PartFile) -> None:
    """Make a published file a part file again, unless another run's part file has its path: then remove it."""
    if os.path.lexists(part.path) and not part.is_at(part.path):
        unlink(part.target)
        return
    rename(part.target, part.path)
    with contextlib.suppress(FileNotFoundError):
        unlink(part.target)  # if both are names of one file, rename does nothing


# --- a set -----------------------------------------------------------------------------------------------------------


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
        fd = _write_journal(journal, cleanup, sync=sync)
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
        _sync_quietly(first_shard.parent, sync=sync)


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
            kept[path] = _status(path)
            rename(path, helper_path(path, OLD))
    modes = _Modes(journal.first_shard)
    for part in parts:
        modes.give_written(part, old=helper_path(part.target, OLD) if journal.replace else None)
        publish(part.path, part.target, part.is_at)
        done.append(part)
    if journal.replace and journal.first_shard not in journal.targets:
        _give_back(helper_path(journal.first_shard, OLD), journal.first_shard, kept.get(journal.first_shard))
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
            _unpublish(part)
    for path in reversed(journal.aside) if journal.replace else ():
        if _exists(helper_path(path, OLD)):
            _give_back(helper_path(path, OLD), path, kept.get(path))


def _exists(path: Path) -> bool:
    """Whether a file exists; unlike `lexists`, raise `OSError` if that cannot be determined."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _reason(error: BaseException) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _write_journal(journal: SetJournal, cleanup: contextlib.ExitStack, *, sync: bool) -> int:
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


# --- after a crash ---------------------------------------------------------------------------------------------------


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
        journal = _parse(first_shard, _read(fd))
        if journal is not None:
            _roll_forward(journal)
        with contextlib.suppress(FileNotFoundError):
            unlink(set_journal_path(first_shard))
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


def _roll_forward(journal: SetJournal) -> None:
    modes = _Modes(journal.first_shard)
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


def _finish_part(part: Path, target: Path, size: int, modes: _Modes, *, replace: bool) -> None:
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
