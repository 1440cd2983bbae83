"""What goes to others names files without the folders of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.analysis.dump import dump
from gguftool.analysis.lint.check import check
from gguftool.analysis.report import report
from gguftool.render.sharing import without_folders
from tests.support import builders as b
from tests.support.command import run_gguftool


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "secret place" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(b.small_model())
    return path


@pytest.mark.parametrize("words", ["report", "dump", "report --by tensor", "diff"])
def test_markdown_names_no_folder(words: str, model: Path) -> None:
    name, *more = words.split()
    done = run_gguftool(name, *[model] * (1 + (name == "diff")), *more, "--markdown")
    assert done.returncode == 0
    assert b"m.gguf" in done.stdout
    assert b"secret" not in done.stdout


@pytest.mark.parametrize("name", ["report", "dump", "check", "diff", "info"])
def test_json_names_folders_only_if_that_is_asked_for(name: str, model: Path) -> None:
    words = (name, *[model] * (1 + (name == "diff")), "--json")
    done = run_gguftool(*words)
    assert b"m.gguf" in done.stdout
    assert b"secret" not in done.stdout
    if name != "info":
        assert b"secret" in run_gguftool(*words, "--full-paths").stdout


def test_the_page_names_no_folder(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="not installed; run: pip install jinja2")
    run_gguftool("report", model, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "m.gguf" in page
    assert "secret" not in page


@pytest.mark.parametrize("make", [dump, report, check])
def test_texts_within_a_report_lose_their_folders_and_nothing_else(make: object, model: Path) -> None:
    made = make(str(model))  # type: ignore[operator]
    shared = without_folders(made)
    assert str(model.parent) not in repr(shared)
    assert repr(made).replace(f"{model.parent}/", "") == repr(shared)
    assert without_folders(shared) is shared


def test_an_address_stays_whole(model: Path) -> None:
    from gguftool.record import replace

    remote = replace(dump(model), model="https://host/a/m.gguf")
    assert without_folders(remote).model == "https://host/a/m.gguf"
    assert without_folders(remote).files[0].path == "m.gguf"
