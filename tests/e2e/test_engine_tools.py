"""llama.cpp's own tools on our files, and ours on theirs: hashes and shard sets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import run_gguftool
from tests.support.engine_tools import tool
from tests.support.paths import FIXTURES

MODELS = ["tiny-llama-Q4_K.gguf", "tiny-qwen3moe-Q4_K.gguf"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURES / "engines" / request.param, tmp_path / request.param))


def run(name: str, *words: object, folder: Path) -> str:
    command = [str(tool(name)), *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def gguftool(*words: object, folder: Path) -> bytes:
    done = run_gguftool(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*-of-*.gguf"))]


def test_both_print_the_same_hashes(model: Path, tmp_path: Path) -> None:
    theirs = run("llama-gguf-hash", "--sha256", model.name, folder=tmp_path)
    assert gguftool("hash", model.name, folder=tmp_path).decode() == theirs


def test_each_checks_what_the_other_printed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(run("llama-gguf-hash", "--all", model.name, folder=tmp_path))
    assert b" 0 do not, 0 have no hash" in gguftool("hash", "--check", "theirs", folder=tmp_path)
    (tmp_path / "ours").write_bytes(gguftool("hash", model.name, folder=tmp_path))
    assert "Verification results for ours - Success" in run(
        "llama-gguf-hash", "--check", "ours", model.name, folder=tmp_path
    )


@pytest.mark.parametrize("first", [True, False], ids=["tensors first", "metadata first"])
@pytest.mark.parametrize(
    "limit", [("--split-max-tensors", "--max-tensors", 5), ("--split-max-size", "--max-size", "1M")]
)
def test_both_split_into_the_same_bytes(
    model: Path, tmp_path: Path, limit: tuple[str, str, object], first: bool
) -> None:
    theirs, ours, most = limit
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    option = () if first else ("--no-tensor-first-split",)
    run("llama-gguf-split", "--split", theirs, most, *option, model.name, "theirs/m", folder=tmp_path)
    option = ("--tensor-first-split",) if first else ()
    gguftool("split", model.name, "ours/m", ours, most, *option, folder=tmp_path)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_each_merges_what_the_other_split(model: Path, tmp_path: Path) -> None:
    run("llama-gguf-split", "--split", "--split-max-tensors", 4, model.name, "theirs", folder=tmp_path)
    gguftool("merge", "theirs-*.gguf", "-o", "ours.gguf", folder=tmp_path)
    assert (tmp_path / "ours.gguf").read_bytes() == model.read_bytes()
