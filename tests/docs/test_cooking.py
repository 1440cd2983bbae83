"""docs/cooking.md goes from a text to a mix that runs: its commands run here, on a small model and on SmolLM2.

The page shows what they print for SmolLM2, whose measurements take minutes: those outputs are compared with `-m soak`.
The same commands run on a model of 1 million weights in the gate; both need llama.cpp's tools.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.model.opening import open_model
from tests.support.command import environment
from tests.support.console_blocks import console_examples, shown_pattern
from tests.support.engine_tools import TOOLS, folder, tool
from tests.support.measure_cases import MODEL
from tests.support.paths import REPO
from tests.support.smollm2 import SMOLLM2_COMMAND, find_smollm2, lay_out, write_texts

PAGE = REPO / "docs" / "cooking.md"
WRITTEN = ("imatrix.gguf", "measure.jsonl", "mix.recipe", "mix.gguf", "README.md", "preset.gguf")
_NUMBER = re.compile(r"[\d,.]+(?:e-?\d+)?")


def _masked(text: str) -> str:
    """`text` without its numbers, and without what follows from them: widths of columns and of bars."""
    lines = (line if line == "..." else _NUMBER.sub("0", line) for line in text.splitlines())
    return "".join(re.sub(r"#+", "#", re.sub(r" +", " ", line)) + "\n" for line in lines)


def _environment() -> dict[str, str]:
    for name in TOOLS:
        tool(name)
    path = f"{folder()}{os.pathsep}{os.environ['PATH']}"
    return {**environment(), "PATH": path, "COLUMNS": "120"}


def walk(place: Path, timeout: float) -> Iterator[tuple[str, str, str]]:
    """Run the page's commands in `place`, which has model and texts: command, what is shown, what it printed."""
    variables = _environment()
    for command, shown in console_examples(PAGE):
        line = re.sub(r"^gguftool\b", f"'{sys.executable}' -m gguftool", command)
        # On a busy machine llama-perplexity may end with 0 before its last lines are written; `measure` runs it again.
        for _ in range(4 if command.startswith("llama-perplexity") else 1):
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line], cwd=place, env=variables, capture_output=True, text=True,
                timeout=timeout, check=False, errors="replace",
            )  # fmt: skip
            if done.returncode == 0:
                break
        assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
        yield command, shown, done.stdout


def _divergences(printed: str) -> list[float]:
    return [float(value) for value in re.findall(r"^Mean    KLD: +([\d.]+)", printed, flags=re.MULTILINE)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a small model and three texts, under the names of the page."""
    shutil.copy(MODEL, tmp_path / "model.gguf")
    write_texts([tmp_path / f"{name}.txt" for name in ("calibration", "text", "held-out")])
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_on_a_small_model(small: Path) -> None:
    printed = "".join(output for _, _, output in walk(small, timeout=120))
    assert all((small / name).stat().st_size for name in WRITTEN)
    mix, preset = _divergences(printed)
    assert 0 < mix < preset < 1
    assert "expected KLD: " in printed
    assert "mix.gguf" in (small / "README.md").read_text()
    types = {tensor.type_name for tensor in open_model(small / "mix.gguf").tensors.values() if len(tensor.shape) > 1}
    assert types <= {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"}
    assert len(types) > 1


@pytest.mark.slow
def test_the_program_does_the_same(small: Path) -> None:
    (program,) = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=small, env=_environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"expected KLD ([\d.e-]+) at ([\d.]+) bits per weight\n", done.stdout)
    assert said is not None, done.stdout
    assert 5 < float(said[2]) <= 6.16
    tensors = open_model(small / "mix.gguf").tensors.values()
    bits = 8 * sum(tensor.nbytes for tensor in tensors) / sum(tensor.info.elements for tensor in tensors)
    assert bits == pytest.approx(float(said[2]), abs=0.02)


@pytest.mark.soak
def test_the_page_shows_what_smollm2_prints(tmp_path: Path) -> None:
    if find_smollm2() is None:
        pytest.skip(f"SmolLM2 is missing: {SMOLLM2_COMMAND}")
    lay_out(tmp_path)
    found: list[float] = []
    for command, shown, printed in walk(tmp_path, timeout=3600):
        # What engines compute differs in the last digits by machine, and the texts change with the documentation.
        assert re.fullmatch(shown_pattern(_masked(shown)), _masked(printed)), f"{command} prints\n{printed}"
        found += _divergences(printed)
    mix, preset = found
    assert mix < 0.8 * preset
    assert (tmp_path / "mix.gguf").stat().st_size <= (tmp_path / "preset.gguf").stat().st_size
