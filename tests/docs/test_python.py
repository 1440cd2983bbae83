"""docs/python.md shows what its programs print: each runs alone, in a scratch copy of the fixtures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gguftool
from tests.support.command import environment
from tests.support.paths import FIXTURES, REPO

PAGE = (REPO / "docs" / "python.md").read_text(encoding="utf-8")
# Title, program and what it prints, of each task.
TASKS = re.findall(r"^## (.+?)\n\n```python\n(.+?)```\n\n```text\n(.+?)```\n", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_every_program_has_a_title_and_an_output() -> None:
    assert len(TASKS) == PAGE.count("```python") >= 10
    assert PAGE.count("```") == 4 * len(TASKS)


@pytest.mark.parametrize(("program", "shown"), [task[1:] for task in TASKS], ids=[task[0] for task in TASKS])
def test_a_program_prints_what_the_page_shows(program: str, shown: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "fixtures", ignore=shutil.ignore_patterns("zoo", "sets", "*.py"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == shown


def test_the_page_names_only_what_there_is() -> None:
    words = set(re.findall(r"`([A-Za-z]+(?:_\w+)?)(?:\(|`)", PAGE.partition("## Names")[2]))
    named = {word for word in words if "_" in word or word[0].isupper()}
    assert len(named) > 10
    assert named - set(gguftool.__all__) == set()
    assert set(re.findall(r"gguftool\.(\w+)", PAGE)) <= set(gguftool.__all__)


@pytest.mark.slow
def test_the_programs_pass_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed: pip install mypy")
    file = tmp_path / "page.py"
    functions = [
        f"def task_{number}() -> None:\n{textwrap.indent(task[1], '    ')}" for number, task in enumerate(TASKS)
    ]
    file.write_text("\n".join(functions), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", str(file)],
        cwd=REPO, capture_output=True, text=True, timeout=600, check=False,
        env=environment() | {"MYPY_CACHE_DIR": str(tmp_path / "cache"), "MYPYPATH": str(REPO)},
    )  # fmt: skip
    assert done.stdout.startswith("Success"), done.stdout
