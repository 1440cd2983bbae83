"""Threads that do one piece of work together, on systems that may refuse to start any (ulimit -u, container limits).

What needs several threads starts them here: `start` takes as many as it gets, `Background` runs a list of calls while
the caller goes on.  All threads are daemons: one that hangs in a dead connection does not keep the program alive.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_STEP = 0.1  # seconds between two looks at a thread, so that signals are noticed on every system


def start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start `count` threads that run `work`, or as many as the system allows; fewer only cost time."""
    started = []
    for _ in range(count):
        thread = threading.Thread(target=work, name="gguftool", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        started.append(thread)
    return started


def join_all(threads: Sequence[threading.Thread], seconds: float = math.inf) -> None:
    """Wait for `threads`, at most `seconds` for all of them."""
    end = time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(_STEP, left))


class CancelledError(Exception):
    """Work ended early because it was told to stop; never the reason why."""


class Background(Generic[T]):
    """Run `calls` in up to `jobs` threads, in their order, while the caller goes on.

    `stop` is set by the first error and by `cancel`: no further call starts, and calls that look at it raise
    `CancelledError`.
    """

    def __init__(self, calls: Sequence[Callable[[], T]], jobs: int, stop: threading.Event | None = None) -> None:
        self._calls = calls
        self._numbers = iter(range(len(calls)))
        self._taking = threading.Lock()
        self._stop = stop or threading.Event()
        self._results: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._threads = start(self._run, min(jobs, len(calls)))

    def wait(self) -> list[T]:
        """Wait for the results, in the order of the calls; raise the error of the first call that failed."""
        if not self._threads:
            self._run()  # the system starts no thread
        join_all(self._threads)
        if self._errors:
            raise self._errors[min(self._errors, key=lambda at: (isinstance(self._errors[at], CancelledError), at))]
        return [self._results[number] for number in range(len(self._calls))]

    def cancel(self) -> None:
        """Start no further call, and wait for those that run."""
        self._stop.set()
        join_all(self._threads)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._taking:
                number = next(self._numbers, None)
            if number is None:
                return
            try:
                self._results[number] = self._calls[number]()
            except BaseException as error:
                self._errors[number] = error
                self._stop.set()


def in_parallel(items: Sequence[T], work: Callable[[T], U], jobs: int) -> list[U]:
    """Call `work` on every item, `jobs` at a time, and return the results in order; raise the first item's error.

    An interrupt leaves the threads behind in their calls.
    """
    return Background([partial(work, item) for item in items], jobs).wait()
