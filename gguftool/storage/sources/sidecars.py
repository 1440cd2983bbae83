"""Files beside an output: names of helper files, and whether a change or a publishing is unfinished."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from gguftool.errors import SourceError

_UNDO, _SET = "undo", "set"  # suffixes of journals


def helper_path(target: Path, suffix: str) -> Path:
    """Return the path beside `target` of a helper file: short whatever the target's name, and found again by it."""
    return Path(_helper_stem(target) + suffix)


def _helper_stem(target: Path) -> str:
    """Return a helper's name but for its suffix, without the cost of pathlib: every file that is opened asks for it."""
    folder, name = os.path.split(target)
    digest = sha256(os.fsencode(name)).hexdigest()[:24]
    return os.path.join(folder, f".gguftool-{digest}.")


def undo_path(target: Path) -> Path:
    """Return where the undo journal of a change in place of `target` lies."""
    return helper_path(target, _UNDO)


def set_journal_path(gate: Path) -> Path:
    """Return where the journal lies while a set is published whose engines start from `gate`."""
    return helper_path(gate, _SET)


def is_being_published(gate: Path) -> bool:
    """Whether the set behind `gate` is between old and new; an empty journal is one that could not be removed."""
    return _holds_something(_helper_stem(gate) + _SET)


def _holds_something(journal: str) -> bool:
    try:
        return os.lstat(journal).st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", source=journal) from error


def refuse_unfinished(path: Path) -> None:
    """Raise `SourceError` where a change in place of `path`, or the publishing of the set behind it, did not finish."""
    stem = _helper_stem(path)
    if os.path.lexists(stem + _UNDO):
        raise SourceError(
            "a change in place of this file did not finish; 'gguftool edit FILE --recover' gives the old file back",
            source=str(path),
        )
    if _holds_something(stem + _SET):
        raise SourceError(
            "the files of this set are half old, half new: publishing them did not finish; "
            "'gguftool edit FILE --recover' finishes it",
            source=str(path),
        )


PART, ONLY_COPY = "part", "only-copy"  # suffixes: of what can be written again, and of what cannot (see `consume`)


def only_copy_path(target: Path) -> Path:
    """Return where the part file of `target` lies while sources are removed."""
    return helper_path(target, ONLY_COPY)


def consume_path(anchor: Path) -> Path:
    """Return where the journal lies for an output that the user calls `anchor`."""
    return helper_path(anchor, "consume")
