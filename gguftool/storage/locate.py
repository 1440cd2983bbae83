"""From what a user names (a file, a folder, a glob) to sources."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from gguftool.errors import SourceError
from gguftool.storage.local import open_local
from gguftool.storage.source import Source


def open_source(name: str) -> Source:
    """Open what `name` says; raise `SourceError` where it cannot be read."""
    _refuse_remote(name)
    return open_local(Path(name))


def is_folder(name: str) -> bool:
    """Whether `name` is a folder."""
    return os.path.isdir(name)


def expand(name: str, suffix: str) -> tuple[str, ...]:
    """Return the file names that `name` stands for: itself, a folder's files ending in `suffix`, or a glob's matches.

    A name that exists is taken literally, so that a file called ``a[1].gguf`` can be opened. Raises `SourceError` where
    nothing matches.
    """
    _refuse_remote(name)
    if is_folder(name):
        found = siblings(os.path.join(name, ""), suffix)
        if not found:
            raise SourceError(f"this folder holds no *{suffix} file", source=name)
        return found
    if not os.path.lexists(name) and glob.has_magic(name):
        found = tuple(sorted(match for match in glob.glob(name) if not is_folder(match)))
        if not found:
            raise SourceError("no file matches this pattern", source=name)
        return found
    return (name,)


def siblings(name: str, suffix: str) -> tuple[str, ...]:
    """Return the names of the visible files ending in `suffix` in the folder of `name`, sorted."""
    folder = os.path.dirname(name)
    try:
        with os.scandir(folder or ".") as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(suffix) and not entry.name.startswith(".") and entry.is_file()
            ]
    except OSError as error:
        raise SourceError(f"cannot list this folder: {error.strerror}", source=folder or ".") from error
    return tuple(sorted(os.path.join(folder, entry) for entry in names))


def _refuse_remote(name: str) -> None:
    scheme, separator, _ = name.partition("://")
    if separator and scheme.isalnum():
        raise SourceError(f"{scheme}:// cannot be read by this version; download the file first", source=name)
