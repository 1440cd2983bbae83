"""The real llama.cpp, asked in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROMPT = "Once upon a time"
N_TOKENS = 16
TIMEOUT = 120  # seconds for one run of the engine or the tool; the slowest seen took 2

_SCRIPT = Path(__file__).with_name("greedy.py")


class EngineError(Exception):
    """The engine did not load or run the model."""


def greedy(path: Path) -> str:
    """Return the text with which the model at `path` greedily continues the prompt."""
    command = [sys.executable, str(_SCRIPT), str(path), PROMPT, str(N_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, errors="replace")
    if done.returncode != 0:
        # The log may come after the traceback: its thread writes when it gets to run.
        raise EngineError(f"exit status {done.returncode}: {done.stderr[-8000:]}")
    return json.loads(done.stdout.splitlines()[-1])
