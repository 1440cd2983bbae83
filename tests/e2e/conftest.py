"""Real models, the command line and the real engine, each in a process of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import engine
from tests.e2e.altering import Quantized
from tests.support.paths import FIXTURES
from tests.support.smollm2 import SMOLLM2_COMMAND, SMOLLM2_SHA256, find_smollm2


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


@pytest.fixture(scope="session")
def predict() -> Callable[..., list[engine.Prediction]]:
    """Ask real llama.cpp what models predict: see `engine.predict`."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed; pip install -e '.[test]'")
    return engine.predict


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Make tiny models that are quantized: see `altering.Quantized`."""
    return Quantized(tmp_path_factory.mktemp("quantized"))
