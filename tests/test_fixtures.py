"""The fixtures are what MANIFEST says, and make.py makes them again byte for byte."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from support import FIXTURES


def manifest() -> dict[str, tuple[str, str]]:
    rows = [line.split("\t") for line in (FIXTURES / "MANIFEST").read_text(encoding="utf-8").splitlines()]
    return {name: (digest, tool) for digest, name, tool, _ in rows}


def test_manifest_lists_every_file_with_its_digest_and_sizes_stay_small() -> None:
    paths = [path for path in FIXTURES.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", "")]
    found = {path.relative_to(FIXTURES).as_posix(): path.read_bytes() for path in paths}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == {
        name: digest for name, (digest, _) in manifest().items()
    }
    sizes = {name: len(data) for name, data in found.items()}
    assert max(size for name, size in sizes.items() if not name.startswith("engines/")) < 64 << 10
    assert sum(size for name, size in sizes.items() if name.startswith("engines/")) <= 12_000_000


def test_make_py_makes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", FIXTURES / "make.py", tmp_path], check=True)
    made = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert made == {name: digest for name, (digest, tool) in manifest().items() if tool == "fixtures/make.py"}
