"""Entry point: signals, errors and exit codes.

0 fine; 1 differences or findings; 2 trouble; 130, 143, 129 after SIGINT, SIGTERM, SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from gguftool.cli.shared.console import ReaderGone, drop_stdout, fail, prepare_streams
from gguftool.cli.shared.signals import Interrupted, install, over
from gguftool.errors import GGUFToolError


def program() -> NoReturn:
    """Run the command line, then go at once: to take down what was loaded takes an eighth of a short command's time."""
    try:
        main()
    except SystemExit as done:  # standard output is flushed
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(int(done.code or 0))


def main() -> NoReturn:
    """Run the command line and exit."""
    prepare_streams()
    install()
    try:
        code = _flush(_run())
    except Interrupted as signalled:
        fail(f"stopped by {signal.Signals(signalled.number).name}; nothing was left under a final name")
        code = 128 + signalled.number
    except GGUFToolError as error:
        fail(error.headline, error.problems)
        code = 2
    except (ReaderGone, BrokenPipeError):
        drop_stdout()
        code = 141  # what a shell reports for a reader that went away: no error of ours
    except OSError as error:  # what prints help and version asks nobody
        drop_stdout()
        fail(f"{error.filename or 'standard output, or a file that the system does not name'}: {error.strerror}")
        code = 2
    except RecursionError:
        fail("the input is nested too deeply")
        code = 2
    code = _flush(code)
    if code < 128:  # after a signal, a second one still ends the run at once
        over()
    sys.exit(code)


def _run() -> int:
    from gguftool.cli.app import app

    try:
        app(prog_name="gguftool")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 2
    return 0


def _flush(code: int) -> int:
    """Flush standard output; what could not be written is trouble, not success."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
    except OSError as error:
        fail(f"standard output: {error.strerror}")
        drop_stdout()
        return 2
    return code
