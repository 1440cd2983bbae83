"""What all tests share: where the reference data is, how hard Hypothesis looks, how the command line is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parent.parent
FIXTURES = REPO / "fixtures"
SHARED = Path(os.environ.get("GGUFTOOL_SHARED") or REPO.parent / "shared")

# Fixtures that hold test-wide state (tmp_path) are only read or keyed by content in properties, hence the suppression.
settings.register_profile(
    "modest",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("modest")


def shared_path(relative: str) -> Path:
    """Return a path of the reference data; skip the test where it is not there, saying how to get it."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"no {relative} beside the repository: put the reference data there, or name it in GGUFTOOL_SHARED")
    return path


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    return shared_path


@pytest.fixture
def gguftool() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command line in a process of its own, as a user does."""
    return run_gguftool


def run_gguftool(
    *args: object, timeout: float = 60, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[bytes]:
    command = [*prefix, sys.executable, "-m", "gguftool", *map(str, args)]
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(command, check=False, timeout=timeout, env=environment(), **options)  # type: ignore[call-overload,no-any-return]


def environment() -> dict[str, str]:
    """The environment of subprocesses: this checkout's package, whatever is installed."""
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}


def one_error_line(stderr: bytes) -> str:
    """Return the error's only line; fail where there is more on standard error, or a traceback."""
    lines = stderr.decode("utf-8").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gguftool: error: "), lines
    return lines[0]
