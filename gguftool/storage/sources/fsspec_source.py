"""Files behind any other scheme (s3, gs, az, sftp, memory ...), through fsspec.

fsspec's file systems differ in how they treat a wrong range, and some return fewer bytes without an error. So the
length of every read is checked, and after a copy, the file's version is compared with that at opening.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

from gguftool.errors import SourceError, printable
from gguftool.storage.sources import transport
from gguftool.storage.sources.source import FIRST_READ, AbsentError, ChangedError, RemoteSource
from gguftool.storage.sources.urls import shown

_PARALLEL = 8
# Names that file systems use for a value that changes when a file changes.
_VERSIONS = (
    *("etag", "e_tag", "md5hash", "content_md5", "crc32c", "generation", "version_id", "versionid", "checksum"),
    *("mtime", "lastmodified", "last_modified", "updated", "created"),
)

T = TypeVar("T")


class FsspecSource(RemoteSource):
    """A file of an fsspec file system, pinned by its size and the version that the file system reports."""

    stream_step: ClassVar[int] = 8 << 20  # bytes of one request

    def __init__(self, url: str) -> None:
        self._name = shown(url)
        self._scheme = url.partition("://")[0]
        self._fs, self._path = _file_system(url)
        self._turn: AbstractContextManager[Any] = nullcontext() if self._fs.async_impl else threading.Lock()
        self._size, self._version = self._status()

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self._size

    @property
    def first_read(self) -> int:
        """The default: opening fetches nothing."""
        return FIRST_READ

    @property
    def answer(self) -> str:
        """Size and scheme: file systems report no more."""
        return f"{self.size:,} bytes, through fsspec's {printable(self._scheme, 40)}"

    def keep_head(self, head: bytes) -> None:
        """Keep nothing: fsspec has its own caches."""

    @property
    def identity(self) -> str:
        """Place, size and version."""
        return f"fsspec:{self.name}:{self._version}:{self.size}"

    @property
    def parallelism(self) -> int:
        """Several if the file system works asynchronously, else one at a time."""
        return _PARALLEL if self._fs.async_impl else 1

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise SourceError(
                f"{length:,} bytes requested, which reach past the end of {self.size:,} bytes",
                source=self.name,
                offset=offset,
            )
        if not length:
            return b""
        data = self._call(lambda: self._fs.cat_file(self._path, start=offset, end=offset + length))
        if not isinstance(data, bytes) or len(data) != length:
            found = f"{len(data):,}" if isinstance(data, bytes) else "no"
            raise SourceError(
                f"{length:,} bytes were requested, but {found} came: its server or fsspec's file system for it "
                "does not honour ranges; download the file first",
                source=self.name,
                offset=offset,
            )
        return data

    def check_unchanged(self) -> None:
        """Raise `ChangedError` if size or version differ from those at opening."""
        now = self._status()
        if now != (self.size, self._version):
            raise ChangedError("changed since it was opened; start again", source=self.name)

    def _status(self) -> tuple[int, str]:
        self._call(self._fs.invalidate_cache)
        info = self._call(lambda: self._fs.info(self._path))
        if info.get("type") == "directory":
            raise SourceError("is a directory; expected a file", source=self.name)
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise SourceError("its file system does not report its size; download the file first", source=self.name)
        return size, self._version_of(info)

    def _version_of(self, info: dict[str, Any]) -> str:
        tags = {key.lower().replace("-", "_"): value for key, value in info.items() if value}
        parts = [f"{key}={tags[key]}" for key in _VERSIONS if key in tags]
        try:
            with self._turn:
                parts.append(f"modified={self._fs.modified(self._path)}")
        except Exception:  # many file systems cannot tell
            pass
        return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:24] if parts else ""

    def _call(self, call: Callable[[], T]) -> T:
        with self._turn:
            return _translate_errors(call, self.name)


def list_folder(url: str) -> tuple[str, ...]:
    """The names of the files in the folder `url`, sorted."""
    fs, path = _file_system(url)
    entries = _translate_errors(lambda: fs.ls(path, detail=True), shown(url))
    return tuple(sorted(_named(url, fs, path, entry["name"]) for entry in entries if entry.get("type") == "file"))


def glob_files(url: str) -> tuple[str, ...]:
    """The names of the files that match the pattern `url`, sorted."""
    fs, path = _file_system(url)
    found = _translate_errors(lambda: fs.glob(path, detail=True), shown(url))
    return tuple(sorted(_named(url, fs, path, name) for name, entry in found.items() if entry.get("type") == "file"))


def is_directory(url: str) -> bool:
    """Whether `url` is a folder."""
    fs, path = _file_system(url)
    return bool(_translate_errors(lambda: fs.isdir(path), shown(url)))


def _named(url: str, fs: Any, path: str, found: str) -> str:
    """The name of the path `found`, spelled as `url` spells its own `path`: with the host, if it has one."""
    bare = url.rstrip("/")
    if path and bare.endswith(path.rstrip("/")) and found.startswith("/") == path.startswith("/"):
        return bare.removesuffix(path.rstrip("/")) + found
    return str(fs.unstrip_protocol(found))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
        from fsspec.registry import known_implementations
    except ImportError:
        raise SourceError(f"URLs need the extra 'hub'; {transport.INSTALL}", source=shown(url)) from None
    scheme = url.partition("://")[0]
    if scheme not in known_implementations and scheme not in fsspec.available_protocols():
        raise SourceError(f"{printable(scheme, 40)}:// is not a scheme that fsspec knows", source=shown(url))
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        hint = known_implementations.get(scheme, {}).get("err", str(error))
        raise SourceError(f"{printable(scheme, 40)}:// cannot be read yet: {hint}", source=shown(url)) from None
    except Exception as error:
        raise _problem(error, shown(url)) from None
    return fs, path


def _translate_errors(call: Callable[[], T], name: str) -> T:
    """Call into a file system; raise its errors as one line without their text, which may hold credentials."""
    try:
        return call()
    except Exception as error:
        raise _problem(error, name) from None


def _problem(error: Exception, name: str) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return AbsentError("no such file", source=name)
    if isinstance(error, PermissionError):
        return SourceError("access is denied; are credentials set?", source=name)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return SourceError(f"cannot be read: {printable(str(reason), 120)}", source=name)
