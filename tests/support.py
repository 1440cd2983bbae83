"""Helpers that tests import by name: where fixtures are, how the command line is run.

They are not in conftest.py, because folders below have one of their own and the name would be ambiguous.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
FIXTURES = REPO / "fixtures"


def run_gguftool(
    *args: object, timeout: float = 60, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[bytes]:
    command = [*prefix, sys.executable, "-m", "gguftool", *map(str, args)]
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(command, check=False, timeout=timeout, env=environment(), **options)  # type: ignore[call-overload,no-any-return]


def environment() -> dict[str, str]:
    """The environment of subprocesses: this checkout's package, whatever is installed."""
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}


def one_error_line(stderr: bytes) -> str:
    """Return the error's only line; fail where there is more on standard error, or a traceback."""
    lines = stderr.decode("utf-8").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gguftool: error: "), lines
    return lines[0]
