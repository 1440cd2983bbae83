"""What finishes a set that a killed run was publishing, from every state that it may be in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.storage.execute.publish import finish_set
from gguftool.storage.sources.sidecars import helper_path, set_journal_path

NAMES = ["s-00002-of-00002.gguf", "s-00001-of-00002.gguf"]  # in publishing order


def put(path: Path, data: bytes) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def journal(folder: Path, **fields: object) -> Path:
    known = {"version": "gguftool set 1", "fingerprint": "f", "replace": False, "names": [[name, 3] for name in NAMES]}
    put(set_journal_path(folder / NAMES[1]), json.dumps({**known, **fields}).encode() + b"\n")
    return folder / NAMES[1]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_parts_that_are_left_get_their_names(tmp_path: Path, replace: bool, left: int) -> None:
    first = journal(tmp_path, replace=replace)
    for number, name in enumerate(NAMES):
        if number < 2 - left:
            put(tmp_path / name, b"new")
        else:
            put(helper_path(tmp_path / name, "part"), b"new")
            if replace:
                put(tmp_path / name, b"old")
    if replace:
        put(helper_path(first, "old"), b"old")
    found = finish_set(first)
    assert found is not None
    assert (found.fingerprint, found.replace) == ("f", replace)
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")
    assert finish_set(first) is None


def test_a_foreign_file_keeps_its_name_and_the_journal_stays(tmp_path: Path) -> None:
    first = journal(tmp_path)
    put(helper_path(tmp_path / NAMES[0], "part"), b"new")
    put(tmp_path / NAMES[0], b"foreign")
    before = state(tmp_path)
    with pytest.raises(ExecuteError, match="exists already"):
        finish_set(first)
    assert state(tmp_path) == before


def test_a_second_name_of_a_published_file_goes(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for name in NAMES:
        os.link(put(tmp_path / name, b"new"), helper_path(tmp_path / name, "part"))
    assert finish_set(first) is not None
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")


@pytest.mark.parametrize(
    "fields",
    [{"version": "gguftool set 2"}, {"suffix": "old"}, {"names": [["t-00001-of-00002.gguf", 3]]}, {"names": 5}],
)
def test_what_is_no_set_journal_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    first = journal(tmp_path, **fields)
    with pytest.raises(ExecuteError, match="is not a set journal of this gguftool, or is damaged") as caught:
        finish_set(first)
    assert caught.value.source == str(set_journal_path(first))
