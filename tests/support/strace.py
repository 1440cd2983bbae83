"""Run the command line under strace and list its calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.command import run_gguftool

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
_CALLS = (
    "pread64,preadv,preadv2,pwrite64,write,copy_file_range,fsync,fdatasync,syncfs,link,linkat,rename,renameat,unlink,"
    "ftruncate,flock"
)


def traced(arguments: Sequence[object], log: Path, inject: str = "") -> subprocess.CompletedProcess[bytes]:
    options = ("-f", "-y", "-qq", "-o", str(log), *(("-e", f"inject={inject}") if inject else ()))
    return run_gguftool(*arguments, prefix=("strace", *options, "-e", f"trace={_CALLS}"))


def events(log: Path, folder: Path) -> list[tuple[str, str]]:
    """(call, base name of its file or folder) for every call within `folder`, in order."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
        if match is None or str(folder) not in line:
            continue
        call, rest = match.groups()
        paths = re.findall(rf"[<\"]({re.escape(str(folder))}[^>\"]*)[>\"]", rest)
        if not paths or " = -1 " in line:
            continue
        about = paths[-1] if call in ("link", "linkat", "rename", "renameat", "copy_file_range") else paths[0]
        found.append((call, os.path.relpath(about, folder)))
    return found
