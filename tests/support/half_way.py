"""A set whose change in place was killed half way: shard 1 has no name, and a journal tells how to finish."""

from __future__ import annotations

from pathlib import Path

from gguftool.storage.execute.executor import execute
from gguftool.storage.sources.sidecars import set_journal_path
from tests.support import builders as b
from tests.support.syscalls import count_calls, killed_at
from tests.support.writer_cases import CASES, listing, set_up

SHARDS = [b.shard_name("set", number, 3) for number in (1, 2, 3)]
SET_SWAP = next(case for case in CASES if case.name == "swap --in-place, set")


def half_way(folder: Path) -> dict[str, bytes]:
    """Leave the set between old and new, its shard 1 without its name; return what it will be."""
    set_up(SET_SWAP, folder)
    plan = SET_SWAP.plan(folder)
    calls = count_calls(lambda: execute(plan))
    wanted = listing(folder)
    for at in reversed(range(len(calls))):
        set_up(SET_SWAP, folder)
        plan = SET_SWAP.plan(folder)
        assert killed_at(at, lambda plan=plan: execute(plan))  # type: ignore[misc]
        if set_journal_path(folder / SHARDS[0]).exists() and not (folder / SHARDS[0]).exists():
            return wanted
    raise AssertionError("shard 1 kept its name all the time")
