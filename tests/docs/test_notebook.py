"""The notebook in docs/ runs from the top to its end and prints what stands in it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import environment
from tests.support.paths import FIXTURES, REPO

NOTEBOOK = REPO / "docs" / "tour.ipynb"
# In a process of its own: the packages of Jupyter warn, and a warning is an error here.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=120, resources={"metadata": {"path": "docs"}}).execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "<not text>")) for output in cell["outputs"])


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="no nbclient or ipykernel: .venv/bin/pip install -e '.[dev]'",
)
def test_the_notebook_prints_what_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copytree(FIXTURES / "mix", tmp_path / "fixtures" / "mix")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path / "done.ipynb")],
        cwd=tmp_path, env=environment() | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    executed = cells(tmp_path / "done.ipynb")
    assert [printed(cell) for cell in executed] == [printed(cell) for cell in cells(NOTEBOOK)]
    assert sum(bool(printed(cell)) for cell in executed) > 4


def test_the_notebook_holds_outputs_of_one_run_and_nothing_of_the_machine() -> None:
    held = cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in held] == list(range(1, len(held) + 1))
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert [word for word in ("/home/", "/tmp/", "/root/", "Traceback") if word in text] == []
