"""Threads that share one piece of work, on systems that may refuse to start any (ulimit -u, container limits).

`start` starts up to the requested number of threads. `Background` runs a list of calls while the caller continues;
`in_parallel` runs one function over items and waits for the results. If no thread can be started, the caller does the
work. All threads are daemons: one that hangs in a dead connection does not keep the program alive.
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

_STEP = 0.1  # seconds; joins wait in steps, so that signals are noticed on every system


def start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start `count` threads that run `work`, or as many as the system allows; with fewer, the work takes longer."""
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
    """Wait for `threads`, at most `seconds` in total."""
    end = time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(_STEP, left))


class CancelledError(Exception):
    """Work ended early because of a stop signal; never the cause of a failure."""


class Background(Generic[T]):
    """Run `calls` in up to `jobs` threads, in their order, while the caller continues.

    The first error and `cancel` set `stop`: then no further call starts, and calls that check it raise
    `CancelledError`.
    """

    def __init__(self, calls: Sequence[Callable[[], T]], jobs: int, stop: threading.Event | None = None) -> None:
        self._calls = calls
        self._numbers = iter(range(len(calls)))
        self._next_lock = threading.Lock()
        self._stop = stop or threading.Event()
        self._results: dict[int, T] = {}
        self._errors: dict[int, BaseException] = {}
        self._threads = start(self._run, min(jobs, len(calls)))

    def wait(self) -> list[T]:
        """Wait for the results, in the order of the calls; raise the error of the first failed call."""
        if not self._threads:
            self._run()  # the system refused every thread
        join_all(self._threads)
        if self._errors:
            raise self._errors[min(self._errors, key=lambda at: (isinstance(self._errors[at], CancelledError), at))]
        return [self._results[number] for number in range(len(self._calls))]

    def cancel(self) -> None:
        """Start no further call, and wait for running ones."""
        self._stop.set()
        join_all(self._threads)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._next_lock:
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

    An interrupt does not wait for running calls.
    """
    return Background([partial(work, item) for item in items], jobs).wait()
