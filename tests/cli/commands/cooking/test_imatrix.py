"""gguftool imatrix make, as a user calls it wrongly: told before an engine runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from gguftool.cli.app import run
from gguftool.cli.shared.signals import Interrupted
from tests.support.command import one_error_line, run_gguftool
from tests.support.measure_cases import MODEL


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "m.gguf").write_bytes(Path(MODEL).read_bytes())
    return ["imatrix", "make", tmp_path / "m.gguf", "--text", tmp_path / "text.txt", "--engine", tmp_path / "none"]


@pytest.mark.parametrize("name", ["m.gguf", "text.txt"])
def test_the_output_is_none_of_what_is_read(tmp_path: Path, words: list[object], name: str) -> None:
    before = (tmp_path / name).read_bytes()
    done = run_gguftool(*words, "-o", tmp_path / name, "--to", "gguf", "--force")
    assert done.returncode == 2
    assert "an output cannot overwrite it" in one_error_line(done.stderr)
    assert (tmp_path / name).read_bytes() == before


def test_an_open_quote_in_options_is_bad_usage(tmp_path: Path, words: list[object]) -> None:
    done = run_gguftool(*words, "-o", tmp_path / "out.gguf", "--engine-options", "-ngl '99")
    assert done.returncode == 2
    assert "Invalid value: --engine-options: No closing quotation" in done.stderr.decode()


@pytest.mark.parametrize(
    ("more", "said"), [([], "with --chunks N it works in parts"), (["--chunks", "9"], "the same command resumes")]
)
def test_a_stopped_run_says_what_is_kept(
    more: list[str],
    said: str,
    words: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("gguftool.cooking.imatrix_making.made_imatrix", stopped)
    monkeypatch.setattr(sys, "argv", ["gguftool", *map(str, words), "-o", str(tmp_path / "out.gguf"), *more])
    with pytest.raises(Interrupted):
        run()
    assert said in capsys.readouterr().err
