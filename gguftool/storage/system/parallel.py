"""Doing one thing to many, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from gguftool.storage.system.threads import start

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
