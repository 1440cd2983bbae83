"""What a signal does: it ends the run, unless the outputs are being given their names already."""

from __future__ import annotations

import signal
from types import FrameType

from gguftool.cli.shared.console import remark

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_publishing = False
_stopping = False


class Interrupted(BaseException):
    """A signal asked the program to stop; everything unwinds, so that part files go."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install() -> None:
    """Turn the signals that ask a program to stop into `Interrupted`."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)


def ignore_signals() -> None:
    """Ignore further signals during shutdown: the exit code is known."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def publishing() -> None:
    """From now on the run goes to its end: exit codes of a signal would deny that the outputs are there."""
    global _publishing  # noqa: PLW0603 - signals are the process's
    _publishing = True


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _stopping  # noqa: PLW0603
    signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends it at once
    if _stopping:
        return  # another kind, as systems send two on the way down: undoing what the first interrupted goes on
    if not _publishing:
        _stopping = True
        raise Interrupted(number)
    remark(f"{signal.Signals(number).name} came when all was written; a second one ends the run at once")
