"""Run the commands that a page of the documentation shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.command import environment


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of `kind` on a page."""
    return re.findall(rf"```{kind}\n(.+?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def steps(page: Path) -> list[tuple[str, str]]:
    """Every command of a page, and what it is said to print."""
    parts = [part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def run_page(page: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run the commands of a page in `folder`; yield each with what is shown, and what it printed to both streams."""
    for command, shown in steps(page):
        line = re.sub(r"^gguftool\b", f"'{sys.executable}' -m gguftool", command)
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment(), text=True, timeout=60, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        yield command, shown, done.stdout
