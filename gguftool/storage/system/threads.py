"""What all threads of one piece of copying share: bytes done, the first error, the word to stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

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
