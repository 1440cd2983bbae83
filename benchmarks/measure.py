"""Run commands, time them in alternating rounds, and judge ratios against bars.

Only ratios are judged. Both sides take turns in one run, so a slow machine is slow for both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MIB = 1 << 20
PYTHON = sys.executable

_TRAMPOLINE = """
import os, resource, sys
code = os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:])
print()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code != 0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One measured figure and its bar: a lower limit if `at_least`, else an upper limit."""

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


def run(command: Sequence[str | Path]) -> str:
    """Run `command` from the top of the checkout and return its output; raise `RuntimeError` if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def peak_of(command: Sequence[str | Path]) -> int:
    """The peak resident memory of `command` in bytes, as the kernel counts it for the whole process.

    A bare interpreter starts it, because the kernel counts the memory of the starting process too.
    """
    return int(run((PYTHON, "-I", "-S", "-c", _TRAMPOLINE, *command)).splitlines()[-1]) << 10


def cpu_of(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> float:
    """Run `command` in `folder`; return the seconds of processor time that it took, the system's part included.

    Raises `RuntimeError` if it fails.
    """
    arguments, quiet = [str(part) for part in command], subprocess.DEVNULL
    process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def wall(action: Callable[[], object]) -> float:
    """The seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, str]:
    """Measure both in turn, `rounds` times; return the two medians and all figures as text."""
    pairs = [(first(), second()) for _ in range(rounds)]
    ones, others = ([pair[side] for pair in pairs] for side in (0, 1))
    shown = " vs ".join(" ".join(f"{value:.3g}" for value in values) for values in (ones, others))
    return statistics.median(ones), statistics.median(others), f"seconds in {rounds} rounds: {shown}"
