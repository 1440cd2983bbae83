"""Paths of the checkout and of the reference data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FIXTURES = REPO / "fixtures"
GOLDEN = REPO / "tests" / "golden"
SHARED = Path(os.environ.get("GGUFTOOL_SHARED") or REPO.parent / "shared")


def shared_path(relative: str) -> Path:
    """A path in the reference data; skip the test if it is missing, and say how to get it."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"no {relative} beside the repository: put the reference data there, or name it in GGUFTOOL_SHARED")
    return path
