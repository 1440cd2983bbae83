"""What goes to others names files without the folders of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gguftool.analysis.dump import dump
from gguftool.analysis.lint.check import check
from gguftool.analysis.report import report
from gguftool.render.sharing import without_folders
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.fake_perplexity import make_fake
from tests.support.paths import REPO


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


@pytest.mark.parametrize(
    "line",
    [
        "report M --json",
        "report M --csv",
        "report I --json",
        "dump M --json",
        "dump I --json",
        "check M --json",
        "check M M --json",
        "check M --sarif",
        "diff M M --json",
        "hash M --files --json",
        "hash --check S --json",
        "hash M --check S --json",
        "recipe check R --model M --json",
        "imatrix show I --model M --json",
        "plan M --size 1M --compare R --start R --json",
    ],
)
def test_folders_are_named_only_if_that_is_asked_for(line: str, model: Path) -> None:
    files = _files_beside(model)
    words = [files.get(word, word) for word in line.split()]
    done = run_gguftool(*words)
    named = {files[word].name.encode() for word in line.split() if word in files and word != "S"}
    assert [name for name in named if name not in done.stdout] == [], done.stderr
    assert b"secret" not in done.stdout
    assert b"secret" in run_gguftool(*words, "--full-paths").stdout


def _files_beside(model: Path) -> dict[str, Path]:
    """Files of all kinds in the folder of `model`: an imatrix, a recipe, sums of files."""
    imatrix, recipe, sums = (model.with_name(name) for name in ("i.dat", "r.recipe", "m.sha256"))
    shutil.copy(REPO / "fixtures" / "demo.imatrix.dat", imatrix)
    recipe.write_text(".=q8_0\n", encoding="utf-8")
    sums.write_bytes(run_gguftool("hash", model, "--files").stdout)
    return {"M": model, "I": imatrix, "R": recipe, "S": sums}


def test_info_names_no_folder(model: Path) -> None:
    done = run_gguftool("info", model, "--json")
    assert b"m.gguf" in done.stdout
    assert b"secret" not in done.stdout


def test_receipts_name_files_as_they_were_typed(model: Path, tmp_path: Path) -> None:
    words = ("merge", "secret place/m.gguf", "-o", "out.gguf", "--json")
    for more in (["--dry-run"], ["--hash"]):
        done = run_gguftool(*words, *more, cwd=tmp_path)
        assert b'"out.gguf"' in done.stdout
        assert str(tmp_path).encode() not in done.stdout


def test_a_plan_of_measurements_names_files_as_they_were_typed(model: Path, tmp_path: Path) -> None:
    engine = make_fake(tmp_path / "engine")
    (tmp_path / "text").write_text("word " * 5000, encoding="utf-8")
    words = ("--text", "text", "--engine", engine, "--types", "q8_0", "-o", "out.jsonl")
    done = run_gguftool("measure", "secret place/m.gguf", *words, "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["folder"] == "out.jsonl.work", done.stderr
    assert str(tmp_path).encode() not in done.stdout


def test_the_chart_names_no_folder(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="not installed; run: pip install matplotlib")
    files = _files_beside(model)
    done = run_gguftool("plan", model, "--size", "1M", "--compare", files["R"], "--plot", tmp_path / "chart.svg")
    assert done.returncode == 0, done.stderr
    assert "r.recipe" in (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert "secret" not in (tmp_path / "chart.svg").read_text(encoding="utf-8")


def test_sarif_names_files_of_the_repository_by_their_paths_in_it(model: Path) -> None:
    done = run_gguftool("check", "secret place/m.gguf", "--sarif", cwd=model.parent.parent)
    text = done.stdout.decode()
    assert '"secret%20place/m.gguf"' in text
    assert 'gguftool edit \\"secret place/m.gguf\\"' in text


def test_what_a_file_says_of_itself_is_not_changed(tmp_path: Path) -> None:
    """A value may look like a path in the model's own folder; an address may hold its name."""
    values = [f"{tmp_path}/text.txt", f"https://host{tmp_path}/m.gguf"]
    path = tmp_path / "m.gguf"
    path.write_bytes(b.small_model(b.KV("a.path", b.STR, values[0]), b.KV("an.url", b.STR, values[1])))
    found = {kv.key: kv.value for kv in without_folders(dump(str(path))).metadata}
    assert [found["a.path"], found["an.url"]] == values


@pytest.mark.parametrize("folder", ["it's", 'a "b"', "a$b", "a!b", "a\x1bb"])
def test_folders_that_shells_and_terminals_need_escaped(folder: str, tmp_path: Path) -> None:
    path = tmp_path / f"secret{folder}" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(b.small_model())
    assert b"secret" not in run_gguftool("check", path, "--json").stdout


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
