"""The gate, nox, the hooks and the workflows run the same commands; dependencies have floors; decisions have dates."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.windows_python import FAULTS, TRIED_THERE

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib

REPO = Path(__file__).resolve().parents[1]
GATE = (REPO / ".ci" / "run").read_text(encoding="utf-8").splitlines()
COMMANDS = [shlex.split(line) for line in GATE if line.startswith(".venv/bin/")]
WORKFLOWS = {path.name: path for path in (REPO / ".github" / "workflows").glob("*.y*ml")}
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- nox and hooks ---------------------------------------------------------------------------------------------------


class RecordedSession:
    """A session of nox that notes what it is told to run."""

    def __init__(self, *posargs: str) -> None:
        self.posargs = posargs
        self.runs: list[list[str]] = []

    def run(self, *command: str, external: bool = False) -> None:
        self.runs.append(list(command))

    def install(self, *packages: str) -> None:
        self.runs.append(["install", *packages])


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[RecordedSession], None]]:
    """The sessions of noxfile.py, loaded without nox, which is only in the extra `dev`."""
    found: dict[str, Any] = {}

    def session(**options: Any) -> Callable[[Any], Any]:
        return lambda function: found.setdefault(function.__name__, function)

    stub = types.SimpleNamespace(session=session, options=types.SimpleNamespace(sessions=[]), Session=RecordedSession)
    monkeypatch.setitem(sys.modules, "nox", stub)
    spec = importlib.util.spec_from_file_location("noxfile", REPO / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert set(stub.options.sessions) <= set(found)
    return found


def _runs(session: Callable[[RecordedSession], None], *posargs: str) -> list[list[str]]:
    recorded = RecordedSession(*posargs)
    session(recorded)
    return recorded.runs


def test_nox_runs_every_command_of_the_gate(sessions: dict[str, Any]) -> None:
    assert len(COMMANDS) >= 6
    names = ("lint", "types", "imports", "workflows", "package", "docs", "tests")
    runs = [run for name in names for run in _runs(sessions[name])]
    assert runs == COMMANDS


def test_the_fast_session_is_the_suite_without_slow_tests(sessions: dict[str, Any]) -> None:
    assert _runs(sessions["fast"]) == [[*run, "-m", "not slow"] for run in _runs(sessions["tests"])]


def test_arguments_reach_pytest(sessions: dict[str, Any]) -> None:
    for name in ("tests", "fast", "lowest"):
        assert _runs(sessions[name], "-k", "split")[-1][-2:] == ["-k", "split"]


def test_lowest_resolves_downwards(sessions: dict[str, Any]) -> None:
    runs = _runs(sessions["lowest"])
    assert [run for run in runs if {"--resolution", "lowest-direct"} <= set(run)] != []
    assert runs[-1][:3] == ["python", "-m", "pytest"]


def test_hooks_run_commands_of_the_gate() -> None:
    config = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [shlex.split(hook["entry"]) for repo in config["repos"] for hook in repo["hooks"]]
    slow = {"check-jsonschema", "mkdocs", "python", "pyroma", "twine"}
    of_releases = {"check-wheel-contents", "validate-pyproject"}
    left_out = [c for c in COMMANDS if Path(c[0]).name in slow | of_releases or "--platform" in c]
    assert entries == [command for command in COMMANDS if command not in left_out]


def test_contributing_names_sessions_that_exist(sessions: dict[str, Any]) -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"nox -s (\w+)", text))
    assert named
    assert named <= set(sessions)


# --- workflows -------------------------------------------------------------------------------------------------------


def _workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_gate_checks_every_workflow() -> None:
    checked = [word for command in COMMANDS if "check-jsonschema" in command[0] for word in command]
    assert WORKFLOWS
    assert {f".github/workflows/{name}" for name in WORKFLOWS} <= set(checked)


def test_the_suite_runs_on_three_systems_and_five_pythons() -> None:
    matrix = _workflow("ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"


def test_windows_itself_runs_what_runs_under_wine() -> None:
    job = _workflow("ci.yml")["jobs"]["windows"]
    assert "continue-on-error" not in job
    words = [word for step in job["steps"] for word in shlex.split(step.get("run", ""))]
    assert {name.partition("[")[0] for name in (*TRIED_THERE, FAULTS)} <= set(words)


def test_the_workflow_calls_sessions_that_exist(sessions: dict[str, Any]) -> None:
    text = WORKFLOWS["ci.yml"].read_text(encoding="utf-8")
    named = {name for call in re.findall(r"nox -s ([\w ]+)", text) for name in call.split()}
    assert {"lint", "types", "imports", "workflows", "package", "docs", "lowest"} <= named
    assert named <= set(sessions)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_have_the_least_rights(name: str) -> None:
    workflow = _workflow(name)
    assert workflow["permissions"] == {}
    for job, body in workflow["jobs"].items():
        rights = dict(body["permissions"])
        if (name, job) == ("release.yml", "publish"):
            assert rights == {"id-token": "write", "attestations": "write"}
            assert body["environment"] == "release"
            assert not any("run" in step or "checkout" in step["uses"] for step in body["steps"])
        else:
            assert rights == {"contents": "read"}, job


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_a_major_version(name: str) -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOWS[name].read_text(encoding="utf-8"))
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+|\./\S+\.yml", action)] == []


def test_a_release_waits_for_the_suite_and_takes_only_what_was_built() -> None:
    jobs = _workflow("release.yml")["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("ci", "build")


# --- dependencies, pages ---------------------------------------------------------------------------------------------


def _requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for requirements in lists for text in requirements]


def test_every_dependency_has_a_floor() -> None:
    named = [requirement for requirement in _requirements() if requirement.name != PROJECT["name"]]
    assert len(named) > 10
    without = [
        str(requirement)
        for requirement in named
        if not any(specifier.operator == ">=" for specifier in requirement.specifier)
    ]
    assert without == []


def test_a_cap_has_a_dated_reason() -> None:
    lines = (REPO / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    capped = [requirement.name for requirement in _requirements() if "<" in str(requirement.specifier)]
    for name in capped:
        at = next(number for number, line in enumerate(lines) if line.strip().startswith(f'"{name}'))
        start = at
        while lines[start - 1].lstrip().startswith("#"):
            start -= 1
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", "\n".join(lines[start:at])), name


def test_every_decision_has_a_date() -> None:
    text = (REPO / "docs" / "decisions.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\*\*(.+?)\*\*", text, flags=re.MULTILINE)
    assert len(entries) > 50
    assert [entry for entry in entries if not re.search(r" \(20\d\d-\d\d-\d\d\)\.?$", entry)] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_pages_at_the_top_link_to_what_exists(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert targets
    assert [target for target in targets if "://" in target or not (REPO / target).exists()] == []
    assert f"({page})" in (REPO / "README.md").read_text(encoding="utf-8")
