"""The measures of work tell linear work from quadratic work, and count calls."""

from __future__ import annotations

import sys

from tests.support.counted_work import FACTOR, LINEAR, calls_of, growth


def test_growth_tells_linear_from_quadratic() -> None:
    assert growth(lambda size: sum(range(size)), 100_000) < LINEAR
    assert growth(lambda size: [sum(range(size)) for _ in range(size)], 300, runs=2) > LINEAR
    assert FACTOR < LINEAR < FACTOR**2


def test_calls_are_those_of_python_and_c() -> None:
    before = sys.getprofile()
    few = calls_of(lambda: len(""))
    assert calls_of(lambda: [len("") for _ in range(100)]) >= few + 99
    assert sys.getprofile() is before
