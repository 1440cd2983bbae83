"""Entry point: signals, errors and exit codes.

0 fine; 1 differences or findings; 2 trouble; 130, 143, 129 after SIGINT, SIGTERM, SIGHUP.
"""

from __future__ import annotations

import gc
import signal
import sys
from typing import NoReturn

from gguftool.cli.shared.console import ReaderGone, drop_stdout, fail, prepare_streams, write_version
from gguftool.cli.shared.signals import Interrupted, ignore_signals, install
from gguftool.errors import GGUFToolError

# Allocations between two runs of the garbage collector. With Python's default of 700 it walks the objects made at
# start-up, which all stay, dozens of times: a seventh of a short command's time (docs/decisions.md).
_GC_THRESHOLD = 50_000


def program() -> NoReturn:
    """Run the command line as the whole process, with the garbage collector set for a short run."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        main()
    finally:
        gc.freeze()


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
        code = 141  # what a shell reports when the reader goes away: not our error
    except OSError as error:  # help and version are printed without `write`
        drop_stdout()
        fail(f"{error.filename or 'standard output, or a file that the system does not name'}: {error.strerror}")
        code = 2
    except RecursionError:
        fail("the input is nested too deeply")
        code = 2
    code = _flush(code)
    if code < 128:  # after a signal, a second one still ends the run at once
        ignore_signals()
    sys.exit(code)


def _run() -> int:
    if sys.argv[1:] in (["--version"], ["-V"]):
        write_version()
        return 0
    from gguftool.cli.app import run  # noqa: PLC0415 - imports typer, four fifths of the time that --version takes

    return run()


def _flush(code: int) -> int:
    """Flush standard output; return 2 if the rest cannot be written."""
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
