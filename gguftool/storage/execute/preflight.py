"""Checks before the first byte is written (targets, folders, space), and translation of OSErrors.

Targets: no output may overwrite an input, follow a symbolic link, or replace a file without `force`. Folders: missing
ones are created, and removed again if the run fails. Space: blocks that an output shares with its source, or that an
earlier run's part file already occupies, are not counted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gguftool.errors import ExecuteError, joined_problems
from gguftool.storage.execute.copying import shared_bytes
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.sidecars import PART, helper_path
from gguftool.storage.system.fileio import sync_folders
from gguftool.storage.system.names import IGNORES_CASE, NAMES_HAVE_RULES, name_problem
from gguftool.storage.system.ownership import check_helper
from gguftool.storage.system.reflink import overwrites, own_bytes
from gguftool.storage.system.space import free_bytes


def check_targets(plan: Plan, *, force: bool) -> None:
    """Refuse outputs that are inputs, symlinks, not regular files, or exist already: one error for all problems."""
    inputs = {source.file_id: source.name for source in plan.inputs if source.file_id is not None}
    problems: list[str] = list(_name_problems(plan))
    taken: list[str] = []
    for output in plan.outputs:
        try:
            status = os.lstat(output.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            problems.append(f"{output.path}: {reason}")
            continue
        file_id = (status.st_dev, status.st_ino)
        if output.base is not None:
            problems += _base_problems(output, status)
        elif output.replaces is not None:
            problems += _replaced_problems(output, file_id)
        elif file_id in inputs:
            problems.append(f"{output.path}: is an input ({inputs[file_id]}); an output cannot overwrite it")
        elif stat.S_ISLNK(status.st_mode):
            problems.append(f"{output.path}: is a symbolic link; name the file itself")
        elif not stat.S_ISREG(status.st_mode):
            problems.append(f"{output.path}: is not a regular file")
        elif not force:
            taken.append(str(output.path))
    if problems:
        raise ExecuteError(joined_problems(problems))
    if taken:
        more = f" (and {len(taken) - 1:,} more)" if len(taken) > 1 else ""
        raise ExecuteError(f"exists already{more}; --force replaces it", source=taken[0])


def _name_problems(plan: Plan) -> Iterator[str]:
    """Yield problems with the names: one file named twice, or a name that this system does not allow."""
    seen: dict[str, Path] = {}
    folder_of = functools.cache(_real_folder)
    for output in plan.outputs:
        path = output.path
        if NAMES_HAVE_RULES and (reason := name_problem(path.name)):
            yield f"{path}: {reason}"
        place = os.path.join(folder_of(path.parent), path.name)
        key = place.casefold() if IGNORES_CASE else place
        if key not in seen:
            seen[key] = path
        elif seen[key].name == path.name:
            yield f"{path}: is named for two outputs; give each file a name of its own"
        else:
            yield f"{path}: its name differs from that of {seen[key]} only in case, which this system ignores"


def _real_folder(folder: Path) -> str:
    """Resolve `folder`, or keep its name if that is not possible."""
    try:
        return os.path.realpath(folder)
    except (OSError, ValueError):
        return str(folder)


def _replaced_problems(output: OutputFile, file_id: tuple[int, int]) -> Iterator[str]:
    """Yield reasons why the output must not replace the file at its path."""
    if output.replaces is None or file_id != output.replaces.file_id:
        yield f"{output.path}: is a symbolic link or another file now; name the file itself"


def _base_problems(output: OutputFile, status: os.stat_result) -> Iterator[str]:
    """Yield reasons why the file at the output's path must not be changed in place."""
    if output.base is None or (status.st_dev, status.st_ino) != output.base.file_id:
        yield f"{output.path}: is a symbolic link or another file now; name the file itself"
    if status.st_nlink > 1:
        yield f"{output.path}: has {status.st_nlink} names (hard links), all of which would change; use -o OUT"


@contextlib.contextmanager
def folders(plan: Plan, *, sync: bool) -> Iterator[None]:
    """Create missing output folders, durably with `sync`; if the run fails, remove those that are still empty."""
    made: list[Path] = []
    try:
        for folder in dict.fromkeys(output.path.parent for output in plan.outputs):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            for path in reversed(missing):
                _make_folder(path)
                made.append(path)
        if sync:
            sync_folders(path.parent for path in made)
        yield
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise


def _make_folder(path: Path) -> None:
    try:
        os.mkdir(path)
    except OSError as error:
        if not path.is_dir():
            raise ExecuteError(f"cannot make this folder: {error.strerror}", source=str(path)) from error


def check_space(plan: Plan) -> None:
    """Refuse, before any write, outputs that do not fit on their file system; shared blocks need no space."""
    by_device: dict[int, list[OutputFile]] = {}
    for output in plan.outputs:
        by_device.setdefault(os.stat(output.path.parent).st_dev, []).append(output)
    for outputs in by_device.values():
        folder = outputs[-1].path.parent
        free = free_bytes(folder)
        needed = sum(output.size - _left_over_bytes(output.path) for output in outputs)
        if free is None or needed <= free:
            continue
        needed -= shared_bytes((copy for output in outputs for copy in output.copies), folder)
        if needed > free:
            raise ExecuteError(
                f"needs {needed:,} bytes and {free:,} are free here; make room or choose another folder",
                source=str(folder),
            )


def check_change(output: OutputFile) -> None:
    """Refuse a change in place that needs new blocks if they do not fit: restoring the old bytes needs them too.

    Other changes need space only for their journal, which is checked when the journal is written.
    """
    changed = sum(length for _, length in output.changed_ranges)
    folder = output.path.parent
    free = free_bytes(folder)
    if free is None or 2 * changed <= free or overwrites(output.path):
        return
    needed = 2 * changed - shared_bytes(output.copies, folder)
    if needed > free:
        raise ExecuteError(
            f"needs {needed:,} bytes for its journal and for new blocks (it shares blocks, or is on btrfs), and "
            f"{free:,} are free here; make room, or write a new file elsewhere with -o",
            source=str(output.path),
        )


def _left_over_bytes(target: Path) -> int:
    """Bytes that an interrupted run's part file occupies: it is taken over, or removed before writing."""
    path = helper_path(target, PART)
    try:
        links = check_helper(path, target=target).st_nlink
    except FileNotFoundError:
        return 0
    return own_bytes(path) if links == 1 else 0


@contextlib.contextmanager
def translate_os_errors(plan: Plan) -> Iterator[None]:
    """Turn an `OSError` into an `ExecuteError` that names the output and says what to do."""
    try:
        yield
    except OSError as error:
        folder = plan.outputs[0].path.parent
        name = error.filename if isinstance(error.filename, str) else str(folder)
        hints = {
            errno.ENOSPC: "the disk is full; make room and run it again",
            errno.EDQUOT: "your disk quota is used up",
            errno.EFBIG: "the file is larger than this file system (FAT32: under 4 GiB) or a limit (ulimit -f) allows",
            errno.EROFS: "the file system is mounted read-only",
            errno.EACCES: "permission denied",
        }
        hint = hints.get(error.errno or 0, error.strerror or str(error))
        raise ExecuteError(f"cannot write: {hint}; no output was made or changed", source=name) from error
