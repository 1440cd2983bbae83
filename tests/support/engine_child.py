"""Run a program that loads the real llama.cpp, which may abort, in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


def run_engine(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `command`, which may fail; return what it printed, and its exit status."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        errors="replace",
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # or a debugger starts where it aborts
    )
