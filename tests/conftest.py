"""What all tests share: fixtures, and how hard Hypothesis looks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from tests.support.command import run_gguftool
from tests.support.nginx import nginx

__all__ = ["nginx"]  # a fixture that lives beside its server

# Fixtures that hold test-wide state (tmp_path) are only read or keyed by content in properties, hence the suppression.
settings.register_profile(
    "modest",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("modest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A program that had too little time on a busy machine gets it once more; one that hangs fails twice."""
    for item in items:
        if item.get_closest_marker("flaky") is None:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["TimeoutExpired"]))


@pytest.fixture
def gguftool() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the command line in a process of its own, as a user does."""
    return run_gguftool
