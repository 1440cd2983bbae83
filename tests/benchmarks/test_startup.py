"""The benchmark of start-up compares two checkouts, and both are what runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.measure import REPO, cpu_of
from benchmarks.startup import environment_of, starting


def test_processor_time_is_that_of_the_command(tmp_path: Path) -> None:
    env = environment_of(REPO, tmp_path)
    idle = cpu_of((sys.executable, "-c", "import time; time.sleep(0.5)"), tmp_path, env)
    busy = cpu_of((sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"), tmp_path, env)
    assert idle < 0.4 < 0.5 <= busy
    with pytest.raises(RuntimeError, match="ended with 3"):
        cpu_of((sys.executable, "-c", "raise SystemExit(3)"), tmp_path, env)


def test_every_bar_is_judged_against_the_other_checkout(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "scratch"
    (other / "gguftool").mkdir(parents=True)
    folder.mkdir()
    (other / "gguftool" / "__init__.py").touch()
    (other / "gguftool" / "__main__.py").write_text("raise SystemExit(7)\n")
    with pytest.raises(RuntimeError, match="ended with 7"):
        next(starting(other, folder, rounds=1))
    verdicts = list(starting(REPO, folder, rounds=1))
    assert [verdict.bar for verdict in verdicts] == [0.6, 0.75, 0.75, 0.9]
    assert all(0.2 < verdict.value < 5 for verdict in verdicts), "the same checkout on both sides"
    assert (folder / "o.gguf").read_bytes()[:4] == b"GGUF"
    assert list((folder / "pycache").rglob("app.*.pyc"))


def test_other_programs_are_what_runs_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("gguf-dump", "gguf-inspect"):
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\nimport sys\nassert len(sys.argv) > 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path: str(tmp_path / "bin" / name))
    assert [verdict.bar for verdict in startup.beside_others(tmp_path, rounds=1)] == [0.5, 1.2]


def test_programs_that_are_not_installed_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    assert list(startup.beside_others(tmp_path, rounds=1)) == []
