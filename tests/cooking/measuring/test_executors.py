"""Clusters: two workers of this machine, one of which is killed, write the same lines as one process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gguftool.cooking.measuring import executors
from gguftool.cooking.measuring.executors import shares_of_cores
from gguftool.cooking.measuring.run import Hooks
from gguftool.errors import ExecuteError, PlanError
from gguftool.record import replace
from tests.support.fake_perplexity import make_fake
from tests.support.faults import tree
from tests.support.measure_cases import lines_of, make_setup, measuring, selection


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7, 9}, raising=False)
    assert shares_of_cores(1) == [()]
    assert shares_of_cores(2) == [(2, 3, 5), (7, 9)]
    assert shares_of_cores(5) == [(2,), (3,), (5,), (7,), (9,)]
    with pytest.raises(PlanError, match="--jobs 6 on 5 cores"):
        shares_of_cores(6)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="pip install 'gguftool[cluster]' brings it")
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(folder / "dask"),
        silence_logs=50,
    ) as found:
        yield found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_one_killed_write_the_same_lines(tmp_path: Path) -> None:
    chosen = selection("q4_0", "q8_0")
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    setup = make_setup(tmp_path)
    measuring(setup, alone, chosen).run()
    with cluster(tmp_path, 2) as found:
        run = measuring(setup, together, chosen, scheduler=found.scheduler_address)
        victim = found.workers[0].pid
        killed = []

        def kill_one(done: int, total: int) -> None:
            if done == 2:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        report = run.run(Hooks(progress=kill_one))
        assert killed
        assert report.failed == ()
    assert together.read_bytes() == alone.read_bytes()
    assert len(lines_of(together)) == 9
    assert [name for name in tree(tmp_path) if "gguftool-" in name or "work" in Path(name).suffix] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_with_other_inputs_and_an_engine_that_fails_are_named(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    with cluster(tmp_path, 1) as found:
        run = measuring(setup, tmp_path / "out.jsonl", scheduler=found.scheduler_address)
        (tmp_path / "text.txt").write_bytes(b"another text " * 100)
        with pytest.raises(PlanError, match="files of the same name differ on this worker: text"):
            run.run()
        assert not (tmp_path / "out.jsonl").exists()
        bad = replace(setup, engine=str(make_fake(tmp_path / "bad", "nan")))
        with pytest.raises(ExecuteError, match=r"3 measurements in a row failed.*NaN"):
            measuring(bad, tmp_path / "bad.jsonl", scheduler=found.scheduler_address).run()
        assert [line["kind"] for line in lines_of(tmp_path / "bad.jsonl")] == ["floor"]


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_PATIENCE", 1)
    pytest.importorskip("distributed", reason="pip install 'gguftool[cluster]' brings it")
    run = measuring(make_setup(tmp_path), tmp_path / "out.jsonl", scheduler="127.0.0.1:1")
    with pytest.raises(PlanError, match=r"127\.0\.0\.1:1: no scheduler answers"):
        run.run()
    with pytest.raises(PlanError, match="exclude each other"):
        measuring(make_setup(tmp_path), tmp_path / "out.jsonl", scheduler="127.0.0.1:1", jobs=2)
