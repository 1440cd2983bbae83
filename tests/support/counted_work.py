"""Measures of work that do not depend on the machine and its load: number of calls, and growth with the size."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType

# Four times the size: linear work takes about 4 times as long, quadratic work 16 times. The limit lies between.
FACTOR, LINEAR = 4, 8


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
    small, large = [], []
    for _ in range(runs):
        for times, times_size in ((small, size), (large, FACTOR * size)):
            started = time.thread_time()
            work(times_size)
            times.append(time.thread_time() - started)
    return min(large) / min(small)
