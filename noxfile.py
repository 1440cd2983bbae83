"""The commands of `.ci/run` one by one, and the fast tests on the oldest dependencies.

    nox -l            # list the sessions
    nox               # what to run before a commit: lint, types, imports, workflows, package, docs, fast
    nox -s tests      # the whole suite
    nox -s lowest     # the fast tests on Python 3.10 with the oldest dependencies that pyproject.toml allows

`.ci/run` is the only home of its commands. The sessions read them there, so the two cannot differ, and run them in the
`.venv` that `.ci/run` and the README make. Only `lowest` has an environment of its own.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import nox

nox.needs_version = ">=2024.3"
nox.options.sessions = ["lint", "types", "imports", "workflows", "package", "docs", "fast"]

GATE = Path(__file__).with_name(".ci") / "run"
FAST = ("-m", "not slow")


def gate(start: str) -> list[list[str]]:
    """List the commands of the gate that begin with `.venv/bin/` and `start`."""
    lines = GATE.read_text(encoding="utf-8").splitlines()
    found = [shlex.split(line) for line in lines if line.startswith(f".venv/bin/{start}")]
    if not found:
        raise LookupError(f".ci/run has no command that begins with .venv/bin/{start}")
    return found


def run(session: nox.Session, start: str, *more: str) -> None:
    """Run the gate's commands that begin with `start`, with `more` and the session's own arguments behind them."""
    for command in gate(start):
        session.run(*command, *more, *session.posargs, external=True)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style and format with ruff."""
    run(session, "ruff ")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types with mypy."""
    run(session, "mypy")


@nox.session(venv_backend="none")
def imports(session: nox.Session) -> None:
    """Check with import-linter that each layer imports only from those below."""
    run(session, "lint-imports")


@nox.session(venv_backend="none")
def workflows(session: nox.Session) -> None:
    """Check the workflows of GitHub and CITATION.cff against their schemas."""
    run(session, "check-jsonschema ")


@nox.session(venv_backend="none")
def package(session: nox.Session) -> None:
    """Build the source distribution and the wheel in build/dist, and check them and their metadata."""
    for start in ("python -m build", "twine ", "check-wheel-contents ", "validate-pyproject ", "pyroma "):
        run(session, start)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the docs site in build/site; a link that leads nowhere is an error."""
    run(session, "mkdocs ")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the whole suite; arguments behind `--` go to pytest."""
    run(session, "python -m pytest")


@nox.session(venv_backend="none")
def fast(session: nox.Session) -> None:
    """Run the tests that are not marked `slow`; arguments behind `--` go to pytest."""
    run(session, "python -m pytest", *FAST)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """Run the fast tests with the lowest version of every dependency; arguments behind `--` go to pytest."""
    session.install("uv")
    session.run("uv", "pip", "install", "-q", "--resolution", "lowest-direct", "-e", ".[dev]")
    session.run("python", "-m", "pytest", *FAST, *session.posargs)
