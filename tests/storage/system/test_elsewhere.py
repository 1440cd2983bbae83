"""Other folders leave to this one what differs by platform."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gguftool

PACKAGE = Path(gguftool.__file__).parent
SYSTEM = PACKAGE / "storage" / "system"
# Calls of `os` that Windows has with another meaning, or not at all, and what this folder has for them.
OWN = {
    "open": "names.open_file",
    "rename": "names.rename",
    "replace": "names.replace_file",
    "unlink": "names.unlink",
    "remove": "names.unlink",
    "ftruncate": "fileio.set_size",
    "truncate": "fileio.set_size",
    "pread": "fileio.read_some",
    "preadv": "fileio.read_into",
    "pwrite": "fileio.write_some",
    "fsync": "fileio.sync_file",
    "statvfs": "space.free_bytes",
    "kill": "processes.kill_tree",
    "killpg": "processes.kill_tree",
    "geteuid": "ownership.is_own",
    "getuid": "ownership.is_own",
}
# Folders are opened to be locked, and what swallows output: no file that anything renames.
OPEN_NO_FILE = {"storage/execute/consume.py", "cooking/measuring/work_folder.py", "cli/shared/console.py"}


def test_no_other_module_makes_calls_that_differ_by_platform() -> None:
    assert [found for path in PACKAGE.rglob("*.py") if SYSTEM not in path.parents for found in _strays(path)] == []


def _strays(path: Path) -> Iterator[str]:
    name = path.relative_to(PACKAGE).as_posix()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    attributes = (node for node in nodes if isinstance(node, ast.Attribute) and node.attr in OWN)
    for node in attributes:
        is_of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
        if is_of_os and not (node.attr == "open" and name in OPEN_NO_FILE):
            yield f"{name}:{node.lineno}: os.{node.attr}; use {OWN[node.attr]} of storage/system"
