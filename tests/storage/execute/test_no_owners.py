"""A file system that keeps no owners: what was just made comes back as another user's.

CIFS, exFAT and NTFS mounts do that. Here the user's number is another one than that of the files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from tests.support.consume_cases import CONSUME_CASES, ConsumeCase
from tests.support.writer_cases import CASES, Case, listing, options_of, set_up, visible

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners are those of POSIX systems: run on Linux")

NEW_FILES = [case for case in CASES if not case.changes_inputs]
IN_PLACE = [case for case in CASES if case.changes_inputs and "set" not in case.name]


@pytest.fixture
def no_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)


@pytest.mark.parametrize("case", NEW_FILES, ids=str)
def test_new_files_are_written(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(case, tmp_path / "run")
    execute(case.plan(tmp_path / "run"), options_of(case))
    wanted = listing(tmp_path / "run")
    set_up(case, tmp_path / "run")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    execute(case.plan(tmp_path / "run"), options_of(case))
    assert listing(tmp_path / "run") == wanted


@pytest.mark.parametrize("case", IN_PLACE, ids=str)
@pytest.mark.usefixtures("no_owners")
def test_a_change_in_place_is_refused_before_there_is_a_journal(case: Case, tmp_path: Path) -> None:
    set_up(case, tmp_path / "run")
    before = listing(tmp_path / "run")
    with pytest.raises(ExecuteError, match=r"keeps no owners.*write a new file with -o"):
        execute(case.plan(tmp_path / "run"), options_of(case))
    assert listing(tmp_path / "run") == before


@pytest.mark.parametrize("case", CONSUME_CASES, ids=str)
@pytest.mark.usefixtures("no_owners")
def test_inputs_are_not_removed(case: ConsumeCase, tmp_path: Path) -> None:
    case.set_up(tmp_path / "run")
    before = listing(tmp_path / "run")
    with pytest.raises(ExecuteError, match=r"keeps no owners.*without --consume"):
        execute(case.plan(tmp_path / "run"), Options(force=case.force))
    assert listing(tmp_path / "run") == before
    assert visible(before) == before
