"""How long to retry a read: as long as bytes arrive.

Progress counts, not time: a slow line may take days for a large file. But a read gives up if the server sends nothing,
or next to nothing, for `seconds`, whether they are spent on silence, errors or waiting.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from gguftool.errors import SourceError

VARIABLE = "GGUFTOOL_HTTP_PATIENCE"
_SECONDS = 20.0  # with start-up and a last attempt, a command ends within 30 s of the last progress
_STEP = 64 << 10  # bytes within `seconds` that count as progress
_ATTEMPTS = 8  # in a row without progress
FEW_ATTEMPTS = 3  # if no server was ever reached: a mistyped name, a proxy that is off, no network
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds between attempts
_IDLE_TIMEOUT = 15.0  # seconds without a byte that end an attempt


def configured() -> float:
    """Seconds without progress after which a read gives up, from the environment; raise `SourceError` if invalid."""
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else _SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86400:
        raise SourceError(f"{VARIABLE} is '{text[:40]}'; expected seconds, above 0 and at most 86400")
    return seconds


@dataclass(slots=True)
class RetryBudget:
    """The time and the attempts that one read has left before it gives up."""

    seconds: float = field(default_factory=configured)
    _deadline: float = 0.0
    _failures: int = 0
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds left before giving up."""
        return self._deadline - time.monotonic()

    @property
    def idle_timeout(self) -> float:
        """Seconds without a byte that end an attempt."""
        return max(0.05, min(_IDLE_TIMEOUT, self.seconds / 3, self.left))

    def advance(self, nbytes: int) -> None:
        """Count received bytes; enough of them restart the clock."""
        self._bytes += nbytes
        if self._bytes >= _STEP:
            self._bytes, self._failures = 0, 0
            self._deadline = time.monotonic() + self.seconds

    def wait(self, problem: SourceError, retry_after: str | None = None, attempts: int = _ATTEMPTS) -> None:
        """Wait before the next attempt; raise `problem` if there is none left."""
        self._failures += 1
        asked = _seconds(retry_after)
        if asked is None:
            pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._failures - 1)) * random.uniform(0.5, 1)
        else:
            pause = asked + random.uniform(0, 0.1)
        if self._failures >= attempts or pause >= self.left:
            if asked is not None and asked >= self.seconds:
                problem.message += f"; it asks to wait {asked:,.0f} s, more than the {self.seconds:.0f} s of {VARIABLE}"
            elif self._failures > 1:
                problem.message += f"; given up after {self._failures} attempts"
            raise problem
        time.sleep(pause)


def _seconds(text: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if not text:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(int(text[:9]))
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
