"""Copies from sources that are far away: few requests, many at once, and no byte fetched twice."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import GGUFToolError, SourceError
from gguftool.storage.execute import streaming
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import copy_all
from gguftool.storage.execute.executor import execute as execute_plan
from gguftool.storage.execute.options import Options, Sizes
from gguftool.storage.execute.resume import joined, without
from gguftool.storage.execute.streaming import MAX_GAP, Lane, join_runs, requests
from gguftool.storage.plan import Copy, OutputFile, Plan, Receipt
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path
from gguftool.storage.sources.source import Extent, Source
from tests.support.builders import filler
from tests.support.slow_source import SlowSource
from tests.support.syscalls import count_calls, every_fault, killed_at

KIB = 1 << 10
DATA = filler("far away", 2 << 20)


SIZES = Sizes(least_request=64 * KIB, most_request=512 * KIB, range_step=128 * KIB, range_pause=0.0)


def execute(plan: Plan, options: Options | None = None) -> Receipt:
    """Carry out `plan` in small steps, so that little data has many."""
    options = options or Options()
    return execute_plan(plan, replace(options, sizes=SIZES) if options.sizes == Sizes() else options)


def copy_of(source: Source, offset: int, length: int, place: int) -> Copy:
    return Copy(extent=Extent(source=source, offset=offset, length=length), offset=place)


def plan_of(path: Path, *copies: Copy, size: int | None = None) -> Plan:
    end = copies[-1].offset + copies[-1].extent.length
    inputs = tuple({id(copy.extent.source): copy.extent.source for copy in copies}.values())
    return Plan(outputs=(OutputFile(path=path, head=b"", copies=copies, size=size or end),), inputs=inputs)


# --- requests ---


@given(
    places=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 300_000), st.booleans()), min_size=1, max_size=30),
    parallelism=st.integers(1, 9),
)
def test_requests_cover_every_copy_once(places: list[tuple[int, int, bool]], parallelism: int) -> None:
    source = SlowSource(b"")
    copies, offset, target = [], 0, 7
    for gap, length, far in places:
        offset += gap + far * 2 * MAX_GAP
        target += gap % 97
        copies.append(copy_of(source, offset, length, target))
        offset, target = offset + length, target + length
    asked = list(requests(join_runs(copies), parallelism, SIZES))
    pieces = sorted(
        (piece.offset, piece.extent.offset, piece.extent.length) for request in asked for piece in request.copies
    )
    rebuilt: list[list[int]] = []
    for place, start, length in pieces:
        if rebuilt and rebuilt[-1][0] + rebuilt[-1][2] == place and rebuilt[-1][1] + rebuilt[-1][2] == start:
            rebuilt[-1][2] += length
        else:
            rebuilt.append([place, start, length])
    whole: list[list[int]] = []
    for copy in copies:
        last = whole[-1] if whole else None
        if last and last[0] + last[2] == copy.offset and last[1] + last[2] == copy.extent.offset:
            last[2] += copy.extent.length
        else:
            whole.append([copy.offset, copy.extent.offset, copy.extent.length])
    assert rebuilt == whole
    for request in asked:
        assert request.offset == request.copies[0].extent.offset
        assert request.offset + request.length == request.copies[-1].extent.end
        gaps = [b.extent.offset - a.extent.end for a, b in pairwise(request.copies)]
        assert all(0 <= gap <= MAX_GAP for gap in gaps)
        assert request.length <= SIZES.most_request + MAX_GAP + 4096


def test_extents_that_are_neighbours_in_the_source_alone_are_one_request(tmp_path: Path) -> None:
    source = SlowSource(DATA)
    places = [(400_000, 1000, 0), (200_000, 1000, 5000), (201_000, 1000, 3000), (202_500, 1000, 1000)]
    copies = sorted((copy_of(source, *place) for place in places), key=lambda copy: copy.offset)
    execute(plan_of(tmp_path / "out", *copies))
    assert sorted(source.requests) == [(200_000, 3500), (400_000, 1000)]
    data = (tmp_path / "out").read_bytes()
    for offset, length, place in places:
        assert data[place : place + length] == DATA[offset : offset + length]


def test_one_large_extent_keeps_every_connection_busy_to_the_end() -> None:
    source = SlowSource(b"")
    asked = list(requests(join_runs([copy_of(source, 0, 64 << 20, 0)]), 8, SIZES))
    assert len(asked) >= 8
    assert asked[0].length > asked[-1].length
    assert asked[-1].length <= 2 * SIZES.least_request


def test_connections_work_at_the_same_time(tmp_path: Path) -> None:
    source = SlowSource(DATA, latency=0.1)
    execute(plan_of(tmp_path / "out", copy_of(source, 0, len(DATA), 0)), Options(jobs=6))
    assert source.most_at_once == 6
    assert (tmp_path / "out").read_bytes() == DATA


def test_local_copies_do_not_wait_for_remote_ones_nor_these_for_them(tmp_path: Path) -> None:
    copied = threading.Event()

    class Waiting(SlowSource):
        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            assert copied.wait(20), "the local copy waits for the remote one"
            return super().stream(offset, length)

    (tmp_path / "local").write_bytes(DATA)
    local, slow = open_local(tmp_path / "local"), Waiting(DATA[: 64 * KIB])
    copies = (copy_of(slow, 0, 64 * KIB, 0), copy_of(local, 0, len(DATA), 64 * KIB))
    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done == len(DATA):
            copied.set()

    with (tmp_path / "out").open("w+b") as out:
        copy_all(copies, out.fileno(), CopyState(sizes=SIZES, progress=progress))
    assert done == len(DATA) + 64 * KIB
    assert (tmp_path / "out").read_bytes() == DATA[: 64 * KIB] + DATA


# --- errors ---


def test_a_thread_that_hangs_in_a_dead_connection_is_not_waited_for(tmp_path: Path) -> None:
    release, woken = threading.Event(), []

    class Hanging(SlowSource):
        def stream(self, offset: int, length: int) -> Iterator[bytes]:
            if offset:
                time.sleep(0.1)
                raise SourceError("the server is gone", source=self.name)
            release.wait(60)
            woken.append(offset)
            yield self.data[offset : offset + length]

    source = Hanging(DATA)
    path = tmp_path / "out"
    with path.open("w+b") as out, pytest.raises(SourceError, match="gone"):
        copy_all([copy_of(source, 0, len(DATA), 0)], out.fileno(), CopyState(jobs=3, sizes=replace(SIZES, grace=0.2)))
    assert woken == []  # it hangs still
    release.set()
    for thread in threading.enumerate():
        if thread.name == "gguftool":
            thread.join(5)
    assert not any(path.read_bytes())  # what came afterwards was not written


@pytest.mark.parametrize("jobs", [1, 5])
def test_after_a_lost_connection_the_same_plan_fetches_only_what_is_missing(tmp_path: Path, jobs: int) -> None:
    path = tmp_path / "out"
    lost = SlowSource(DATA, rate=20e6, fail_at=len(DATA) // 2)
    notes: list[str] = []
    with pytest.raises(SourceError, match="gone"):
        execute(plan_of(path, copy_of(lost, 0, len(DATA), 0)), Options(jobs=jobs, note=notes.append))
    assert any("run the same command again to resume" in note for note in notes)
    assert not path.exists()
    again = SlowSource(DATA)
    counted: list[int] = []
    options = Options(jobs=jobs, note=notes.append, progress=counted.append)
    execute(plan_of(path, copy_of(again, 0, len(DATA), 0)), options)
    assert path.read_bytes() == DATA
    # One piece a connection may be under way, and the end of one range is compared.
    assert len(DATA) <= lost.served + again.served <= len(DATA) + jobs * 64 * KIB + 64 * KIB
    assert sum(counted) == len(DATA)
    assert any("resumed after" in note for note in notes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_part_file_that_was_tampered_with_is_fetched_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    lost = SlowSource(DATA, fail_at=len(DATA) // 2)
    with pytest.raises(SourceError):
        execute(plan_of(path, copy_of(lost, 0, len(DATA), 0)), Options(jobs=2))
    part = helper_path(path, "part")
    part.write_bytes(bytes(part.stat().st_size))
    execute(plan_of(path, copy_of(SlowSource(DATA), 0, len(DATA), 0)))
    assert path.read_bytes() == DATA


def test_without_sync_nothing_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "out"
    lost = SlowSource(DATA, fail_at=len(DATA) // 2)
    with pytest.raises(SourceError):
        execute(plan_of(path, copy_of(lost, 0, len(DATA), 0)), Options(sync=False))
    assert not list(tmp_path.iterdir())


def two_outputs(folder: Path, source: SlowSource) -> Plan:
    size = len(source.data) // 2
    outputs = tuple(
        OutputFile(
            path=folder / f"out{number}",
            head=b"head",
            copies=(copy_of(source, number * size, size - 5000, 4096), copy_of(source, 0, 5000, 4096 + size)),
            size=4096 + size + 5000,
        )
        for number in range(2)
    )
    return Plan(outputs=outputs, inputs=(source,))


@pytest.mark.slow
def test_killed_at_any_call_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    small = replace(SIZES, range_step=1 << 16)
    source = SlowSource(DATA[: 1 << 19])
    (tmp_path / "whole").mkdir()
    calls = count_calls(lambda: execute(two_outputs(tmp_path / "whole", source), Options(sizes=small, jobs=1)))
    wanted = [(tmp_path / "whole" / f"out{number}").read_bytes() for number in range(2)]
    resumed = 0
    for at in range(0, len(calls), 2):
        folder = tmp_path / f"at{at}"
        folder.mkdir()
        killed_at(at, lambda folder=folder: execute(two_outputs(folder, source), Options(sizes=small, jobs=1)))  # type: ignore[misc]
        source.served = 0
        execute(two_outputs(folder, source), Options(sizes=small, jobs=1, force=True))
        resumed += source.served < len(source.data) // 2
        assert [(folder / f"out{number}").read_bytes() for number in range(2)] == wanted, calls[at]
        assert sorted(path.name for path in folder.iterdir()) == ["out0", "out1"]
        for path in folder.iterdir():
            path.unlink()
    assert resumed >= len(calls) // 10


@pytest.mark.slow
def test_every_call_that_fails_leaves_nothing_or_what_can_be_gone_on_from(tmp_path: Path) -> None:
    source = SlowSource(DATA[: 1 << 19])
    (tmp_path / "whole").mkdir()
    calls = count_calls(lambda: execute(two_outputs(tmp_path / "whole", source), Options(jobs=1)))
    wanted = [(tmp_path / "whole" / f"out{number}").read_bytes() for number in range(2)]
    for number, injector in enumerate(list(every_fault(calls))[::4]):
        folder = tmp_path / f"fault{number}"
        folder.mkdir()
        with injector.active(), contextlib.suppress(GGUFToolError):
            execute(two_outputs(folder, source), Options(jobs=1))
        for index, data in enumerate(wanted):
            path = folder / f"out{index}"
            assert not path.exists() or path.read_bytes() == data
        execute(two_outputs(folder, source), Options(jobs=1, force=True, sync=False))
        assert [(folder / f"out{index}").read_bytes() for index in range(2)] == wanted
        for path in folder.iterdir():
            path.unlink()


# --- ranges ---

RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=12)


@given(noted=RANGES, wanted=RANGES)
def test_what_is_there_is_taken_out_of_what_is_wanted(
    noted: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    there = joined([(start, start + length) for start, length in noted])
    assert all(a[1] < b[0] for a, b in pairwise(there))
    source = SlowSource(b"")
    copies = [copy_of(source, 3 * start, end - start, start) for start, end in joined([(s, s + n) for s, n in wanted])]
    rest = without(copies, there)
    have = {at for start, end in there for at in range(start, end)}
    want = {at: copy.extent.offset + at - copy.offset for copy in copies for at in _span(copy)}
    left = {at: copy.extent.offset + at - copy.offset for copy in rest for at in _span(copy)}
    assert left == {at: place for at, place in want.items() if at not in have}
    assert sum(copy.extent.length for copy in rest) == len(left)


def _span(copy: Copy) -> range:
    return range(copy.offset, copy.offset + copy.extent.length)


# --- cuts, exactly ---


def cut(*places: tuple[int, int, int], parallelism: int = 1, sizes: Sizes = SIZES) -> list[tuple[int, int]]:
    source = SlowSource(b"")
    runs = join_runs([copy_of(source, *place) for place in places])
    return [(request.offset, request.length) for request in requests(runs, parallelism, sizes)]


def test_copies_up_to_64_kib_apart_are_joined() -> None:
    gap, sizes = 64 * KIB, Sizes(least_request=1 << 20)
    assert cut((0, 10, 0), (10 + gap, 10, 100), sizes=sizes) == [(0, 20 + gap)]
    assert cut((0, 10, 0), (11 + gap, 10, 100), sizes=sizes) == [(0, 10), (11 + gap, 10)]
    assert cut((0, 10, 0), (10, 10, 100), sizes=sizes) == [(0, 20)]
    assert cut((0, 10, 0), (9, 10, 100), sizes=sizes) == [(0, 10), (9, 10)]  # no request has overlapping copies
    assert cut((0, 10, 0), (5, 0, 100), sizes=sizes) == [(0, 10)]
    assert cut((5, 0, 100), sizes=sizes) == []


def test_requests_shrink_from_most_to_least_and_end_at_pages_of_the_target() -> None:
    """With one reader, each takes half of what is left; with two, a quarter."""
    sizes = Sizes(least_request=8 * KIB, most_request=64 * KIB)
    lengths = [length // KIB for _, length in cut((0, 256 * KIB, 0), sizes=sizes)]
    assert lengths == [64, 64, 64, 32, 16, 8, 8]
    lengths = [length // KIB for _, length in cut((0, 256 * KIB, 0), parallelism=2, sizes=sizes)]
    assert lengths[:4] == [64, 48, 36, 24]
    assert sum(lengths) == 256
    assert cut((0, 256 * KIB, 0), parallelism=0, sizes=sizes)[0] == (0, 64 * KIB)
    first, second, *_ = cut((0, 256 * KIB, 100), sizes=sizes)
    assert first == (0, 64 * KIB - 100)
    assert second[0] == first[1]
    assert cut((0, 100 * KIB, 0), parallelism=100, sizes=sizes)[:2] == [(0, 8 * KIB), (8 * KIB, 8 * KIB)]


def test_what_reaches_no_page_end_is_taken_whole() -> None:
    sizes = Sizes(least_request=1000, most_request=1000)
    assert cut((0, 3000, 0), sizes=sizes) == [(0, 3000)]
    assert cut((0, 4097, 3096), sizes=sizes) == [(0, 1000), (1000, 3097)]
    assert cut((0, 1000, 0), (1000, 500, 4096), sizes=sizes) == [(0, 1000), (1000, 500)]
    assert cut((0, 999, 0), (999, 500, 4096), sizes=sizes) == [(0, 1499)]


def test_a_source_that_computes_says_how_much_it_wants_at_once() -> None:
    class Computing(SlowSource):
        @property
        def preferred_chunk(self) -> int:
            return 128 * KIB

    runs = join_runs([copy_of(Computing(b""), 0, 300 * KIB, 0)])
    assert [request.length // KIB for request in requests(runs, 8, SIZES)] == [128, 128, 44]


def test_gaps_that_are_read_too_are_not_written(tmp_path: Path) -> None:
    source = SlowSource(DATA)
    places = [(10, 100, 50), (300_000, 7, 200), (110, 5, 3000), (5000, 1, 9000)]
    copies = [copy_of(source, *place) for place in places]
    wanted = bytearray(9001)
    for offset, length, place in places:
        wanted[place : place + length] = DATA[offset : offset + length]
    with (tmp_path / "out").open("w+b") as out:
        copy_all(copies, out.fileno(), CopyState(jobs=1, sizes=SIZES))
    assert (tmp_path / "out").read_bytes() == wanted
    assert source.requests == [(10, 4991), (300_000, 7)]


@pytest.mark.parametrize(("jobs", "length", "wanted"), [(1, 2 << 20, False), (2, 2 << 20, True), (2, 4096, False)])
def test_one_thread_or_one_request_needs_no_threads(tmp_path: Path, jobs: int, length: int, wanted: bool) -> None:
    with (tmp_path / "out").open("w+b") as out:
        lane = Lane([copy_of(SlowSource(DATA), 0, length, 0)], out.fileno(), CopyState(jobs=jobs, sizes=SIZES))
        assert lane.needs_threads is wanted
        assert lane.needs_threads is wanted
        lane.drain()
        lane.close()
        assert os.fstat(out.fileno()).st_size == length  # nothing that was looked at ahead is lost


@pytest.mark.parametrize(("jobs", "most", "count"), [(None, 64, 8), (None, 3, 3), (2, 64, 2)])
def test_a_lane_has_as_many_threads_as_jobs_or_as_its_source_likes(
    tmp_path: Path, jobs: int | None, most: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(streaming, "start", lambda work, number: counts.append(number) or [])
    with (tmp_path / "out").open("w+b") as out:
        copies = [copy_of(SlowSource(DATA, connections=number), 0, 10, 0) for number in (1, 8)]
        lane = Lane(copies, out.fileno(), CopyState(jobs=jobs, sizes=SIZES))
        lane.start(most)
        lane.close()
    assert counts == [count]


def test_the_descriptor_closes_with_the_last_user_and_nothing_is_written_after_the_stop(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as out:
        state = CopyState(jobs=1, sizes=SIZES)
        lane = Lane([copy_of(SlowSource(DATA), 0, 100, 0)], out.fileno(), state)
        state.stop.set()
        lane.drain()
        assert lane._write(memoryview(b"late"), 0) is False
        fd = lane._fd
        os.fstat(fd)
        lane.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        lane._run_thread()  # a thread that starts late has nothing to do
    assert (tmp_path / "out").read_bytes() == b""


def test_sources_of_one_kind_share_a_lane() -> None:
    class Other(SlowSource):
        pass

    a, b, c = SlowSource(b""), Other(b""), SlowSource(b"")
    copies = [copy_of(source, 0, 1, place) for place, source in enumerate((a, b, c))]
    assert streaming.lanes_of(copies) == ((copies[0], copies[2]), (copies[1],))
    assert [run.source for run in join_runs(copies)] == [a, b, c]
