"""The benchmark of start-up compares two checkouts, and both are what runs."""

from __future__ import annotations

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


def test_without_another_checkout_it_says_how_to_use_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["startup"])
    assert startup.main() == 2
    assert "OTHER_CHECKOUT" in capsys.readouterr().err
