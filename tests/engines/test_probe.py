"""Finding an engine, and the command line for what it offers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gguftool.engines import probe
from gguftool.engines.probe import Kind, LoadEngine, command_line, find_engine
from gguftool.errors import PlanError
from tests.support.fake_engine import engine_script

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="engines are asked on Linux; run it there")

MAINLINE = ["--load-mode", "--no-repack", "--no-warmup", "--device", "--offline", "--log-colors", "-no-cnv", "-st"]
MODEL = Path("/m/model.gguf")


def words(kind: Kind, options: list[str], tokens: int = 0) -> list[str]:
    engine = LoadEngine(kind=kind, engine="", version="", path=Path("/x"), options=frozenset(options))
    return command_line(engine, MODEL, tokens, Path("/text"))


def test_options_are_those_that_its_help_lists() -> None:
    assert " ".join(words(Kind.COMPLETION, MAINLINE, 2)) == (
        "/x -m /m/model.gguf -c 64 -b 8 -ub 8 --load-mode mmap --no-repack --no-warmup --device none --offline "
        "--log-colors off -p a -n 2 -no-cnv"
    )
    assert " ".join(words(Kind.CLI, ["-no-cnv"])) == ("/x -m /m/model.gguf -c 64 -b 8 -ub 8 -ngl 0 -p a -n 0 -no-cnv")


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (Kind.CLI, ["-p", "a", "-n", "0", "-st"]),
        (Kind.PERPLEXITY, ["-f", "/text"]),
        (Kind.SERVER, ["--host", "127.0.0.1", "--port", "0"]),
    ],
)
def test_each_kind_has_something_to_do(kind: Kind, end: list[str]) -> None:
    assert words(kind, MAINLINE)[-len(end) :] == end


def test_version_and_options_are_asked_for(tmp_path: Path) -> None:
    engine = find_engine(str(engine_script(tmp_path, "exit 0")), tmp_path)
    assert engine.title == "llama-completion (llama.cpp 123 (abcdef))"
    assert engine.options == {"-m", "--model", "-no-cnv"}


def test_ik_llama_cpp_is_told_by_its_options(tmp_path: Path) -> None:
    program = engine_script(tmp_path, "exit 0", "llama-cli")
    program.write_text(program.read_text().replace("-no-cnv", "-rtr, --run-time-repack"))
    assert find_engine(str(program), tmp_path).engine == "ik_llama.cpp"


def test_a_link_counts_by_its_own_name_or_by_its_targets(tmp_path: Path) -> None:
    program = engine_script(tmp_path, "exit 0", "llama-cli")
    (tmp_path / "mine").symlink_to(program)
    assert find_engine(str(tmp_path / "mine"), tmp_path).kind is Kind.CLI


@pytest.mark.parametrize(
    ("name", "tokens", "said"),
    [
        ("no-such-program", 0, "no such program, or it is not executable; give its path, or 'xllamacpp'"),
        ("/bin/sh", 0, "is not one of xllamacpp, llama-cli, "),
        ("llama-perplexity", 2, "generates nothing: leave out --run"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, name: str, tokens: int, said: str) -> None:
    engine_script(tmp_path, "exit 0", "llama-perplexity")
    path = str(tmp_path / name) if name.startswith("llama") else name
    with pytest.raises(PlanError) as caught:
        find_engine(path, tmp_path, tokens=tokens)
    assert said in str(caught.value)
    assert caught.value.source == path


def test_xllamacpp_that_is_not_installed_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match="pip install xllamacpp"):
        find_engine("xllamacpp", tmp_path)


def test_other_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PlanError, match="only on Linux"):
        find_engine("xllamacpp", tmp_path)
