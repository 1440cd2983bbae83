"""The console blocks of a page: its commands, what it shows of their output, and the folder where they run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.support.paths import FIXTURES


def console_examples(page: Path) -> list[tuple[str, str]]:
    """A page's console commands, each with what they are said to print."""
    steps = []
    for block in re.findall(r"```console\n(.+?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            steps.append((command, output))
    return steps


def shown_pattern(shown: str) -> str:
    """A line of dots alone stands for any lines; how many rules check has is not what a page is about."""
    any_lines = re.escape(shown).replace(re.escape("...\n"), "(?:.*\n)*")
    return re.sub(r"\d+((?:\\ |\\\n)+rules;)", r"\\d+\1", any_lines)


def lay_out_demo(folder: Path) -> None:
    """Copy what the pages' examples name into `folder`."""
    (folder / "fixtures").mkdir()
    for name in ("demo.gguf", "demo.imatrix.dat"):
        shutil.copy(FIXTURES / name, folder / "fixtures")
