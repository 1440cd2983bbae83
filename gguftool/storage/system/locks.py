"""Exclusive locks that tell a live run from a killed one: the system releases them when the process ends."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from gguftool.storage.system import windows

    def lock(fd: int) -> bool:
        """Take the exclusive lock of an open file; return False if another run holds it."""
        return windows.lock(fd)

else:
    import fcntl

    def lock(fd: int) -> bool:
        """Take the exclusive lock of an open file; return False if another run holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks: O_EXCL must suffice
        return True
