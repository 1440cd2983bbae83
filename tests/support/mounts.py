"""Mount file systems during a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting needs root: run as root")


@contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[Path]:
    at.mkdir()
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(
            f"cannot mount here: {done.stderr.decode().strip()}; as root with CAP_SYS_ADMIN: modprobe -a loop vfat"
        )
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
