"""Run a blocking call with a timeout.

A library's own timeout covers a single read from a socket: a server that sends a byte now and then can hold such a call
forever. So the call runs in another thread, and the caller waits only for a limited time.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from gguftool.storage.sources.transport_errors import TransportError

T = TypeVar("T")


def call_with_timeout(call: Callable[[], T], seconds: float, on_late: Callable[[T], None] = lambda result: None) -> T:
    """Return the result of `call`; after `seconds` raise `TransportError`, and give a later result to `on_late`.

    A late `call` continues in a thread that nobody waits for, even when the program ends.
    """
    task = _Task(call, on_late)
    _Worker.give(task)
    try:
        done, result = task.outcome.get(timeout=seconds)
    except BaseException as error:  # nothing came in time, or the user interrupts
        task.leave()
        if isinstance(error, queue.Empty):
            raise TransportError(f"no answer within {seconds:.3g} s") from None
        raise
    if not done:
        raise result
    return cast("T", result)


class _Task:
    """A call that another thread makes, and that its caller may abandon."""

    def __init__(self, call: Callable[[], Any], on_late: Callable[[Any], None]) -> None:
        self.outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._call = call
        self._on_late = on_late
        self._lock = threading.Lock()
        self._left = False

    def run(self) -> None:
        result: tuple[bool, Any]
        try:
            result = True, self._call()
        except BaseException as error:
            result = False, error
        with self._lock:
            if not self._left:
                self.outcome.put(result)
                return
        if result[0]:
            self._on_late(result[1])

    def leave(self) -> None:
        """Stop waiting: pass a result that arrives later, or has just arrived, to `on_late`."""
        with self._lock:
            self._left = True
        if not self.outcome.empty() and (found := self.outcome.get())[0]:
            self._on_late(found[1])


class _Worker:
    """A thread that makes one call after another: a new thread for each of a thousand small requests costs more."""

    _idle: ClassVar[deque[_Worker]] = deque()

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="asking", daemon=True).start()

    @classmethod
    def give(cls, task: _Task) -> None:
        """Let an idle worker, or a new one, run `task`."""
        try:
            worker = cls._idle.pop()
        except IndexError:
            try:
                worker = cls()
            except RuntimeError:  # the system refuses more threads
                task.run()
                return
        worker._tasks.put(task)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # raised when a late answer is closed
                self._tasks.get().run()
            self._idle.append(self)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Worker._idle.clear)  # threads stay in the parent
