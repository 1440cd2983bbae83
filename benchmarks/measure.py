"""Running commands, timing them in alternating rounds, and judging ratios against bars.

Only ratios are judged: both sides of one run in turn, so that a machine that is slow today is slow for both.
This module imports nothing heavy: the memory of the process that starts another one counts in the other's peak.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MIB = 1 << 20
PYTHON = sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One measured figure and its bar; `at_least` bars are to be exceeded, the others not to be."""

    what: str
    value: float
    bar: float
    unit: str
    detail: str
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the bar is kept."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        bar = f"{'at least' if self.at_least else 'at most'} {self.bar:g}{self.unit}"
        return f"{self.what}: {self.value:.3g}{self.unit} ({bar}) {'ok' if self.ok else 'MISSED'}\n    {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished command: what it printed and the peak of its resident memory in bytes."""

    output: str
    peak: int


def run(command: Sequence[str | Path]) -> Run:
    """Run `command` from the top of the checkout; raise `RuntimeError` with what it said where it fails.

    The peak is what the kernel counted for the whole process (wait4, ru_maxrss).
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen([str(part) for part in command], cwd=REPO, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{command} ended with {process.returncode}: {err.read().decode(errors='replace')}")
        return Run(output=out.read().decode(), peak=usage.ru_maxrss << 10)


def wall(action: Callable[[], object]) -> float:
    """Return the seconds that `action` took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, str]:
    """Take both measures in turn, `rounds` times; return the two medians and all figures as text."""
    pairs = [(first(), second()) for _ in range(rounds)]
    ones, others = ([pair[side] for pair in pairs] for side in (0, 1))
    shown = " vs ".join(" ".join(f"{value:.3g}" for value in values) for values in (ones, others))
    return statistics.median(ones), statistics.median(others), f"seconds in {rounds} rounds: {shown}"
