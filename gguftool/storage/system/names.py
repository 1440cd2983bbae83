"""Opening, naming and removing files, with the same meaning on every system.

POSIX: the functions of `os`. Windows: files are opened so that they can be renamed and removed while open; renames are
durable and wait for virus scanners (see `windows.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    from gguftool.storage.system import windows

# Windows cannot open folders, and its renames are durable by themselves.
HAVE_FOLDER_DESCRIPTORS = sys.platform != "win32"
# A rename onto an existing file fails, so that publishing needs no hard link.
RENAME_NEVER_REPLACES = sys.platform == "win32"
# Some names are devices, and some characters are not allowed in names.
NAMES_HAVE_RULES = sys.platform == "win32"
# By default; file systems of these systems can be set up to distinguish case.
IGNORES_CASE = sys.platform in ("win32", "darwin")

# Names that are devices on Windows, with any extension.
_PORTS = (f"{port}{number}" for port in ("com", "lpt") for number in "123456789\u00b9\u00b2\u00b3")  # superscripts, too
_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$", *_PORTS})
_FORBIDDEN = frozenset('<>:"|?*')

if sys.platform == "win32":

    def open_file(path: str | Path, flags: int, mode: int = 0o777, *, follow: bool = True) -> int:
        """As `os.open`, for bytes, not inherited by child processes; without `follow` a link is refused or seen."""
        return windows.open_file(path, flags, follow=follow)

    def rename(path: str | Path, target: str | Path) -> None:
        """As `os.rename`; an existing `target` is an error."""
        windows.move(path, target, replace=False)

    def replace_file(path: str | Path, target: str | Path) -> None:
        """As `os.replace`."""
        windows.move(path, target, replace=True)

    def unlink(path: str | Path) -> None:
        """As `os.unlink`."""
        windows.remove(path)

else:

    def open_file(path: str | Path, flags: int, mode: int = 0o777, *, follow: bool = True) -> int:
        """As `os.open`, for bytes, not inherited by child processes; without `follow` a link is refused or seen."""
        return os.open(path, flags | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), mode)

    def rename(path: str | Path, target: str | Path) -> None:
        """As `os.rename`."""
        os.rename(path, target)

    def replace_file(path: str | Path, target: str | Path) -> None:
        """As `os.replace`."""
        os.replace(path, target)

    def unlink(path: str | Path) -> None:
        """As `os.unlink`."""
        os.unlink(path)


def open_unnamed(folder: Path) -> int | None:
    """Open a file without a name in `folder`, gone when it is closed; None if the system has none there."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
    return None


def name_problem(name: str) -> str | None:
    """Why Windows does not allow a file called `name`, or None."""
    stem = name.partition(".")[0].rstrip(" ").lower()
    if stem in _DEVICES:
        return f"'{stem.upper()}' is the name of a device on Windows"
    if name.endswith((" ", ".")):
        return "Windows drops a blank or a dot at the end of a name"
    bad = sorted(_FORBIDDEN & set(name)) or sorted(c for c in name if ord(c) < 32)
    return f"Windows does not allow {bad[0]!r} in a name" if bad else None
