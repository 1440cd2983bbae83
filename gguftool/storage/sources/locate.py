"""From names that users give (a file, a folder, a glob, a URL) to sources.

Names are strings. A name with a scheme is a URL, and functions for paths never get one. `SCHEMES` maps a scheme to the
`Backend` for its names; every function here uses it, so no other place looks at schemes. Backends import the modules
that talk to servers only when a name needs them: local commands load no HTTP library.
"""

from __future__ import annotations

import glob
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from gguftool.errors import SourceError
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.source import FIRST_READ, Source

if TYPE_CHECKING:
    from gguftool.storage.sources.hub import Hub

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_HALF_A_SCHEME = re.compile(r"(hf|https?):", re.ASCII)  # a pathlib.Path makes such paths of URLs
_OPENED_AT_ONCE = 8
PACKED = ".zbst"  # the suffix of a file that is compressed as a whole, with zstd or bzip2

T = TypeVar("T")
U = TypeVar("U")


def scheme_of(name: str) -> str:
    """The scheme of a URL, in lower case; empty for a path."""
    match = _SCHEME.match(name) if "://" in name else None  # sets have thousands of names
    return match[1].lower() if match else ""


# --- backends --------------------------------------------------------------------------------------------------------


class Backend(ABC):
    """How the names of a scheme are expanded, and how their files are opened."""

    can_list: ClassVar[bool] = True  # whether the folder of a file can be listed
    has_query: ClassVar[bool] = False  # whether the text after ? or # is not part of the file's name

    def canonical(self, name: str) -> str:
        """The one spelling of `name`, possibly under another scheme."""
        return name

    @abstractmethod
    def open(self, name: str, first_read: int) -> Source:
        """Open the file `name` and fetch its first `first_read` bytes if they are remote; raise `SourceError`."""

    @abstractmethod
    def expand(self, name: str, suffix: str) -> tuple[str, ...]:
        """The names that the canonical `name` stands for, see `expand`; raise `SourceError` if nothing matches."""

    @abstractmethod
    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:
        """The visible files ending in `suffix` in the folder of `name`, sorted; empty if it cannot be listed."""


class LocalBackend(Backend):
    """Paths, and ``file://`` URLs that stand for them."""

    def canonical(self, name: str) -> str:
        """The path without double slashes before its last part."""
        path = _path_of(name)
        return os.path.join(os.path.dirname(path), os.path.basename(path))

    def open(self, name: str, first_read: int) -> Source:  # noqa: ARG002 - of every backend
        """Open a regular file."""
        path = _path_of(name)
        if _HALF_A_SCHEME.match(path) and not os.path.lexists(path):
            raise SourceError("no such file; an address has // after its scheme, as in hf://", source=name)
        return open_local(Path(path))

    def expand(self, name: str, suffix: str) -> tuple[str, ...]:
        """Expand a folder or a glob; a file that exists is taken literally."""
        if is_local_folder(name):
            found = self.siblings(os.path.join(name, ""), suffix)
            if not found:
                raise SourceError(f"this folder holds no *{suffix} file", source=name)
            return found
        if not os.path.lexists(name) and glob.has_magic(name):
            found = tuple(sorted(match for match in glob.glob(name) if not is_local_folder(match)))
            if not found:
                raise SourceError("no file matches this pattern", source=name)
            return found
        return (name,)

    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:
        """List the folder of a path."""
        folder = os.path.dirname(_path_of(name))
        try:
            with os.scandir(folder or ".") as entries:
                names = [
                    entry.name
                    for entry in entries
                    if has_suffix(entry.name, suffix) and not entry.name.startswith(".") and entry.is_file()
                ]
        except OSError as error:
            raise SourceError(f"cannot list this folder: {error.strerror}", source=folder or ".") from error
        return tuple(sorted(os.path.join(folder, entry) for entry in names))


class HubBackend(Backend):
    """``hf://`` names. One object sees one commit of each revision, see `hub`."""

    def __init__(self) -> None:
        self._hub: Hub | None = None
        self._loading = threading.Lock()

    def canonical(self, name: str) -> str:
        """The name without superfluous slashes, with its revision quoted."""
        from gguftool.storage.sources.hub import parse_hub

        return str(parse_hub(name))

    def open(self, name: str, first_read: int) -> Source:
        """Open a file at the commit that its revision has in this run."""
        hub = self._online(name)
        return hub.open(self.canonical(name), first_read)

    def expand(self, name: str, suffix: str) -> tuple[str, ...]:
        """Expand a folder or a glob by the listing of the repository."""
        if _is_one_file(name, suffix):
            return (name,)
        hub = self._online(name)
        names = hub.list(name)
        if name in names:
            return (name,)
        folder = name.rstrip("/") + "/"
        found = hub.glob(name) if glob.has_magic(name) else ()
        found = found or tuple(other for other in names if other.startswith(folder) and "/" not in other[len(folder) :])
        return _chosen(name, found, suffix, names)

    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:
        """Take the folder's files from the listing of the repository."""
        return _visible_beside(name, self._loaded().list(name), suffix)

    def _online(self, name: str) -> Hub:
        """The Hub, unless the environment forbids using the network."""
        from gguftool.storage.sources.hub import refuse_offline

        refuse_offline(name)
        return self._loaded()

    def _loaded(self) -> Hub:
        from gguftool.storage.sources.hub import Hub

        with self._loading:
            self._hub = self._hub or Hub()
            return self._hub


class WebBackend(Backend):
    """Any web server. Pages and links of the Hub are names of its files."""

    can_list = False
    has_query = True

    def canonical(self, name: str) -> str:
        """The ``hf://`` name of a page of the Hub, else the URL with its scheme in lower case."""
        from gguftool.storage.sources.hub import from_page

        scheme = scheme_of(name)
        return from_page(scheme + name[len(scheme) :])

    def open(self, name: str, first_read: int) -> Source:
        """Open with a first ranged GET."""
        from gguftool.storage.sources.http import open_http, web_origin
        from gguftool.storage.sources.hub import refuse_offline

        refuse_offline(name)
        link = self.canonical(name)
        if backend_of(link) is not self:
            return open_source(link, first_read)
        return open_http(web_origin(link), first_read)

    def expand(self, name: str, suffix: str) -> tuple[str, ...]:  # noqa: ARG002 - of every backend
        """Return the name: web servers list nothing."""
        return (name,)

    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:  # noqa: ARG002 - of every backend
        """Return nothing: web servers list nothing."""
        return ()


class FsspecBackend(Backend):
    """Every other scheme, through fsspec."""

    def open(self, name: str, first_read: int) -> Source:  # noqa: ARG002 - of every backend
        """Open without fetching anything."""
        from gguftool.storage.sources.fsspec_source import FsspecSource

        return FsspecSource(name)

    def expand(self, name: str, suffix: str) -> tuple[str, ...]:
        """Expand a folder or a glob by asking the file system."""
        from gguftool.storage.sources.fsspec_source import glob_files, is_directory, list_folder

        if _is_one_file(name, suffix):
            return (name,)
        if glob.has_magic(name):
            return _chosen(name, glob_files(name), suffix)
        return _chosen(name, list_folder(name), suffix) if is_directory(name) else (name,)

    def siblings(self, name: str, suffix: str) -> tuple[str, ...]:
        """List the folder of a URL."""
        from gguftool.storage.sources.fsspec_source import list_folder

        return _visible_beside(name, list_folder(name.rpartition("/")[0] + "/"), suffix)


_LOCAL, _WEB, _OTHER = LocalBackend(), WebBackend(), FsspecBackend()
SCHEMES: dict[str, Backend] = {"": _LOCAL, "file": _LOCAL, "hf": HubBackend(), "http": _WEB, "https": _WEB}


def backend_of(name: str) -> Backend:
    """The backend for `name`: fsspec's for every scheme that has no other."""
    return SCHEMES.get(scheme_of(name), _OTHER)


def _path_of(name: str) -> str:
    if scheme_of(name) != "file":
        return name
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise SourceError("names another machine; expected file:///path", source=name)
    return unquote(name.partition("://")[2][len(parts.netloc) :])


def _is_one_file(name: str, suffix: str) -> bool:
    """Whether a URL can only be that of a file: asking a server whether it is a folder costs a request."""
    return has_suffix(name, suffix) and not glob.has_magic(name)


def _chosen(name: str, found: Iterable[str], suffix: str, elsewhere: Sequence[str] = ()) -> tuple[str, ...]:
    """The names in `found` that end in `suffix`; if there are none, raise a `SourceError` that lists `elsewhere`."""
    chosen = tuple(other for other in found if has_suffix(other, suffix))
    if not chosen:
        raise SourceError(_nothing_there(name, elsewhere, suffix), source=name)
    return chosen


def _nothing_there(name: str, names: Sequence[str], suffix: str) -> str:
    """The text of an error; it names the folders of a repository that do have files."""
    if glob.has_magic(name):
        return "no file matches this pattern"
    below = [other for other in names if other.startswith(name.rstrip("/") + "/") and has_suffix(other, suffix)]
    folders = sorted({other.rpartition("/")[0] for other in below})
    text = f"no such file, and no folder with *{suffix} files"
    return f"this folder itself holds no *{suffix} file; these do: {', '.join(folders[:20])}" if folders else text


def _visible_beside(name: str, names: Iterable[str], suffix: str) -> tuple[str, ...]:
    folder = name.rpartition("/")[0] + "/"
    inside = (other[len(folder) :] for other in names if other.startswith(folder))
    return tuple(
        sorted(folder + base for base in inside if has_suffix(base, suffix) and "/" not in base and base[:1] != ".")
    )


# --- names -----------------------------------------------------------------------------------------------------------


def is_url(name: str) -> bool:
    """Whether `name` is a URL; a ``file://`` URL stands for a path, and counts as a path."""
    return backend_of(name) is not _LOCAL


def is_local_folder(name: str) -> bool:
    """Whether `name` is a folder on this machine."""
    return not is_url(name) and os.path.isdir(_path_of(name))


def can_list(name: str) -> bool:
    """Whether the folder of `name` can be listed: not on a web server."""
    return backend_of(name).can_list


def has_suffix(name: str, suffix: str) -> bool:
    """Whether `name` ends in `suffix`, compressed or not."""
    return name.endswith((suffix, suffix + PACKED))


def is_packed(name: str) -> bool:
    """Whether `name` is that of a compressed file, which is read decompressed."""
    return name.endswith(PACKED) or without_query(name).endswith(PACKED)


def without_query(name: str) -> str:
    """The part of `name` that names the file."""
    return re.split(r"[?#]", name, maxsplit=1)[0] if backend_of(name).has_query else name


def renamed(name: str, new: str) -> str:
    """`name` with `new` for the part that names the file; the query stays, as the server may need it."""
    return new + name[len(without_query(name)) :]


def base_name(name: str) -> str:
    """The last part of a path or URL."""
    if not is_url(name):
        return os.path.basename(name)
    from urllib.parse import unquote

    return unquote(without_query(name).rpartition("/")[2])


def unused_name(name: str) -> str:
    """`name`, or a similar name that no file has yet: for commands in messages, which refuse to overwrite."""
    stem, suffix = os.path.splitext(name)
    tries = (name, *(f"{stem}-{number}{suffix}" for number in range(2, 100)))
    return next((one for one in tries if not os.path.lexists(one)), name)


def new_name(name: str, prefix: str = "") -> str:
    """A free name for a new file made from `name`, next to it, or here if it is remote; `prefix`: of its shards."""
    stem = (prefix or name).removesuffix(".gguf")
    stem = base_name(stem) if is_url(name) else stem
    return unused_name(f"{stem}-new.gguf" if os.path.basename(stem) else f"{stem}model-new.gguf")


def canonical(name: str) -> str:
    """The one spelling of `name`: pages of the Hub become its files, paths lose double slashes."""
    return backend_of(name).canonical(name)


def expand(name: str, suffix: str) -> tuple[str, ...]:
    """The names that `name` stands for: itself, a folder's files ending in `suffix`, or a glob's matches.

    A name that exists is taken literally, so that a file called ``a[1].gguf`` can be opened. Raises `SourceError` if
    nothing matches.
    """
    name = canonical(name)
    return backend_of(name).expand(name, suffix)


def siblings(name: str, suffix: str) -> tuple[str, ...]:
    """The names of the visible files ending in `suffix` in the folder of `name`, sorted.

    Empty on a web server, which cannot list them.
    """
    return backend_of(name).siblings(name, suffix)


# --- sources ---------------------------------------------------------------------------------------------------------


def open_source(name: str, first_read: int = FIRST_READ) -> Source:
    """Open the file `name`; raise `SourceError` if it cannot be read.

    Opening a remote file fetches its first `first_read` bytes: the first read is expected to ask for these. A
    compressed file is read decompressed.
    """
    source = backend_of(name).open(name, first_read)
    if not is_packed(name):
        return source
    from gguftool.storage.sources.packed.packed_source import PackedSource

    return PackedSource(source)


def for_each(items: Sequence[T], work: Callable[[T], U], *, remote: bool) -> list[U]:
    """Call `work` on every item and return the results in order; several at once if `remote`. Raise the first error."""
    if not remote or len(items) < 2:
        return [work(item) for item in items]
    from gguftool.storage.system.threads import in_parallel

    return in_parallel(items, work, _OPENED_AT_ONCE)
