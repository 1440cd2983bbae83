"""Run the command line as a user does, and read its one-line error."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from typer.main import get_command

from gguftool.cli.app import app
from tests.support.paths import REPO


def commands() -> dict[str, Any]:
    """Name -> command, or group of commands, as built from its module."""
    return {name: row.load() for name, row in get_command(app).commands.items()}  # type: ignore[attr-defined]


def run_gguftool(
    *args: object, timeout: float = 60, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[bytes]:
    command = [*prefix, sys.executable, "-m", "gguftool", *map(str, args)]
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(command, check=False, timeout=timeout, env=environment(), **options)  # type: ignore[call-overload,no-any-return]


def environment() -> dict[str, str]:
    """The environment for subprocesses: this checkout's package, whatever is installed."""
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}


def one_error_line(stderr: bytes) -> str:
    """The one line of the error; fail if standard error has more, or a traceback."""
    lines = stderr.decode("utf-8").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gguftool: error: "), lines
    return lines[0]
