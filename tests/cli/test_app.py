"""The table of commands agrees with the commands, and nothing of a command is imported before it runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gguftool.cli.app import COMMANDS
from tests.support import builders as b
from tests.support.command import commands, environment, one_error_line, run_gguftool
from tests.support.paths import REPO

_LOADED = """
import sys
from gguftool.cli.main import main
try:
    main()
finally:
    print(*sorted(name for name in sys.modules if name.startswith("gguftool.cli.commands.")), file=sys.stderr)
"""


@pytest.mark.parametrize(("name", "summary"), [(name, summary) for name, _, summary in COMMANDS])
def test_a_summary_is_the_first_line_of_the_commands_help(name: str, summary: str) -> None:
    assert commands()[name].help.splitlines()[0] == summary


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_a_command_is_called_as_the_table_calls_it(name: str) -> None:
    usage = run_gguftool(name, "--help").stdout.decode()
    assert usage.startswith(f"Usage: gguftool {name} [")


@pytest.mark.parametrize(
    ("line", "loaded"),
    [
        ("--version", ""),
        ("--help", ""),
        ("nonsense", ""),
        ("types --help", "types"),
        ("hash --help", "hash"),
        ("recipe check --help", "cooking cooking.recipe"),
    ],
)
def test_the_module_of_the_command_that_runs_is_imported_and_no_other(line: str, loaded: str) -> None:
    command = [sys.executable, "-c", _LOADED, *line.split()]
    done = subprocess.run(command, capture_output=True, check=False, env=environment(), encoding="utf-8")
    assert done.stderr.splitlines()[-1] == " ".join(f"gguftool.cli.commands.{name}" for name in loaded.split())


@pytest.mark.parametrize("command", ["info", "dump", "check"])
def test_what_reads_heads_imports_no_numbers_library(command: str) -> None:
    code = _LOADED.replace("gguftool.cli.commands.", "numpy").replace("startswith", "__eq__")
    line = [sys.executable, "-c", code, command, str(REPO / "fixtures" / "demo.gguf")]
    done = subprocess.run(line, capture_output=True, check=True, env=environment(), encoding="utf-8")
    assert done.stderr.splitlines()[-1:] in ([], [""])


def test_version_does_without_the_command_line_library() -> None:
    code = _LOADED.replace("gguftool.cli.commands.", "typer")
    command = [sys.executable, "-c", code, "--version"]
    done = subprocess.run(command, capture_output=True, check=True, env=environment(), encoding="utf-8")
    assert (done.stdout[:9], done.stderr) == ("gguftool ", "\n")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("mrege", "merge"),
        ("spilt", "split"),
        ("dmup", "dump"),
        ("sawp", "swap"),
        ("hsah", "hash"),
        ("quantise", "quantize"),
        ("type", "types"),
    ],
)
def test_a_typo_gets_the_command_that_was_meant(typo: str, meant: str) -> None:
    done = run_gguftool(typo)
    assert done.returncode == 2
    assert f"No such command '{typo}'. Did you mean '{meant}'?" in done.stderr.decode()


@pytest.mark.parametrize("word", ["list", "show", "repair", "extract"])
def test_another_word_gets_no_command_that_looks_a_little_like_it(word: str) -> None:
    done = run_gguftool(word)
    assert done.returncode == 2
    assert done.stderr.decode().endswith(f"gguftool: error: No such command '{word}'.\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models, one of them called as a command is."""
    for name in ("m.gguf", "model", "dump"):
        (tmp_path / name).write_bytes(b.small_model())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("word", ["m.gguf", "model", "./dump", "*.gguf", "m.gguf --json"])
def test_a_model_in_the_place_of_a_command_is_shown(word: str, folder: Path) -> None:
    done, same = run_gguftool(*word.split()), run_gguftool("info", *word.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, same.stdout, same.stderr)
    assert b"Tiny" in done.stdout


def test_a_commands_name_wins_over_a_file(folder: Path) -> None:
    assert "Missing argument 'MODEL'" in run_gguftool("dump").stderr.decode()


@pytest.mark.parametrize("word", ["gone.gguf", "no/such/place", "http://127.0.0.1:9/m.gguf", "X*"])
def test_what_can_only_be_a_model_gets_the_models_error(word: str, folder: Path) -> None:
    done = run_gguftool(word)
    assert done.returncode == 2
    assert "No such command" not in done.stderr.decode()
    assert word in one_error_line(done.stderr)


@pytest.mark.parametrize("words", ["", "types", "recipe", "recipe check"])
def test_help_is_a_command_too(words: str) -> None:
    done, same = run_gguftool("help", *words.split()), run_gguftool(*words.split(), "--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, same.stdout, b"")
    assert done.stdout.startswith(f"Usage: gguftool {words}".encode())


def test_help_on_a_typo_says_what_was_meant() -> None:
    assert b"Did you mean 'merge'?" in run_gguftool("help", "mrege").stderr


def test_the_version_has_a_short_option() -> None:
    assert run_gguftool("-V").stdout == run_gguftool("--version").stdout


def test_a_type_goes_by_its_number_too() -> None:
    assert run_gguftool("types", "12").stdout == run_gguftool("types", "Q4_K").stdout
    for number, said in (("36", "I2_S"), ("5", "elsewhere it is Q4_3 (removed)"), ("9" * 5000, "neither engine")):
        done = run_gguftool("types", number)
        assert said in (done.stdout + done.stderr).decode()


def test_an_engine_that_nobody_has_gets_the_one_that_was_meant() -> None:
    assert b"did you mean 'llama.cpp'?" in run_gguftool("check", "x", "--engine", "lama.cpp").stderr


def _paths() -> list[tuple[str, ...]]:
    """The words of every command, those in groups too."""
    return [
        path
        for name, command in commands().items()
        for path in ([(name, inner) for inner in command.commands] if hasattr(command, "commands") else [(name,)])
    ]


MISUSES = (("--no\x1b[31m-such-option",), (), ("a", "b", "c", "d", "--json", "--json=\x1bx"))


@pytest.mark.parametrize(
    ("path", "misuse"),
    [(path, misuse) for path in _paths() for misuse in MISUSES if misuse or path != ("types",)],  # it needs no argument
    ids=repr,
)
def test_misuse_is_an_error_like_every_other(path: tuple[str, ...], misuse: tuple[str, ...]) -> None:
    done = run_gguftool(*path, *misuse)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b""), lines
    assert lines[-1].startswith("gguftool: error: "), lines
    assert not any(line.startswith(("Error:", "Traceback")) for line in lines)
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "No such command 'nonsense'."),
        ("recipe nonsense", "No such command 'nonsense'."),
        ("check x --engine nonsense", "--engine takes llama.cpp or ik_llama.cpp, not 'nonsense'"),
        ("recipe convert x --to nonsense", "'nonsense' is not one of"),
        ("split x y --max-tensors many", "'many' is not a valid"),
        ("edit x --in-place -o y", "give either -o OUT or --in-place"),
        ("--cache", "requires an argument"),
    ],
)
def test_every_kind_of_misuse_has_the_one_prefix(line: str, said: str) -> None:
    done = run_gguftool(*line.split())
    last = done.stderr.decode().splitlines()[-1]
    assert (done.returncode, last.startswith("gguftool: error: "), said in last) == (2, True, True), last


def test_a_group_without_a_command_shows_its_help() -> None:
    done = run_gguftool("recipe")
    assert (done.returncode, b"gguftool: error" in done.stderr) == (2, False)
    assert done.stderr.startswith(b"Usage: gguftool recipe")


@pytest.mark.parametrize("path", _paths() + [(name,) for name, row in commands().items() if hasattr(row, "commands")])
def test_a_summary_is_short(path: tuple[str, ...]) -> None:
    command = commands()[path[0]]
    for name in path[1:]:
        command = command.commands[name]
    assert len(command.help.splitlines()[0]) < 60


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_the_examples_in_a_commands_help_can_be_parsed(name: str) -> None:
    _, _, examples = commands()[name].help.partition("Two ways to use it:")
    lines = [line.partition(" > ")[0] for line in examples.splitlines() if line.startswith("gguftool ")]
    assert len(lines) >= 2
    for line in lines:
        command, rest = commands()[name], shlex.split(line)[2:]
        assert shlex.split(line)[1] == name
        if hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        context = command.make_context(name, rest)
        assert context.args == [], line


@pytest.mark.parametrize("name", ["merge", "alter", "quantize"])
def test_many_options_are_shown_in_sections(name: str) -> None:
    shown = run_gguftool(name, "--help").stdout.decode()
    titles = re.findall(r"^([A-Z][a-z]+):$", shown, re.MULTILINE)
    assert [title for title in titles if title != "Two ways to use it"] == [
        "Arguments", "Options", "Output", "Layout", "Safety", "Speed",
    ]  # fmt: skip
    options = [option.opts for option in commands()[name].params if option.param_type_name == "option"]
    assert all(shown.count(f"\n  {', '.join(sorted(names, key=len))}") >= 1 for names in options)
    assert shown.index("Safety:") < shown.index("--force ") < shown.index("Speed:") < shown.index("--jobs")


def test_few_options_are_in_one_list() -> None:
    shown = run_gguftool("hash", "--help").stdout.decode()
    assert re.findall(r"^[A-Z][a-z]+:$", shown, re.MULTILINE) == ["Arguments:", "Options:"]
