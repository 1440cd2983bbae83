"""Faults for writers: count every system call of a run, then fail each of them, or kill the run there.

The calls are replaced where Python code finds them (`os`, `fcntl`, `fileio.syncfs`, or `windows`), so the faults hit
what the executor does, in its order. Calls that only make data durable do nothing here; real runs under strace show
that they are made, and in which order.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gguftool.storage.system import fileio

if sys.platform == "win32":
    from gguftool.storage.system import windows

    # Where Windows does what these calls do elsewhere.
    _OWN = {
        "open_file": "open",
        "read_into": "preadv",
        "write_some": "pwrite",
        "set_size": "ftruncate",
        "move": "rename",
        "lock": "flock",
    }
    _PLACES: list[tuple[Any, str, str]] = [(windows, attribute, name) for attribute, name in _OWN.items()]
else:
    import fcntl

    _PLACES = [(fcntl, "flock", "flock"), (fcntl, "ioctl", "ioctl"), (fileio, "syncfs", "fsync")]

_ERRORS = ("EIO", "ENOSPC", "EPERM")
# Call -> the ways it can fail. "short": fewer bytes than requested; "zero": no bytes, as at the end of a file.
FAULTS: dict[str, tuple[str, ...]] = {
    "open": ("EIO", "EMFILE", "EACCES", "ENOSPC"),
    "close": ("EIO",),
    "read": ("EIO",),
    "pread": ("EIO", "short", "zero"),
    "preadv": ("EIO", "short", "zero"),
    "write": ("ENOSPC", "EIO", "short"),
    "pwrite": ("ENOSPC", "EIO", "EFBIG", "EDQUOT", "short", "zero"),
    "pwritev": ("ENOSPC", "EIO", "short"),
    "copy_file_range": ("EIO", "ENOSPC", "EXDEV", "EPERM", "EOPNOTSUPP", "EINVAL", "short", "zero"),
    "sendfile": ("EIO", "ENOSPC", "EINVAL", "short", "zero"),
    "posix_fallocate": ("ENOSPC", "EIO", "EOPNOTSUPP"),
    "ftruncate": _ERRORS,
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "EINVAL"),
    "fdatasync": ("EIO", "ENOSPC"),
    "link": (*_ERRORS, "EXDEV", "EMLINK"),
    "unlink": _ERRORS,
    "rename": _ERRORS,
    "replace": _ERRORS,
    "mkdir": _ERRORS,
    "rmdir": ("EIO",),
    "ioctl": ("EOPNOTSUPP", "EXDEV", "ENOTTY", "EINVAL", "EINTR", "EIO", "ENOSPC"),
    "lseek": ("EINVAL", "EIO", "EOPNOTSUPP"),
    "fstatvfs": ("EIO", "ENOSYS"),
    "fstat": ("EIO",),
    "fchmod": ("EIO", "EPERM"),
    "lstat": ("EIO", "EACCES"),
    "stat": ("EIO",),
    "statvfs": ("EIO", "ENOSYS"),
    "listdir": ("EIO",),
    "scandir": ("EIO",),
}
KILLED = 137  # exit status of a process that killed itself, on Windows
_SYNCS = {"fsync", "fdatasync"}  # called by fileio, without an effect that a test in this process can see


class _Boundary:
    """The length of a short call: half of the request, but at least one byte."""

    @staticmethod
    def short(name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cut = list(args)
        at = {"copy_file_range": 2, "sendfile": 3}.get(name, 1)
        if name in ("pwrite", "write"):
            view = memoryview(args[1])
            cut[1] = view[: max(1, len(view) // 2)]
        elif name in ("preadv", "pwritev"):
            view = memoryview(args[1][0] if isinstance(args[1], list) else args[1])
            half = view[: max(1, len(view) // 2)]
            cut[1] = [half] if isinstance(args[1], list) else half
        else:
            cut[at] = max(1, args[at] // 2)
        return real(*cut, **kwargs)

    @staticmethod
    def zero(name: str) -> Any:
        return b"" if name == "pread" else 0


@dataclass
class Injector:
    """Count calls; fail the `nth` call of `name` (from 0) as `kind` says, with `persistent` all later ones too.

    Calls are identified by name and not by position in the run, because threads change the order from run to run. With
    `kill_at`, the process is killed at that position instead.
    """

    name: str = ""
    nth: int = 0
    kind: str = ""
    persistent: bool = False
    kill_at: int | None = None
    calls: list[str] = field(default_factory=list)
    injected: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return f"{self.name} number {self.nth}: {self.kind}{' from then on' if self.persistent else ''}"

    def call(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            position, number = len(self.calls), self.calls.count(name)
            self.calls.append(name)
        if position == self.kill_at:
            if sys.platform == "win32":
                os._exit(KILLED)  # no handler runs, no buffer is written
            os.kill(os.getpid(), signal.SIGKILL)
        if name != self.name or number < self.nth or (number > self.nth and not self.persistent):
            return None if name in _SYNCS else real(*args, **kwargs)
        self.injected += 1
        if self.kind == "short":
            return _Boundary.short(name, real, args, kwargs)
        if self.kind == "zero":
            return _Boundary.zero(name)
        if name == "close":
            real(*args, **kwargs)  # Linux frees the descriptor whatever close returns
        raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)))

    @contextmanager
    def active(self) -> Iterator[Injector]:
        """Replace the system calls while the block runs."""
        places = [(os, name, name) for name in FAULTS if hasattr(os, name)] + _PLACES
        saved = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in places]
        try:
            for (module, attribute, name), (_, _, real) in zip(places, saved, strict=True):
                setattr(module, attribute, self._wrapped(name, real))
            yield self
        finally:
            for module, attribute, real in saved:
                setattr(module, attribute, real)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.call(name, real, args, kwargs)

        return wrapper


def count_calls(run: Callable[[], object]) -> list[str]:
    """Run without a fault; return the names of the calls, in order."""
    with Injector().active() as injector:
        run()
    return injector.calls


def every_fault(calls: list[str]) -> Iterator[Injector]:
    """One injector for each way that each of `calls` can fail, once or persistently."""
    for name, count in Counter(calls).items():
        for nth in range(count):
            for kind in FAULTS.get(name, ()):
                yield Injector(name=name, nth=nth, kind=kind)
                if kind != "short" and nth + 1 < count:
                    yield Injector(name=name, nth=nth, kind=kind, persistent=True)


def killed_at(at: int, run: Callable[[], object]) -> bool:
    """Run in a child that SIGKILLs itself at call `at`; return whether it was killed (it may end before)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads about, from Python 3.12 on
        child = os.fork()
    if not child:
        try:
            with Injector(kill_at=at).active():
                run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
