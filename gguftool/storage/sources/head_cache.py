"""Heads of remote files kept in a folder, where the user asks for it: looking a second time costs a byte.

A kept head is used only while the server says that the file is the same version, which a request for one byte finds
out.  The folder holds what anybody may know who may read the files: names without logins and queries, and heads.
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

FOLDER = "GGUFTOOL_CACHE"  # the environment variable that names it
_VERSION = "gguftool head 1"
_MOST = 257 << 20  # bytes of an entry; no larger head is parsed
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@record
class Kept:
    """The first bytes of a file, and the identity that it had."""

    identity: str
    head: bytes


def find(name: str) -> Kept | None:
    """Return what is kept of the file called `name`; None where nothing is, or it is damaged."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    try:
        with open(os.open(_place(folder, name), _FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not _is_ours(status) or status.st_size > _MOST:
                return None
            said, head = json.loads(file.readline()), file.read()
        good = said["version"] == _VERSION and said["name"] == name
        if good and said["sha256"] == hashlib.sha256(head).hexdigest() and isinstance(said["identity"], str):
            return Kept(identity=said["identity"], head=head)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def keep(name: str, identity: str, head: bytes) -> None:
    """Keep the head of a file, where that is asked for; a full disk only means that it is fetched again.

    Raises `SourceError` where the folder cannot be made.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise SourceError(f"cannot keep heads here: {error.strerror}", source=folder) from error
    said = {"version": _VERSION, "name": name, "identity": identity, "sha256": hashlib.sha256(head).hexdigest()}
    with contextlib.suppress(OSError):
        fd, made = tempfile.mkstemp(dir=folder, prefix=".head-")  # readable by its owner alone
        try:
            with open(fd, "wb") as file:
                file.write(json.dumps(said).encode() + b"\n" + head)
            os.replace(made, _place(folder, name))
        except BaseException:
            os.unlink(made)
            raise


def _is_ours(status: os.stat_result) -> bool:
    """Whether a file is a regular one of this user: what others put there may describe any head."""
    return stat.S_ISREG(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _place(folder: str, name: str) -> Path:
    return Path(folder, hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".head")
