"""Planning the pruning of a large model stays cheap; how fast it is written is measured, not tested."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.altering import planning


def test_a_plan_of_18432_extents_takes_little_time_and_memory(tmp_path: Path) -> None:
    """The bars are over three times (time) and five times (memory) what was measured, so that load does not matter."""
    verdicts = list(planning(tmp_path, rounds=1))
    assert [verdict.unit for verdict in verdicts] == [" s", " MiB"] * 3
    assert [re.match(r"[\d,]+ extents", verdict.detail)[0] for verdict in verdicts[::2]] == [  # type: ignore[index]
        "18,432 extents",
        "13,824 extents",
        "18,480 extents",  # those of routers as well
    ]
    assert [str(verdict) for verdict in verdicts if not verdict.ok] == []
    assert not list(tmp_path.iterdir())
