"""The one executor: it carries out any plan, whoever made it.

Order of events, for each output file: part file, bytes, sources checked again, data made durable, published under its
final name, folder made durable.  Of several outputs all are complete and durable before the first is published, and
the first output (shard 1 of a set, from which engines start) is published last.  So: after exit 0 the named outputs
are complete; otherwise they do not exist, or are the old ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.copying import check_sources, copy_all, copy_extent, write_fully
from gguftool.storage.local import helper_path
from gguftool.storage.part import PartFile, create_part, exists_already, publish
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.preflight import check_space, check_targets, folders, said_plainly
from gguftool.storage.source import Extent
from gguftool.storage.undo import Journal, changed_ranges, journal_file, open_for_change, read_journal

# Above this number of outputs on one file system, one checked syncfs costs less than an fsync for each.
_SYNCFS_FROM = 8
# What fsync answers for a folder on file systems that have no such notion (some FUSE and network ones).
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to carry out a plan: `force` replaces existing outputs, `sync` makes them durable before they get a name.

    `jobs` is the number of threads that copy, None for as many as pay.
    """

    force: bool = False
    sync: bool = True
    jobs: int | None = None
    progress: Callable[[int], None] = lambda nbytes: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was written: the paths in the plan's order and the bytes of all of them."""

    paths: tuple[Path, ...]
    nbytes: int


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Write every output of `plan`.

    Raises `ExecuteError` where an output may not or cannot be written and `SourceError` where an input fails or
    changes; then no output exists under its final name that was not there before.
    """
    options = options or Options()
    check_targets(plan, force=options.force)
    with folders(plan), said_plainly(plan):
        check_space(plan)
        if plan.outputs[0].base is not None:
            return _change_in_place(plan, options)
        with contextlib.ExitStack() as cleanup:
            parts = _Parts()
            cleanup.callback(parts.remove)
            _write_parts(plan, options, parts, cleanup)
            check_sources(plan.inputs)
            _publish_all(plan, parts, options)
    return Receipt(
        paths=tuple(output.path for output in plan.outputs), nbytes=sum(output.size for output in plan.outputs)
    )


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Parts:
    """The part files that this run has made and not yet published; those are its own to remove."""

    def __init__(self) -> None:
        self._paths: dict[Path, Path] = {}  # target -> part

    def create(self, output: OutputFile) -> PartFile:
        part = create_part(output.path, output.size)
        self._paths[output.path] = part.path
        return part

    def publish(self, target: Path, *, replace: bool) -> None:
        publish(self._paths[target], target, replace=replace)
        del self._paths[target]

    def remove(self) -> None:
        for path in self._paths.values():
            path.unlink(missing_ok=True)


def _write_parts(plan: Plan, options: Options, parts: _Parts, cleanup: contextlib.ExitStack) -> None:
    """Write every output into its part file, durable where asked.

    The first output's part stays open and locked to the end: it is what keeps a second run on the same set away.
    """
    first = parts.create(plan.outputs[0])
    cleanup.callback(first.close)
    in_bulk = options.sync and len(plan.outputs) > _SYNCFS_FROM
    bulk = _bulk_sync(plan, cleanup) if in_bulk else None
    for output in plan.outputs[1:]:
        part = parts.create(output)
        try:
            _fill(part, output, options, sync=bulk is None)
        finally:
            part.close()
    _fill(first, plan.outputs[0], options, sync=bulk is None)
    if bulk is not None:
        bulk()


def _fill(part: PartFile, output: OutputFile, options: Options, *, sync: bool) -> None:
    try:
        write_fully(part.fd, output.head, 0)
        copy_all(output.copies, part.fd, jobs=options.jobs, progress=options.progress, durable=options.sync, fresh=True)
        if options.sync and sync:
            os.fsync(part.fd)
    except OSError as error:
        if error.filename is None:
            error.filename = str(output.path)
        raise
    written = os.fstat(part.fd).st_size
    if written != output.size:
        raise ExecuteError(f"is {written:,} bytes long, planned were {output.size:,}", source=str(part.path))


def _bulk_sync(plan: Plan, cleanup: contextlib.ExitStack) -> Callable[[], None] | None:
    """Return a call that makes everything written since now durable, or None where the system has no syncfs.

    The descriptors are opened before the first write: syncfs reports write-back errors since its descriptor's opening.
    """
    try:
        import ctypes

        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, OSError, AttributeError):
        return None
    fds = []
    for folder in dict.fromkeys(output.path.parent for output in plan.outputs):
        fd = os.open(folder, os.O_RDONLY)
        cleanup.callback(os.close, fd)
        fds.append(fd)

    def sync_all() -> None:
        for fd in fds:
            if syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    return sync_all


# --- final names -----------------------------------------------------------------------------------------------------


def _publish_all(plan: Plan, parts: _Parts, options: Options) -> None:
    """Publish the outputs, the first one last."""
    targets = [output.path for output in (*plan.outputs[1:], plan.outputs[0])]
    if len(targets) == 1:
        parts.publish(targets[0], replace=options.force)
        _sync_folders(targets, options)
    else:
        _publish_set(targets, parts, options)


def _publish_set(targets: list[Path], parts: _Parts, options: Options) -> None:
    """Publish a set; where one fails, those published by this call are taken back.

    Old shards move aside first, shard 1 foremost, so that old and new can never load together.
    """
    aside = _move_aside(list(reversed(targets))) if options.force else {}
    published: list[Path] = []
    try:
        for target in targets:
            parts.publish(target, replace=False)
            published.append(target)
        _sync_folders(targets, options)
    except BaseException:
        for path in published:
            path.unlink(missing_ok=True)
        for path, old in aside.items():
            os.replace(old, path)
        raise
    for old in aside.values():
        old.unlink(missing_ok=True)


def _move_aside(targets: list[Path]) -> dict[Path, Path]:
    """Rename the existing ones of `targets` to helper names beside them; return where each went."""
    aside: dict[Path, Path] = {}
    for path in targets:
        old = helper_path(path, "old")
        if old.exists():
            raise exists_already(old)
        if path.exists():
            os.rename(path, old)
            aside[path] = old
    return aside


def _sync_folders(targets: list[Path], options: Options) -> None:
    if not options.sync:
        return
    for folder in dict.fromkeys(path.parent for path in targets):
        try:
            fd = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # Windows has no descriptors of folders
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(fd)


# --- in place --------------------------------------------------------------------------------------------------------


def _change_in_place(plan: Plan, options: Options) -> Receipt:
    """Write the undo journal, then the changes, then remove the journal; always durable, whatever `options` say."""
    (output,) = plan.outputs
    journal = journal_file(output)
    durable = Options(force=False, sync=True, progress=options.progress)
    execute(Plan(outputs=(journal,), inputs=plan.inputs), durable)
    try:
        _patch(output, options)
        check_sources(tuple(source for source in plan.inputs if source != output.base))
    except BaseException:
        recover(output.path)
        raise
    _remove_journal(output.path, journal.path)
    return Receipt(paths=(output.path,), nbytes=sum(length for _, length in changed_ranges(output)))


def _patch(output: OutputFile, options: Options) -> None:
    fd = open_for_change(output.path)
    try:
        if output.head:
            write_fully(fd, output.head, 0)
        for copy in output.copies:
            copy_extent(copy.extent, fd, copy.offset, options.progress)
        os.fsync(fd)
    finally:
        os.close(fd)


def recover(target: Path) -> Journal:
    """Give `target` the bytes back that its undo journal kept, and remove the journal.

    Raises `SourceError` where there is no journal, `FormatError` where it is damaged, `ExecuteError` where the file
    cannot be written; then the journal stays, and it can be tried again.
    """
    journal = read_journal(target)
    try:
        fd = open_for_change(target)
        try:
            for (offset, length), place in zip(journal.ranges, journal.old, strict=True):
                old = Extent(source=journal.source, offset=place, length=length)
                copy_extent(old, fd, offset, lambda nbytes: None)
            os.ftruncate(fd, journal.size)
            os.fsync(fd)
        finally:
            os.close(fd)
        _remove_journal(target, journal.source.path)
    except OSError as error:
        raise ExecuteError(
            f"cannot be given back its old bytes: {error.strerror}; they are safe in {journal.source.name}, and "
            "'gguftool edit FILE --recover' tries again",
            source=str(target),
        ) from error
    return journal


def _remove_journal(target: Path, journal: Path) -> None:
    os.unlink(journal)
    _sync_folders([target], Options())
