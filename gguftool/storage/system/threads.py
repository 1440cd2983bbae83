"""What all threads of one piece of copying share: bytes done, the first error, the word to stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

Progress = Callable[[int], None]

GRACE = 2.0  # seconds that a thread gets to notice that all is over; one that waits for a dead server is left behind


class Watch(Protocol):
    """Is told where bytes have landed in the target."""

    def landed(self, offset: int, nbytes: int) -> None:
        """Bytes were written; called in whichever thread wrote them."""

    def pulse(self) -> None:
        """Time goes by; called in the thread that asked for the copying, many times a second."""


class Tally:
    """Counts bytes and keeps the first error; `progress` and `watch.pulse` are called in the thread that made it."""

    def __init__(self, progress: Progress, watch: Watch | None = None) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._progress = progress
        self._watch = watch
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._unreported = 0
        self.copied = 0  # bytes that were written, not shared

    def guard(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work` for a thread of its own: its error is kept, and stops all."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self.error = self.error or error
                self.stop.set()

        return guarded

    def landed(self, offset: int, nbytes: int, *, shared: bool = False) -> None:
        """Count bytes that are at `offset` of the target now; the owner's thread passes on what all have done."""
        if self._watch is not None:
            self._watch.landed(offset, nbytes)
        with self._lock:
            self._unreported += nbytes
            self.copied += 0 if shared else nbytes
        if threading.get_ident() == self._owner:
            self.report()

    def report(self) -> None:
        """Tell what was done since the last time."""
        with self._lock:
            nbytes, self._unreported = self._unreported, 0
        if nbytes:
            self._progress(nbytes)
        if self._watch is not None:
            self._watch.pulse()

    def wait(self, threads: Sequence[threading.Thread]) -> None:
        """Wait until `threads` are done or all has to stop, in steps so that signals are heard and progress goes on."""
        for thread in threads:
            while thread.is_alive() and not self.stop.is_set():
                thread.join(0.1)
                self.report()


def join_all(threads: Sequence[threading.Thread], seconds: float = math.inf) -> None:
    """After the stop: wait for `threads`, at most `seconds` for all of them."""
    end = time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(0.1, left))


def start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start `count` threads, or as many as the system allows; fewer only cost time."""
    started = []
    for _ in range(count):
        thread = threading.Thread(target=work, name="copying", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        started.append(thread)
    return started


# --- pool ----------------------------------------------------------------------------------------------------------


class Pool(ThreadPoolExecutor):
    """Takes as many threads as the system allows (ulimit -u, limits of containers), at last the caller's own.

    Where a thread cannot be started its work is in the queue already, for one of the others. This method of the library
    is not a public one: where a later Python has another, the limit is an error again, as in the plain pool.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                self._work_queue.get_nowait().run()


# --- parallel ------------------------------------------------------------------------------------------------------


T = TypeVar("T")
U = TypeVar("U")


def in_parallel(items: Sequence[T], work: Callable[[T], U], jobs: int) -> list[U]:
    """Return `work` of every item, in order; raise the error of the first item that has one.

    The threads do not keep the program from ending: an interrupt leaves them behind in their requests.
    """
    results: dict[int, U] = {}
    errors: dict[int, BaseException] = {}
    numbers = iter(range(len(items)))
    taking = threading.Lock()

    def run() -> None:
        while not errors:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(items[number])
            except BaseException as error:
                errors[number] = error

    threads = start(run, min(jobs, len(items)))
    if not threads:
        run()  # no thread to be had
    for thread in threads:
        while thread.is_alive():  # in steps, so that a signal is heard on every system
            thread.join(0.2)
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(items))]
