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
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.storage.copying import check_sources, copy_extent, write_fully
from gguftool.storage.part import PartFile, create_part, part_path, publish
from gguftool.storage.plan import OutputFile, Plan

# Above this number of outputs on one file system, one checked syncfs costs less than an fsync for each.
_SYNCFS_FROM = 8
# What fsync answers for a folder on file systems that have no such notion (some FUSE and network ones).
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EBADF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to carry out a plan: `force` replaces existing outputs, `sync` makes them durable before they get a name."""

    force: bool = False
    sync: bool = True
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
    _check_targets(plan, force=options.force)
    with _folders(plan), _said_plainly(plan):
        _check_space(plan)
        with contextlib.ExitStack() as cleanup:
            parts = _Parts()
            cleanup.callback(parts.remove)
            _write_parts(plan, options, parts, cleanup)
            check_sources(plan.inputs)
            _publish_all(plan, parts, options)
    return Receipt(
        paths=tuple(output.path for output in plan.outputs), nbytes=sum(output.size for output in plan.outputs)
    )


# --- before the first byte -------------------------------------------------------------------------------------------


def _check_targets(plan: Plan, *, force: bool) -> None:
    """Refuse outputs that are inputs, symlinks, no regular files, or there already: all problems in one error."""
    inputs = {source.file_id: source.name for source in plan.inputs if source.file_id is not None}
    problems: list[str] = []
    taken: list[str] = []
    for output in plan.outputs:
        try:
            status = os.lstat(output.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{output.path}: {error}")
            continue
        file_id = (status.st_dev, status.st_ino)
        if file_id in inputs:
            problems.append(f"{output.path}: is an input ({inputs[file_id]}); an output cannot overwrite it")
        elif stat.S_ISLNK(status.st_mode):
            problems.append(f"{output.path}: is a symbolic link; name the file itself")
        elif not stat.S_ISREG(status.st_mode):
            problems.append(f"{output.path}: is not a regular file")
        elif not force:
            taken.append(str(output.path))
    if problems:
        more = f"; and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        raise ExecuteError("; ".join(problems[:20]) + more)
    if taken:
        more = f" (and {len(taken) - 1:,} more)" if len(taken) > 1 else ""
        raise ExecuteError(f"exists already{more}; --force replaces it", source=taken[0])


@contextlib.contextmanager
def _folders(plan: Plan) -> Iterator[None]:
    """Make missing output folders; take back those that stayed empty where the run fails."""
    made: list[Path] = []
    try:
        for folder in dict.fromkeys(output.path.parent for output in plan.outputs):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            for path in reversed(missing):
                try:
                    path.mkdir(exist_ok=True)
                except OSError as error:
                    raise ExecuteError(f"cannot make this folder: {error.strerror}", source=str(path)) from error
                made.append(path)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _check_space(plan: Plan) -> None:
    """Refuse, before anything is written, what cannot fit on its file system."""
    if not hasattr(os, "statvfs"):
        return
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for output in plan.outputs:
        device = os.stat(output.path.parent).st_dev
        needed[device] = needed.get(device, 0) + output.size
        folders[device] = output.path.parent
    for device, nbytes in needed.items():
        space = os.statvfs(folders[device])
        free = space.f_bavail * space.f_frsize
        if nbytes > free:
            raise ExecuteError(
                f"needs {nbytes:,} bytes and {free:,} are free here; make room or choose another folder",
                source=str(folders[device]),
            )


@contextlib.contextmanager
def _said_plainly(plan: Plan) -> Iterator[None]:
    """Turn what the system answers into an error that names the output and the way out."""
    try:
        yield
    except OSError as error:
        folder = plan.outputs[0].path.parent
        name = error.filename if isinstance(error.filename, str) else str(folder)
        hints = {
            errno.ENOSPC: "the disk is full; make room and run it again",
            errno.EDQUOT: "your disk quota is used up",
            errno.EFBIG: "the file is larger than this file system or a limit (ulimit -f) allows",
            errno.EROFS: "the file system is mounted read-only",
            errno.EACCES: "permission denied",
        }
        hint = hints.get(error.errno or 0, error.strerror or str(error))
        raise ExecuteError(f"cannot write: {hint}; no output was made or changed", source=name) from error


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
        for copy in output.copies:
            copy_extent(copy.extent, part.fd, copy.offset, options.progress)
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
        _publish_one(targets[0], parts, options)
    else:
        _publish_set(targets, parts, options)


def _publish_one(target: Path, parts: _Parts, options: Options) -> None:
    replaces = options.force and target.exists()
    parts.publish(target, replace=options.force)
    try:
        _sync_folders([target], options)
    except OSError as error:
        if replaces:
            raise ExecuteError(
                f"was replaced and is complete, but the disk did not confirm the new name: {error.strerror}",
                source=str(target),
            ) from error
        target.unlink(missing_ok=True)
        raise


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
        _move_back(aside)
        raise
    for old in aside.values():
        old.unlink(missing_ok=True)


def _move_aside(targets: list[Path]) -> dict[Path, Path]:
    """Rename the existing ones of `targets` to helper names beside them; return where each went."""
    for path in targets:
        old = part_path(path, "old")
        if old.exists():
            raise ExecuteError(
                f"an interrupted run moved the old {path.name} here; rename it back or delete it", source=str(old)
            )
    aside: dict[Path, Path] = {}
    try:
        for path in targets:
            if path.exists():
                aside[path] = part_path(path, "old")
                os.rename(path, aside[path])
    except BaseException:
        _move_back(aside)
        raise
    return aside


def _move_back(aside: dict[Path, Path]) -> None:
    """Give old files their names again, shard 1 last: until then the set does not load."""
    for path, old in reversed(aside.items()):
        with contextlib.suppress(FileNotFoundError):
            os.replace(old, path)


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
