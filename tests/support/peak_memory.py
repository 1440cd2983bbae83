"""A program that runs a command and prints its peak memory."""

from __future__ import annotations

MEASURED = """
import sys
from gguftool.cli.app import app
try:
    app(sys.argv[1:], prog_name="gguftool")
except SystemExit as done:
    assert not done.code, done.code
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this process only
print(int(peak.split()[1]) * 1024, file=sys.stderr)
"""
