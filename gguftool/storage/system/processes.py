"""Child processes that are killed together with everything that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator

# Signals that come from outside a program, not from a fault of its own.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
FROM_OUTSIDE = tuple(getattr(signal, name) for name in _FROM_OUTSIDE if hasattr(signal, name))


def kill_tree(process: subprocess.Popen[bytes], members: list[int] | None = None) -> None:
    """Kill a process that leads a session of its own, the processes it started, and `members`; wait for it."""
    if sys.platform == "win32":
        # taskkill knows the tree by its parents; the process itself is killed whether or not that works.
        with contextlib.suppress(OSError):
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the number stays the group's while a member lives
        for pid in members or ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals that stop a program until the end of the block.

    This uses handlers, not a mask: a mask belongs to one thread, and the system may choose another thread. Python runs
    handlers only in the main thread, so other threads need nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    held = [number for number in FROM_OUTSIDE if number.name != "SIGKILL" and callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in held}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def forbid_core(pid: int) -> None:
    """Keep a process from leaving a core file, if the system can set that for another process."""
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def pin(pid: int, cores: Collection[int]) -> None:
    """Pin a process that just started, and so its future threads, to `cores`; to all cores if that is empty."""
    if sys.platform == "linux" and cores:
        with contextlib.suppress(OSError):  # it ended already, or a container takes a core away
            os.sched_setaffinity(pid, cores)


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    else:
        return list(range(os.cpu_count() or 1))
