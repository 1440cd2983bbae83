"""Every public name of the package has a type that all type checkers read alike."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import environment
from tests.support.paths import REPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pyright") is None, reason="no pyright: .venv/bin/pip install -e '.[dev]'"
    ),
]


def verify_types() -> dict[str, Any]:
    """What pyright says of the types; it asks the first Python on the `PATH` where packages are."""
    variables = environment()
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    command = [sys.executable, "-m", "pyright", "--verifytypes", "gguftool", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return json.loads(done.stdout)["typeCompleteness"]  # type: ignore[no-any-return]


def test_the_types_of_the_public_names_are_complete() -> None:
    found = verify_types()
    assert found["exportedSymbolCounts"]["withKnownType"] > 4000
    unknown = [
        f"{symbol['name']}: {[diagnostic['message'] for diagnostic in symbol['diagnostics']]}"
        for symbol in found["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"] and symbol["diagnostics"]
    ]
    assert unknown == []
    assert found["completenessScore"] == 1
