"""Helper files next to an output: their names, and whether they show that a change is unfinished.

A helper file is next to its target under a short name made from a hash of the target's name, so that a later run finds
it, and a name of 255 bytes can have helpers, too. Its suffix says what it is.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gguftool.errors import SourceError, command_line
from gguftool.storage.system.ownership import distrust

try:  # Python's own: hashlib loads OpenSSL, a thirtieth of the time of `gguftool dump` (docs/decisions.md)
    from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]  # from Python 3.12 on
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from hashlib import sha256

PART = "part"  # an incomplete output; can be written again
RESUME = "resume"  # the journal that records which parts of it are written
OLD = "old"  # the file that an output replaces, until its whole set is replaced
SET = "set"  # the journal while the files of a set get their names
UNDO = "undo"  # the journal of a change in place: the old bytes
CONSUME = "consume"  # the journal of a run that removes its sources
MODE = "mode"  # empty, and removed at once: shows the mode that plain creation gives here
ONLY_COPY = "only-copy"  # the part file of such a run; cannot be written again


def helper_path(target: Path, suffix: str) -> Path:
    """The path of the helper file of `target` with this suffix."""
    return Path(_helper_stem(target) + suffix)


def _helper_stem(target: Path) -> str:
    """A helper's path without its suffix; not by pathlib, which is slow, because every opened file needs it."""
    folder, name = os.path.split(target)
    digest = sha256(os.fsencode(name)).hexdigest()[:24]
    return os.path.join(folder, f".gguftool-{digest}.")


def undo_path(target: Path) -> Path:
    """The undo journal of a change in place of `target`."""
    return helper_path(target, UNDO)


def set_journal_path(first_shard: Path) -> Path:
    """The journal of a set while its files get their names; engines open the set by `first_shard`."""
    return helper_path(first_shard, SET)


def only_copy_path(target: Path) -> Path:
    """The part file of `target` in a run that removes its sources."""
    return helper_path(target, ONLY_COPY)


def consume_path(anchor: Path) -> Path:
    """The journal of a run that removes its sources, for an output that the user calls `anchor`."""
    return helper_path(anchor, CONSUME)


def is_being_published(first_shard: Path) -> bool:
    """Whether the set of `first_shard` is half old, half new."""
    return _holds_something(_helper_stem(first_shard) + SET)


def _holds_something(journal: str) -> bool:
    """Whether a journal exists and is not empty; an empty one is finished, but could not be removed.

    Raises `SourceError` if it must not be trusted: readers must not continue as if it did not exist.
    """
    try:
        return _trusted_status(journal).st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=journal) from error


def _trusted_status(journal: str) -> os.stat_result:
    """The status of a journal; raise `SourceError` if it must not be trusted."""
    status = os.lstat(journal)
    path = Path(journal)
    reason = distrust(path, status, twin=helper_path(path, PART))
    if reason is not None:
        raise SourceError(reason, source=journal)
    return status


def refuse_unfinished(path: Path) -> None:
    """Raise `SourceError` if a change in place of `path`, or the publishing of its set, did not finish."""
    stem = _helper_stem(path)
    if os.path.lexists(stem + UNDO):
        with contextlib.suppress(FileNotFoundError):
            _trusted_status(stem + UNDO)
        raise SourceError(
            "a change in place of this file did not finish; "
            f"{command_line('edit', str(path), '--recover')} restores the old file",
            source=str(path),
        )
    if _holds_something(stem + SET):
        raise SourceError(
            "the files of this set are half old, half new: publishing them did not finish; "
            f"{command_line('edit', str(path), '--recover')} finishes it",
            source=str(path),
        )
