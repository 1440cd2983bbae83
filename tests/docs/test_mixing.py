"""docs/mixing.md shows what its commands print: they run in a scratch copy of the fixtures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import commands, environment
from tests.support.paths import FIXTURES, REPO

PAGE = REPO / "docs" / "mixing.md"


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.+?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def _steps() -> list[tuple[str, str]]:
    """Return every command of the page with what it is said to print."""
    parts = [part for block in _blocks("console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def run_page(folder: Path) -> list[tuple[str, str, str]]:
    """Run the page's commands in `folder`; return command, what is shown, what was printed (both streams in turn)."""
    shutil.copytree(FIXTURES / "mix", folder / "fixtures" / "mix")
    for name, text in zip(("mix.recipe", "wrong.recipe"), _blocks("text"), strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    results = []
    for command, shown in _steps():
        line = re.sub(r"^gguftool\b", f"'{sys.executable}' -m gguftool", command)
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment(), text=True, timeout=60, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        results.append((command, shown, done.stdout))
    return results


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum: apt-get install coreutils")
    results = run_page(tmp_path)
    assert len(results) > 12
    for command, shown, printed in results:
        assert printed == shown, f"{command} prints\n{printed}"


@pytest.mark.slow
def test_nothing_that_the_page_says_fails_was_written(tmp_path: Path) -> None:
    run_page(tmp_path)
    assert not (tmp_path / "wrong.gguf").exists()
    assert (tmp_path / "mix.gguf").exists()


def test_the_pages_options_exist() -> None:
    known = {
        option
        for command in commands().values()
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
    }
    assert set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8"))) <= known
