"""Measures of work that do not depend on the machine and its load: number of calls, and growth with the size."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from types import FrameType

# Eight times the size: linear work takes about 8 times as long, quadratic work 64 times. The limit lies between.
FACTOR, LINEAR = 8, 24


def calls_of(function: Callable[[], object]) -> int:
    """Count the calls of Python and C functions while `function` runs, itself included."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def growth(work: Callable[[int], object], size: int, runs: int = 5) -> float:
    """The ratio of the times for `work(FACTOR * size)` and `work(size)`; linear work is below `LINEAR`.

    Measures processor time of this thread: the fastest of `runs` alternating runs of each size. Choose `size` so that
    `work(size)` takes a few milliseconds.
    """
    small: list[float] = []
    large: list[float] = []
    gc.collect()
    gc.disable()  # how much there is to collect depends on earlier tests
    try:
        for _ in range(runs):
            small.append(_thread_seconds(work, size))
            large.append(_thread_seconds(work, FACTOR * size))
    finally:
        gc.enable()
    return min(large) / min(small)


def _thread_seconds(work: Callable[[int], object], size: int) -> float:
    started = time.thread_time()
    work(size)
    return time.thread_time() - started
