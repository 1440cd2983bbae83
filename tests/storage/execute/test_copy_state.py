"""What the threads of one copy share: counts, the first error, the stop signal."""

from __future__ import annotations

import threading
import time

import pytest

from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.options import MIB, Options, Sizes
from gguftool.storage.system.fileio import WriteBack


class Listener:
    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.ticks = 0

    def on_written(self, offset: int, nbytes: int) -> None:
        self.written.append((offset, nbytes))

    def tick(self) -> None:
        self.ticks += 1


def in_thread(state: CopyState, offset: int, nbytes: int) -> None:
    thread = threading.Thread(target=state.written, args=(offset, nbytes))
    thread.start()
    thread.join()


def test_progress_is_reported_by_the_owner_alone() -> None:
    progress: list[int] = []
    listener = Listener()
    state = CopyState(progress=progress.append, listener=listener)
    in_thread(state, 0, 5)
    assert (progress, listener.ticks) == ([], 0)
    state.written(5, 7)
    assert (progress, listener.ticks) == ([12], 1)
    state.report()
    assert (progress, listener.ticks) == ([12], 2)
    state.written(12, 100, shared=True)
    assert progress == [12, 100]
    assert state.copied == 12
    assert listener.written == [(0, 5), (5, 7), (12, 100)]


def test_no_thread_but_the_owner_reports_whatever_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[int] = []
    state = CopyState(progress=progress.append)
    own = threading.get_ident()
    for other in (own - 1, own + 1):
        monkeypatch.setattr(threading, "get_ident", lambda other=other: other)
        state.written(0, 1)
        monkeypatch.undo()
    assert progress == []
    state.written(0, 1)
    assert progress == [3]


def test_what_a_state_is_made_of_is_named() -> None:
    with pytest.raises(TypeError):
        CopyState(3)  # type: ignore[misc]


def test_the_first_error_is_kept_and_stops_all() -> None:
    state = CopyState()
    assert state.error is None

    def fail(number: int) -> None:
        raise ValueError(number)

    state.guard(lambda: None)()
    assert not state.stop.is_set()
    state.guard(lambda: fail(1))()
    assert state.stop.is_set()
    state.guard(lambda: fail(2))()
    assert str(state.error) == "1"
    interrupted = CopyState()
    interrupted.guard(lambda: (_ for _ in ()).throw(KeyboardInterrupt).__next__())()
    assert isinstance(interrupted.error, KeyboardInterrupt)


def test_waiting_reports_and_ends_with_the_threads_or_the_stop_signal() -> None:
    listener = Listener()
    state = CopyState(listener=listener)
    release = threading.Event()
    threads = [threading.Thread(target=release.wait, args=(20,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    timer = threading.Timer(0.35, state.stop.set)
    timer.start()
    begun = time.monotonic()
    state.wait(threads)
    assert 0.3 < time.monotonic() - begun < 10
    assert 2 <= listener.ticks <= 6  # about ten a second
    assert all(thread.is_alive() for thread in threads)
    state.stop.clear()
    release.set()
    state.wait(threads)
    assert not any(thread.is_alive() for thread in threads)
    timer.join()


@pytest.mark.parametrize("sync", [True, False])
def test_a_state_takes_what_the_options_say(sync: bool) -> None:
    started: list[tuple[int, int, int]] = []

    class Recorder(WriteBack):
        def start(self, target: int, offset: int, length: int) -> None:
            started.append((target, offset, length))

    progress: list[int] = []
    listener = Listener()
    options = Options(jobs=3, progress=progress.append, sync=sync, sizes=Sizes(segment=5))
    state = CopyState.of(options, Recorder(0), listener=listener)
    state.start_write_back(1, 2, 3)
    state.written(0, 4)
    assert started == ([(1, 2, 3)] if sync else [])
    assert (state.jobs, state.sizes.segment, progress, listener.ticks) == (3, 5, [4], 1)


def test_a_run_is_durable_and_careful_by_default() -> None:
    options = Options()
    assert (options.sync, options.resume) == (True, True)
    assert not (options.force)
    assert not (options.private)
    assert not (options.hash_files)
    assert not (options.hash_parts)
    assert (options.jobs, options.checkpoint) == (None, 1 << 30)


def test_sizes_are_those_that_were_measured() -> None:
    """docs/benchmarks.md: other numbers cost time or memory, and need a new measurement."""
    sizes = Sizes()
    assert (sizes.segment, sizes.least_request, sizes.most_request) == (8 * MIB, 4 * MIB, 64 * MIB)
    assert (sizes.range_step, sizes.hash_step, sizes.write_back) == (16 * MIB, 256 * MIB, 32 * MIB)
    assert (sizes.least_clone, sizes.range_pause, sizes.grace) == (65_536, 0.25, 2.0)
    assert MIB == 1_048_576
