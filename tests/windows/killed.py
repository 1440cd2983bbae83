"""Carry out a case of `writer_cases` and end this process at one of its calls; for Windows, which has no fork.

python -m tests.windows.killed CASE FOLDER                        print the number of calls of an unbroken run
python -m tests.windows.killed CASE FOLDER NUMBER [NUMBER...]     kill a run at each call, run again, compare
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from gguftool.errors import ExecuteError
from gguftool.model.recovery import recover_model
from gguftool.storage.execute.executor import execute
from tests.support.syscalls import KILLED, Injector, count_calls
from tests.support.writer_cases import CASES, Case, listing, options_of, run, set_up, visible


def main(words: list[str]) -> None:
    case, folder = next(case for case in CASES if case.name == words[0]), Path(words[1])
    if words[2:3] == ["now"]:
        plan = case.plan(folder)
        with Injector(kill_at=int(words[3])).active():
            execute(plan, options_of(case))
        return
    set_up(case, folder)
    plan = case.plan(folder)
    calls = count_calls(lambda: execute(plan, options_of(case)))
    wanted = listing(folder)
    if not words[2:]:
        print(len(calls))
    for at in words[2:]:
        set_up(case, folder)
        done = subprocess.run([sys.executable, "-m", "tests.windows.killed", *words[:2], "now", at], check=False)
        assert done.returncode == KILLED, (at, done.returncode)
        _run_again(case, folder, wanted)
        print(f"killed at {calls[int(at)]}, number {at}: made right")


def _run_again(case: Case, folder: Path, wanted: dict[str, bytes]) -> None:
    before = {**case.files, **case.old}
    if case.changes_inputs:
        for name in case.files:
            with contextlib.suppress(Exception):
                recover_model(str(folder / name))
        assert visible(listing(folder)) in (before, wanted)
        if visible(listing(folder)) == wanted:
            assert listing(folder) == wanted
            return
    for name, data in () if case.changes_inputs else case.files.items():
        assert (folder / name).read_bytes() == data
    if visible(listing(folder)) == wanted and not case.force:
        with contextlib.suppress(ExecuteError):
            run(case, folder)
        assert visible(listing(folder)) == wanted
        return
    run(case, folder)
    assert listing(folder) == wanted


if __name__ == "__main__":
    main(sys.argv[1:])
