"""Names of files on every system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gguftool.storage.system.names import name_problem, open_file, rename, replace_file, unlink


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.gguf", None),
        ("console.gguf", None),
        ("con.gguf", "'CON' is the name of a device"),
        ("Aux", "'AUX' is the name of a device"),
        ("COM1.tar.gguf", "'COM1' is the name of a device"),
        ("com10.gguf", None),
        ("conin$", "'CONIN$' is the name of a device"),
        ("CONOUT$.gguf", "'CONOUT$' is the name of a device"),
        ("com\N{SUPERSCRIPT ONE}.gguf", "is the name of a device"),
        ("nul .gguf", "'NUL' is the name of a device"),
        ("model.gguf.", "a blank or a dot at the end"),
        ("model.gguf ", "a blank or a dot at the end"),
        ("a:b.gguf", "does not allow ':'"),
        ("what?.gguf", "does not allow '?'"),
        ("a\tb.gguf", "does not allow '\\t'"),
    ],
)
def test_names_that_windows_refuses(name: str, problem: str | None) -> None:
    found = name_problem(name)
    assert found is problem if problem is None else problem in (found or "")


def test_files_can_be_named_while_they_are_open(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in "abc")
    fd = open_file(one, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"new")
    rename(one, two)
    three.write_bytes(b"old")
    replace_file(two, three)
    assert three.read_bytes() == b"new"
    unlink(three)
    os.close(fd)
    assert os.listdir(tmp_path) == []


def test_what_exists_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        open_file(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "b", os.O_RDONLY)
    assert (tmp_path / "a").read_bytes() == b"old"
