"""Signals: they end the run, unless the outputs are already getting their final names."""

from __future__ import annotations

import signal
from types import FrameType

from gguftool.cli.shared.console import remark

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_publishing = False
_stopping = False


class Interrupted(BaseException):
    """A signal stops the program; the stack unwinds, so that part files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install() -> None:
    """Turn the signals that stop a program into `Interrupted`."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)


def ignore_signals() -> None:
    """Ignore further signals during shutdown: the exit code is known."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def publishing() -> None:
    """Finish the run from now on: the exit code of a signal would deny that the outputs exist."""
    global _publishing  # noqa: PLW0603 - signals are the process's
    _publishing = True


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _stopping  # noqa: PLW0603
    signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends it at once
    if _stopping:
        return  # systems send two kinds when they shut down: continue to clean up after the first
    if not _publishing:
        _stopping = True
        raise Interrupted(number)
    remark(f"{signal.Signals(number).name} came when everything was written; a second one ends the run at once")
