"""The documentation agrees with the program: commands, options, fields, links, and what the README shows."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gguftool.cli.app import app

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs"
README = (REPO / "README.md").read_text(encoding="utf-8")
DEMO = REPO / "fixtures" / "demo.gguf"

_LONG_OPTION = re.compile(r"--[a-z][a-z-]+")


def _sections(text: str, marker: str) -> dict[str, str]:
    """Return heading -> text of the sections whose headings start with `marker`."""
    parts = re.split(rf"^{marker} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _commands() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _long_options(command: Any) -> set[str]:
    """Return the long options of a command and of its subcommands."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
    return own.union(*(_long_options(sub) for sub in getattr(command, "commands", {}).values()))


CLI_SECTIONS = _sections((DOCS / "cli.md").read_text(encoding="utf-8"), "##")


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert {f"gguftool {name}" for name in _commands()} == set(CLI_SECTIONS)


@pytest.mark.parametrize("name", _commands())
def test_every_option_is_documented_and_every_documented_option_exists(name: str) -> None:
    assert set(_LONG_OPTION.findall(CLI_SECTIONS[f"gguftool {name}"])) == _long_options(_commands()[name])


@pytest.mark.parametrize("name", _commands())
def test_every_subcommand_is_named(name: str) -> None:
    section = CLI_SECTIONS[f"gguftool {name}"]
    subcommands = getattr(_commands()[name], "commands", {})
    assert [sub for sub in subcommands if f"{name} {sub}" not in section] == []


@pytest.mark.parametrize("name", _commands())
def test_every_command_and_option_has_help(name: str) -> None:
    command = _commands()[name]
    assert command.help
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []


def _documented_fields(section: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


JSON_SECTIONS = {
    heading.strip("`"): text
    for heading, text in _sections((DOCS / "json.md").read_text(encoding="utf-8"), "###").items()
}


@pytest.mark.parametrize("path", JSON_SECTIONS)
def test_documented_fields_are_those_of_the_dataclass(path: str) -> None:
    module, _, name = path.rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    assert _documented_fields(JSON_SECTIONS[path]) == [field.name for field in fields]


def test_every_report_that_is_printed_or_nested_is_documented() -> None:
    documented = {path.rpartition(".")[2] for path in JSON_SECTIONS}
    printed = set(re.findall(r" a(?: list of)? `([A-Z]\w+)`", "".join(CLI_SECTIONS.values())))
    nested = set(re.findall(r"list of `([A-Z]\w+)`", "".join(JSON_SECTIONS.values())))
    assert {"Dump", "Receipt", "Preview"} <= printed
    assert printed | nested == documented


def _set_up_commands() -> list[str]:
    return re.findall(r"```sh\n(.+?)\n```", README, flags=re.DOTALL)


def test_readme_has_two_set_up_commands_of_one_line() -> None:
    commands = _set_up_commands()
    assert len(commands) == 2
    assert not any("\n" in command for command in commands)


def test_ci_runs_the_readmes_test_command() -> None:
    tests = _set_up_commands()[1].split(" && ")[-1]
    assert "pytest" in tests
    assert (REPO / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == tests
    assert os.access(REPO / ".ci" / "run", os.X_OK)


def _links() -> Iterator[tuple[str, str]]:
    for page in (REPO / "README.md", *sorted(DOCS.glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield str(page.relative_to(REPO)), target


def test_links_lead_somewhere() -> None:
    broken = [(page, target) for page, target in _links() if not (REPO / page).parent.joinpath(target).exists()]
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= {target for _, target in _links()}


def _tour() -> list[tuple[str, str]]:
    """Return the README's console commands with what they are said to print."""
    steps = []
    for block in re.findall(r"```console\n(.+?)```", README, flags=re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            steps.append((command, output))
    return steps


def _pattern(shown: str) -> str:
    """A line of dots alone stands for any lines."""
    return re.escape(shown).replace(re.escape("...\n"), "(?:.*\n)*")


@pytest.fixture
def beside_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds what the README's examples name."""
    if not DEMO.exists():
        pytest.skip("fixtures/demo.gguf is not there; python fixtures/make.py makes it")
    (tmp_path / "fixtures").mkdir()
    shutil.copy(DEMO, tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_tour_shows_what_the_commands_print(beside_the_demo: Path) -> None:
    assert len(_tour()) > 5
    for command, shown in _tour():
        line = re.sub(r"^gguftool\b", f"'{sys.executable}' -m gguftool", command)
        done = subprocess.run(["sh", "-c", f"({line}) 2>&1"], capture_output=True, text=True, timeout=60, check=False)
        assert re.fullmatch(_pattern(shown), done.stdout.rstrip("\n") + "\n"), f"{command} prints\n{done.stdout}"


def test_the_readmes_python_runs(beside_the_demo: Path) -> None:
    program = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    written = sum(path.stat().st_size for path in (beside_the_demo / "shards").iterdir())
    assert done.stdout == f"{written}\n"
