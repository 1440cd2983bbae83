"""A cache of remote files' heads in a folder that the user names: opening a file again costs one byte.

A cached head is used only if the server says that the file is the same version; a request for one byte checks that.
The folder holds nothing secret from anybody who may read the files: names without logins and queries, and heads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

from gguftool.errors import SourceError
from gguftool.record import record
from gguftool.storage.system.names import open_file, replace_file, unlink
from gguftool.storage.system.ownership import is_own

VARIABLE = "GGUFTOOL_CACHE"  # the environment variable that names the folder
_VERSION = "gguftool head 1"
_MAX_ENTRY = 257 << 20  # bytes; no larger head is parsed
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)


@record
class CachedHead:
    """The first bytes of a file, and its identity at that time."""

    identity: str
    head: bytes


def load(name: str) -> CachedHead | None:
    """The cached head of the file called `name`, or None if it is absent or damaged."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    try:
        with open(open_file(path := _entry_path(folder, name), _FLAGS, follow=False), "rb") as file:
            status = os.fstat(file.fileno())
            if not (stat.S_ISREG(status.st_mode) and is_own(path, status)) or status.st_size > _MAX_ENTRY:
                return None
            entry, head = json.loads(file.readline()), file.read()
        good = entry["version"] == _VERSION and entry["name"] == name
        if good and entry["sha256"] == hashlib.sha256(head).hexdigest() and isinstance(entry["identity"], str):
            return CachedHead(identity=entry["identity"], head=head)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def store(name: str, identity: str, head: bytes) -> None:
    """Cache the head of a file, if the user wants that; if the disk is full, it is fetched again next time.

    Raises `SourceError` if the folder cannot be created.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise SourceError(f"cannot cache heads here: {error.strerror}", source=folder) from error
    entry = {"version": _VERSION, "name": name, "identity": identity, "sha256": hashlib.sha256(head).hexdigest()}
    with contextlib.suppress(OSError):
        fd, made = tempfile.mkstemp(dir=folder, prefix=".head-")  # readable only by its owner
        try:
            with open(fd, "wb") as file:
                file.write(json.dumps(entry).encode() + b"\n" + head)
            replace_file(made, _entry_path(folder, name))
        except BaseException:
            unlink(made)
            raise


def _entry_path(folder: str, name: str) -> Path:
    return Path(folder, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".head")
