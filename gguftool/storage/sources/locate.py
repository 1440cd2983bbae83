"""From what a user names (a file, a folder, a glob, a URL) to sources.

Names are strings. A name with a scheme is a URL, and is never given to functions for paths; what must treat both alike
asks here.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from gguftool.errors import SourceError
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.source import Source
from gguftool.storage.system.threads import in_parallel

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_HALF_A_SCHEME = re.compile(r"(hf|https?):", re.ASCII)  # paths that a pathlib.Path makes of addresses begin so
_WEB = ("http", "https")
_OPENED_AT_ONCE = 8

T = TypeVar("T")
U = TypeVar("U")


def scheme_of(name: str) -> str:
    """Return the scheme of a URL, in small letters; empty for a path."""
    match = _SCHEME.match(name) if "://" in name else None  # sets have thousands of names
    return match[1].lower() if match else ""


def is_url(name: str) -> bool:
    """Whether `name` is a URL; a ``file://`` one is not, but stands for a path."""
    return scheme_of(name) not in ("", "file")


def can_list(name: str) -> bool:
    """Whether the folder of `name` can be listed: not on a web server."""
    return scheme_of(name) not in _WEB


def without_query(name: str) -> str:
    """Return the part of `name` that names the file."""
    return re.split(r"[?#]", name, maxsplit=1)[0] if scheme_of(name) in _WEB else name


def renamed(name: str, new: str) -> str:
    """Return `name` with `new` for the part that names the file: what the server wants beside stays."""
    return new + name[len(without_query(name)) :]


def base_name(name: str) -> str:
    """Return the last part of a path or URL."""
    return unquote(without_query(name).rpartition("/")[2]) if is_url(name) else os.path.basename(name)


def open_source(name: str, first_read: int | None = None) -> Source:
    """Open what `name` says; raise `SourceError` where it cannot be read.

    Opening a remote file fetches its first `first_read` bytes, for which the first read is expected to ask.
    """
    scheme = scheme_of(name)
    if not is_url(name):
        path = _path_of(name)
        if _HALF_A_SCHEME.match(path) and not os.path.lexists(path):
            raise SourceError("there is no such file; an address has // behind its scheme, as hf://", source=name)
        return open_local(Path(path))
    options = {} if first_read is None else {"first_read": first_read}
    if scheme in ("hf", *_WEB):
        from gguftool.storage.sources import http, hub

        hub.refuse_offline(name)
        name = canonical(name)
        if scheme_of(name) == "hf":
            return hub.open_hub(name, **options)
        return http.open_http(http.web_origin(name), **options)
    from gguftool.storage.sources.fsspec_source import FsspecSource

    return FsspecSource(name)


def canonical(name: str) -> str:
    """Return the one spelling of `name`: pages of the Hub become its files, paths lose doubled slashes."""
    scheme = scheme_of(name)
    if scheme in _WEB:
        from gguftool.storage.sources import hub

        return hub.from_page(scheme + name[len(scheme) :])
    if scheme == "hf":
        from gguftool.storage.sources import hub

        return str(hub.parse_hub(name))
    if is_url(name):
        return name
    name = _path_of(name)
    return os.path.join(os.path.dirname(name), os.path.basename(name))


def is_folder(name: str) -> bool:
    """Whether `name` is a folder."""
    return not is_url(name) and os.path.isdir(_path_of(name))


def expand(name: str, suffix: str) -> tuple[str, ...]:
    """Return the names that `name` stands for: itself, a folder's files ending in `suffix`, or a glob's matches.

    A name that exists is taken literally, so that a file called ``a[1].gguf`` can be opened. Raises `SourceError` where
    nothing matches.
    """
    name = canonical(name)
    if is_url(name):
        return _expand_remote(name, suffix)
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


def _expand_remote(name: str, suffix: str) -> tuple[str, ...]:
    scheme = scheme_of(name)
    if scheme in _WEB or (name.endswith(suffix) and not glob.has_magic(name)):
        return (name,)
    if scheme == "hf":
        from gguftool.storage.sources import hub

        hub.refuse_offline(name)
        names, found = hub.list_hub(name), hub.matches(name) if glob.has_magic(name) else ()
    else:
        from gguftool.storage.sources import fsspec_source

        if not glob.has_magic(name) and not fsspec_source.is_folder(name):
            return (name,)
        names, found = (), fsspec_source.matches(name) if glob.has_magic(name) else fsspec_source.list_folder(name)
    if name in names:
        return (name,)
    folder = name.rstrip("/") + "/"
    found = found or tuple(other for other in names if other.startswith(folder) and "/" not in other[len(folder) :])
    chosen = tuple(other for other in found if other.endswith(suffix))
    if not chosen:
        raise SourceError(_nothing_there(name, names, suffix), source=name)
    return chosen


def _nothing_there(name: str, names: Sequence[str], suffix: str) -> str:
    """Say what lies elsewhere in a repository, by folders."""
    if glob.has_magic(name):
        return "no file matches this pattern"
    below = [other for other in names if other.startswith(name.rstrip("/") + "/") and other.endswith(suffix)]
    folders = sorted({other.rpartition("/")[0] for other in below})
    text = f"there is no such file, and no folder with *{suffix} files"
    return f"this folder holds no *{suffix} file itself; these do: {', '.join(folders[:20])}" if folders else text


def siblings(name: str, suffix: str) -> tuple[str, ...]:
    """Return the names of the visible files ending in `suffix` in the folder of `name`, sorted.

    None on a web server, which cannot be asked.
    """
    if not is_url(name):
        return _siblings_of_path(_path_of(name), suffix)
    folder = name.rpartition("/")[0] + "/"
    names: Iterable[str] = ()
    if scheme_of(name) == "hf":
        from gguftool.storage.sources import hub

        names = hub.list_hub(name)
    elif can_list(name):
        from gguftool.storage.sources import fsspec_source

        names = fsspec_source.list_folder(folder)
    inside = (other[len(folder) :] for other in names if other.startswith(folder))
    return tuple(
        sorted(folder + base for base in inside if base.endswith(suffix) and "/" not in base and base[:1] != ".")
    )


def _siblings_of_path(name: str, suffix: str) -> tuple[str, ...]:
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


def for_each(items: Sequence[T], work: Callable[[T], U], *, remote: bool) -> list[U]:
    """Return `work` of every item, in order; several at a time where they are `remote`. Raises the first error."""
    if not remote or len(items) < 2:
        return [work(item) for item in items]
    return in_parallel(items, work, _OPENED_AT_ONCE)


def _path_of(name: str) -> str:
    if scheme_of(name) != "file":
        return name
    parts = urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise SourceError("names another machine; expected file:///path", source=name)
    return unquote(name.partition("://")[2][len(parts.netloc) :])
