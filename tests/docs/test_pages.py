"""The documentation agrees with the program: commands, options, fields, links, and what the README shows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import commands
from tests.support.console_blocks import console_examples, lay_out_demo, shown_pattern
from tests.support.paths import REPO

DOCS = REPO / "docs"
README = (REPO / "README.md").read_text(encoding="utf-8")
DEMO = REPO / "fixtures" / "demo.gguf"

_LONG_OPTION = re.compile(r"--[a-z][a-z-]+")


def _sections(text: str, marker: str) -> dict[str, str]:
    """Return heading -> text of the sections whose headings start with `marker`."""
    parts = re.split(rf"^{marker} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _long_options(command: Any) -> set[str]:
    """Return the long options of a command and of its subcommands."""
    own = {name for param in command.params for name in (*param.opts, *param.secondary_opts) if name.startswith("--")}
    return own.union(*(_long_options(sub) for sub in getattr(command, "commands", {}).values()))


CLI_SECTIONS = {
    heading: text
    for heading, text in _sections((DOCS / "cli.md").read_text(encoding="utf-8"), "##").items()
    if heading.startswith("gguftool ")
}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert {f"gguftool {name}" for name in commands()} == set(CLI_SECTIONS)


@pytest.mark.parametrize("name", commands())
def test_every_option_is_documented_and_every_documented_option_exists(name: str) -> None:
    described = re.sub(r"```console\n.+?```", "", CLI_SECTIONS[f"gguftool {name}"], flags=re.DOTALL)
    assert set(_LONG_OPTION.findall(described)) == _long_options(commands()[name])


@pytest.mark.parametrize("name", commands())
def test_every_subcommand_is_named(name: str) -> None:
    section = CLI_SECTIONS[f"gguftool {name}"]
    subcommands = getattr(commands()[name], "commands", {})
    assert [sub for sub in subcommands if f"{name} {sub}" not in section] == []


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_help(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []


def _documented_fields(section: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


JSON_SECTIONS = {
    heading.strip("`"): text
    for heading, text in _sections((DOCS / "json.md").read_text(encoding="utf-8"), "###").items()
}

# Reports whose names stand on a page of their own, in a table with a row for each dataclass.
OWN_PAGES = {"diff.md": "gguftool.analysis.diff.models.HeaderDiff", "report.md": "gguftool.analysis.report.Report"}


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _path(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _documented() -> dict[str, Any]:
    """The documented dataclasses by name: some modules import the types of their fields for type checkers only."""
    return {path.rpartition(".")[2]: _load(path) for path in JSON_SECTIONS}


def _nested(kind: Any) -> set[Any]:
    """Return `kind` and the dataclasses in its fields, theirs included."""
    found, waiting = set(), [kind]
    while waiting:
        part = waiting.pop()
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            if part not in found:
                found.add(part)
                waiting += typing.get_type_hints(part, localns=_documented()).values()
        else:
            waiting += typing.get_args(part)
    return found


@pytest.mark.parametrize("path", JSON_SECTIONS)
def test_documented_fields_are_those_of_the_dataclass(path: str) -> None:
    assert _documented_fields(JSON_SECTIONS[path]) == list(_field_names(_load(path)))


@pytest.mark.parametrize(("page", "path"), OWN_PAGES.items())
def test_a_page_with_a_report_has_a_row_for_each_dataclass(page: str, path: str) -> None:
    section = _sections((DOCS / page).read_text(encoding="utf-8"), "##")["JSON"]
    rows = re.findall(r"^\| (?:[^|]+) \| (`.+) \|$", section, flags=re.MULTILINE)
    documented = {tuple(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))) for row in rows}
    assert documented == {_field_names(kind) for kind in _nested(_load(path))}


def test_every_report_that_is_printed_or_nested_is_documented() -> None:
    printed = set(re.findall(r" a(?: list of)? `([A-Z]\w+)`", "".join(CLI_SECTIONS.values())))
    assert {"Dump", "Receipt", "Preview"} <= printed
    assert printed <= {path.rpartition(".")[2] for path in JSON_SECTIONS}
    nested = {_path(part) for path in JSON_SECTIONS for part in _nested(_load(path))}
    assert nested == set(JSON_SECTIONS)


JSON_RUNS = {
    "info demo.gguf": "gguftool.analysis.info.Info",
    "dump demo.gguf": "gguftool.analysis.dump.Dump",
    "report demo.gguf": "gguftool.analysis.report.Report",
    "diff demo.gguf demo.gguf": "gguftool.analysis.diff.models.HeaderDiff",
    "check demo.gguf": "gguftool.analysis.lint.check.CheckReport",
    "split demo.gguf shards/demo": "gguftool.storage.plan.Receipt",
    "merge demo.gguf -o merged.gguf": "gguftool.storage.plan.Receipt",
    "swap demo.gguf --from demo.gguf --tensor output -o out.gguf": "gguftool.storage.plan.Receipt",
    "edit demo.gguf --remove general.name -o out.gguf": "gguftool.storage.plan.Receipt",
    "quantize demo.gguf --tensor attn_v=q8_0 -o out.gguf --dry-run": (
        "gguftool.surgery.quantize.preview.QuantizePreview"
    ),
    "measure demo.gguf --errors --types q4_0 --tensors attn_v -o errors.jsonl": (
        "gguftool.cooking.measuring.run.MeasureReport"
    ),
    "cook all.recipe --from demo.gguf --allow-requantize -o cooked.gguf": "gguftool.storage.plan.Receipt",
    "export demo.gguf --tensor output -o out.safetensors": "gguftool.storage.plan.Receipt",
    "fetch demo.gguf -o fetched.gguf": "gguftool.storage.plan.Receipt",
    "alter demo.gguf --layers 1,0 -o altered.gguf": "gguftool.storage.plan.Receipt",
    "merge demo.gguf -o merged.gguf --dry-run": "gguftool.storage.plan.Preview",
    "hash demo.gguf": "gguftool.analysis.verify.Hash",
    "hash demo.gguf --check sums": "gguftool.analysis.verify.Verdict",
    "recipe check all.recipe --model demo.gguf": "gguftool.analysis.recipe.RecipeReport",
    "plan demo.gguf --bpw 5": "gguftool.cooking.mix.Mix",
    "imatrix show demo.imatrix.dat": "gguftool.analysis.imatrix.ImatrixReport",
    "types iq4_ks": "gguftool.render.types.TypeRow",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", JSON_RUNS)
def test_commands_print_the_reports_that_are_documented(command: str, beside_the_demo: Path) -> None:
    os.chdir("fixtures")
    Path("all.recipe").write_text(".*=q8_0\n", encoding="utf-8")
    Path("sums").write_text(f"{hashlib.sha256(DEMO.read_bytes()).hexdigest()}  demo.gguf\n", encoding="utf-8")
    made = json.loads(_run(f"gguftool {command} --json", merged=False))
    if isinstance(made, list):
        made = made[0]
    assert tuple(made) == _field_names(_load(JSON_RUNS[command]))


def test_every_command_with_json_is_run_for_it() -> None:
    with_json = {name for name, command in commands().items() if "--json" in _long_options(command)}
    assert {command.split()[0] for command in JSON_RUNS} == with_json


def _set_upcommands() -> list[str]:
    return re.findall(r"```sh\n(.+?)\n```", README, flags=re.DOTALL)


def test_readme_has_two_set_up_commands_of_one_line() -> None:
    commands = _set_upcommands()
    assert len(commands) == 2
    assert not any("\n" in command for command in commands)


def test_ci_runs_the_readmes_test_command() -> None:
    tests = _set_upcommands()[1].split(" && ")[-1]
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


def _run(command: str, *, merged: bool = True) -> str:
    """Run a command as the pages show it; return its output, with errors and remarks among it if `merged`."""
    line = re.sub(r"^gguftool\b", f"'{sys.executable}' -m gguftool", command)
    errors = "2>&1" if merged else ""
    done = subprocess.run(["sh", "-c", f"({line}) {errors}"], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.rstrip("\n") + "\n" if done.stdout else ""


@pytest.fixture
def beside_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds what the pages' examples name."""
    if not DEMO.exists():
        pytest.skip("fixtures/demo.gguf is not there; python fixtures/make.py makes it")
    lay_out_demo(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_pages_show_what_the_commands_print(page: str, beside_the_demo: Path) -> None:
    examples = console_examples(REPO / page)
    assert len(examples) > 5
    for command, shown in examples:
        printed = _run(command)
        assert re.fullmatch(shown_pattern(shown), printed), f"{command} prints\n{printed}"


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_command_has_an_example(page: str) -> None:
    words = {command.split()[1] for command, _ in console_examples(REPO / page) if command.startswith("gguftool ")}
    shown = {word if word in commands() else "info" for word in words}  # a model's name alone
    assert set(commands()) - shown == set()


def test_the_readmes_python_runs(beside_the_demo: Path) -> None:
    program = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    written = sum(path.stat().st_size for path in (beside_the_demo / "shards").iterdir())
    assert done.stdout == f"{written}\n"


# --- architecture.md -------------------------------------------------------------------------------------------------


def _named_paths(page: Path) -> Iterator[Path]:
    """Yield the modules and folders that a page names; a name without folder is in the folder named before it."""
    for line in page.read_text(encoding="utf-8").splitlines():
        folder = REPO / "gguftool"
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", line):
            top = REPO if name.startswith(("gguftool/", "tests/", "benchmarks/")) else REPO / "gguftool"
            if "/" in name.rstrip("/") or (top / name).exists():
                yield top / name
                folder = top / name if name.endswith("/") else (top / name).parent
            else:
                yield folder / name


def test_the_architecture_names_what_exists() -> None:
    named = list(_named_paths(DOCS / "architecture.md"))
    assert len(named) > 80
    assert [str(path.relative_to(REPO)) for path in named if not path.exists()] == []


# --- testing.md ------------------------------------------------------------------------------------------------------


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    table = _sections((DOCS / "testing.md").read_text(encoding="utf-8"), "##")["Faults"]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", table, flags=re.MULTILINE)
    assert {int(number) for number, _, _ in rows} >= set(range(1, 31))
    for number, _, tests in rows:
        named = re.findall(r"`([\w/]+)::(\w+)`", tests)
        assert named, number
        for file, test in named:
            text = (REPO / "tests" / f"{file}.py").read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", text, flags=re.MULTILINE), f"{number}: {file}::{test}"
