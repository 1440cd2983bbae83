"""Calls that are waited for so long and no longer, because what they call into has no deadline of its own.

A socket's timeout starts anew with every byte, and a resolver has none: a server that trickles its head, or a name that
is never answered, is left behind at the deadline.  The threads that make the calls are used again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from gguftool.storage.sources.broken import BrokenError

T = TypeVar("T")


def in_time(call: Callable[[], T], seconds: float, late: Callable[[T], None] = lambda result: None) -> T:
    """Return what `call` returns; raise `BrokenError` after `seconds` and give `late` what it returns then.

    `call` goes on in a thread that nobody waits for, also when the program ends.
    """
    task = _Task(call, late)
    _Helper.give(task)
    try:
        done, result = task.outcome.get(timeout=seconds)
    except BaseException as error:  # nothing came in time, or the user interrupts
        task.leave()
        if isinstance(error, queue.Empty):
            raise BrokenError(f"no answer within {seconds:.3g} s") from None
        raise
    if not done:
        raise result
    return cast("T", result)


class _Task:
    """A call that another thread makes, and that whoever asked for it may leave."""

    def __init__(self, call: Callable[[], Any], late: Callable[[Any], None]) -> None:
        self.outcome: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._call = call
        self._late = late
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
            self._late(result[1])

    def leave(self) -> None:
        """Wait no longer: what comes, or has just come, is for `late`."""
        with self._lock:
            self._left = True
        if not self.outcome.empty() and (found := self.outcome.get())[0]:
            self._late(found[1])


class _Helper:
    """A thread that makes one call after the other: starting one for each of a thousand small requests costs more."""

    _idle: ClassVar[deque[_Helper]] = deque()

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="asking", daemon=True).start()

    @classmethod
    def give(cls, task: _Task) -> None:
        """Let an idle helper, or a new one, run `task`."""
        try:
            helper = cls._idle.pop()
        except IndexError:
            try:
                helper = cls()
            except RuntimeError:  # no more threads to be had
                task.run()
                return
        helper._tasks.put(task)

    def _work(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # of closing what came too late
                self._tasks.get().run()
            self._idle.append(self)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Helper._idle.clear)  # threads stay in the parent
