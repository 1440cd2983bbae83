"""Run the command line and decode what it prints."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import REPO


def run_text(*args: str) -> subprocess.CompletedProcess[str]:
    root = REPO
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "gguftool", *args]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
