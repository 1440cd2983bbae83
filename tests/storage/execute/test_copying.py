"""Every way of copying gives the same bytes, whatever the kernel answers, and gives up cleanly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.execute import copying
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import BUFFER, copy_all, copy_extent
from gguftool.storage.execute.options import Sizes
from gguftool.storage.plan import Copy
from gguftool.storage.sources.local import LocalSource, open_local
from gguftool.storage.sources.source import Extent
from gguftool.storage.system import fileio, reflink
from gguftool.storage.system.fileio import WriteBack
from tests.support.builders import filler
from tests.support.command import environment
from tests.support.memory_source import MemorySource

KIB = 1 << 10
SOURCE = filler("copying", 300 * KIB)
SEGMENT = 64 * KIB


SIZES = Sizes(segment=SEGMENT, least_clone=8 * KIB)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "gguftool"]


def copy_small(copies: Iterable[Copy], target: int, *, fresh: bool = False, **options: Any) -> None:
    """Copy in small segments, so that small files have many."""
    copy_all(copies, target, CopyState(sizes=SIZES, **options), fresh=fresh)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LocalSource:
    path = tmp_path_factory.mktemp("source") / "source"
    path.write_bytes(SOURCE)
    return open_local(path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def one(source: LocalSource, offset: int = 0, length: int = len(SOURCE), place: int = 0) -> Copy:
    return Copy(extent=Extent(source=source, offset=offset, length=length), offset=place)


def written(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


# --- the ways, made visible ---


def by_blocks(seen: list[tuple[int, int, int]]) -> Callable[[int, int, int, int, int], int]:
    """A reflink as a file system would do it: whole blocks at whole blocks or EINVAL."""

    def clone(fd: int, offset: int, target: int, place: int, length: int) -> int:
        if (offset | place | length) % 4096:
            raise OSError(errno.EINVAL, "off the grid")
        seen.append((offset, place, length))
        return os.pwrite(target, os.pread(fd, length, offset), place)

    return clone


def use_clone(monkeypatch: pytest.MonkeyPatch, call: Callable[..., int], chunk: int = 64 * KIB) -> None:
    monkeypatch.setattr(copying, "clone_grid", lambda target: 4096)
    monkeypatch.setattr(copying, "CLONE", replace(reflink.CLONE, call=call, chunk=chunk))


def use_server(monkeypatch: pytest.MonkeyPatch, call: Callable[..., int]) -> None:
    monkeypatch.setattr(copying, "clone_grid", lambda target: None)
    monkeypatch.setattr(copying, "is_served", lambda target: True)
    monkeypatch.setattr(copying, "SERVER_COPY", replace(reflink.SERVER_COPY, call=call, chunk=10_000))


WAYS = ("plain", "threads", "fresh", "durable", "clone", "server")


@st.composite
def extents(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(source offset, length, target offset), ascending in the target, often congruent modulo 4096."""
    found, end = [], draw(st.integers(0, 5000))
    for _ in range(draw(st.integers(1, 4))):
        offset = draw(st.integers(0, len(SOURCE) - 1))
        length = draw(st.integers(1, len(SOURCE) - offset))
        place = end + draw(st.integers(0, 5000))
        if draw(st.booleans()):
            place += (offset - place) % 4096
        found.append((offset, length, place))
        end = place + length
    return found


@pytest.mark.parametrize("way", WAYS)
@given(wanted=extents())
def test_every_way_gives_the_same_bytes(
    way: str, wanted: list[tuple[int, int, int]], source: LocalSource, tmp_path: Path
) -> None:
    expected = bytearray(max(place + length for _, length, place in wanted))
    for offset, length, place in wanted:
        expected[place : place + length] = SOURCE[offset : offset + length]
    path = tmp_path / "target"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    progress: list[int] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            if way == "clone":
                use_clone(patch, by_blocks([]))
            if way == "server":
                use_server(patch, reflink._copy_file_range)
            os.ftruncate(fd, len(expected))
            copy_small(
                [one(source, offset, length, place) for offset, length, place in wanted],
                fd,
                jobs=1 if way == "plain" else 3,
                progress=progress.append,
                write_back=WriteBack(0) if way == "durable" else None,
                fresh=way == "fresh",
            )
        assert written(fd) == expected
    finally:
        os.close(fd)
    assert sum(progress) == sum(length for _, length, _ in wanted)


def test_only_head_and_tail_of_a_congruent_extent_are_copied(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned: list[tuple[int, int, int]] = []
    read: list[int] = []
    use_clone(monkeypatch, by_blocks(cloned))

    def read_into(fd: int, buffer: memoryview, offset: int) -> int:
        read.append(len(buffer))
        return fileio.read_into(fd, buffer, offset)

    monkeypatch.setattr(copying, "read_into", read_into)
    copy_small([one(source, 4096 + 100, 200_000, 8192 + 100)], target)
    assert written(target)[8292:] == SOURCE[4196 : 4196 + 200_000]
    assert cloned[0] == (8192, 12288, 64 * KIB)
    assert sum(length for *_, length in cloned) + sum(read) == 200_000
    assert sum(read) < 2 * 4096


def test_offsets_that_disagree_are_not_offered_for_cloning(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloned: list[tuple[int, int, int]] = []
    use_clone(monkeypatch, by_blocks(cloned))
    copy_small([one(source, 0, 100_000, 32)], target)
    assert not cloned
    assert written(target)[32:] == SOURCE[:100_000]


# --- what the kernel answers ---


@pytest.mark.parametrize("use", [use_clone, use_server])
@pytest.mark.parametrize("number", sorted(reflink.NEVER_HERE | reflink.NOT_THIS_TIME))
def test_each_errno_leads_to_the_next_way(
    use: Callable[..., None], number: int, source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def declines(*args: int) -> int:
        asked.append(args)
        raise OSError(number, os.strerror(number))

    use(monkeypatch, declines)
    copies = [one(source, 0, 60_000, 0), one(source, 65536, 60_000, 65536)]
    copy_small(copies, target, jobs=1)
    data = written(target)
    assert (data[:60_000], data[65536:]) == (SOURCE[:60_000], SOURCE[65536:125536])
    assert len(asked) == (1 if number in reflink.NEVER_HERE else 2)


@pytest.mark.parametrize("use", [use_clone, use_server])
def test_a_full_disk_is_no_reason_to_try_the_next_way(
    use: Callable[..., None], source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    use(monkeypatch, full)
    with pytest.raises(OSError, match="full") as caught:
        copy_small([one(source)], target)
    assert caught.value.errno == errno.ENOSPC


def test_a_way_that_stops_halfway_is_finished_by_reading(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [10_000, 777, 0]

    def stops(fd: int, offset: int, target: int, place: int, length: int) -> int:
        return os.copy_file_range(fd, target, min(length, left.pop(0)), offset, place) if left else 0

    use_server(monkeypatch, stops)
    copy_small([one(source)], target)
    assert written(target) == SOURCE


@pytest.mark.parametrize("jobs", [1, 3])
def test_short_reads_and_writes(jobs: int, source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:4099]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1021], offset))
    copy_small([one(source)], target, jobs=jobs)
    monkeypatch.undo()
    assert written(target) == SOURCE


def test_without_calls_that_only_linux_has(source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for name in ("SEEK_DATA", "copy_file_range"):
            patch.delattr(os, name)
        patch.setattr(copying, "clone_grid", lambda target: None)
        copy_small([one(source, 1, 299_000, 7)], target, jobs=3, fresh=True)
        assert source.read_at(5, 10) == SOURCE[5:15]
    assert written(target)[7:] == SOURCE[1:299_001]


# --- errors ---


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_read_error_names_file_and_offset(
    jobs: int, source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = 3 * SEGMENT

    def read_into(fd: int, buffer: memoryview, offset: int) -> int:
        if offset == bad:
            raise OSError(errno.EIO, "Input/output error")
        return fileio.read_into(fd, buffer, offset)

    monkeypatch.setattr(copying, "read_into", read_into)
    with pytest.raises(SourceError, match="cannot read: Input/output error") as caught:
        copy_small([one(source)], target, jobs=jobs)
    assert (caught.value.source, caught.value.offset) == (source.name, bad)


def test_an_error_in_one_thread_stops_the_others(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, reads = threading.get_ident(), []

    def read_into(fd: int, buffer: memoryview, offset: int) -> int:
        reads.append(offset)
        if threading.get_ident() != main:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.05)
        return fileio.read_into(fd, buffer, offset)

    monkeypatch.setattr(copying, "read_into", read_into)
    with pytest.raises(SourceError):
        copy_small([one(source)] * 20, target, jobs=2)
    assert len(reads) < 6


def test_a_source_that_ends_early(source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        copying, "read_into", lambda fd, buffer, at: 0 if at else fileio.read_into(fd, buffer[:1000], at)
    )
    with pytest.raises(SourceError, match="ends here, 64,536 bytes early") as caught:
        copy_small([one(source)], target, jobs=1)
    assert (caught.value.source, caught.value.offset) == (source.name, 1000)


class Miscounting(MemorySource):
    """Streams other numbers of bytes than it was asked for."""

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        yield self.read_at(offset, length - 1)


def test_a_stream_that_ends_early_without_a_word(target: int) -> None:
    short = Miscounting(label="short", data=filler("short", 1000))
    with pytest.raises(SourceError, match="gave 99 of 100 bytes"):
        copy_extent(Extent(source=short, offset=0, length=100), target, 0)


def test_a_source_that_is_cut_shorter_is_no_hole(tmp_path: Path, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"")
    os.truncate(path, len(SOURCE))
    source = open_local(path)
    monkeypatch.setattr(LocalSource, "_compare", lambda self, status: None)
    os.truncate(path, 1000)
    with pytest.raises(SourceError, match="ends here"):
        copy_small([one(source)], target, fresh=True)


def test_write_errors_say_where(source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def fails(fd: int, data: memoryview, offset: int) -> int:
        if offset >= SEGMENT:
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(OSError, match="at offset 65,536") as caught:
        copy_small([one(source)], target, jobs=1)
    assert caught.value.errno == errno.EIO
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(ExecuteError, match="accepted no more bytes"):
        copy_small([one(source)], target)


def test_an_interrupt_in_the_calling_thread_stops_all(source: LocalSource, target: int) -> None:
    count, seen = 1000, []

    def allocated() -> int:
        return os.fstat(target).st_blocks * 512

    def progress(nbytes: int) -> None:
        seen.append(allocated())
        raise KeyboardInterrupt

    copies = [one(source, place=index * len(SOURCE)) for index in range(count)]
    with pytest.raises(KeyboardInterrupt):
        copy_small(copies, target, jobs=4, progress=progress)
    assert len(seen) == 1
    assert allocated() - seen[0] < count * len(SOURCE) // 10  # what was under way, of all that was asked for


# --- holes and memory ---


def test_holes_stay_holes_only_where_the_target_is_fresh(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 << 20)
        file.seek(2 << 20)
        file.write(SOURCE)
    if path.stat().st_blocks * 512 >= 4 << 20:
        pytest.skip("this file system has no holes; set TMPDIR to one that has, such as ext4, XFS or tmpfs")
    source = open_local(path)
    for fresh in (True, False):
        fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if fresh:
            os.ftruncate(fd, 4 << 20)
        else:
            os.write(fd, b"x" * (4 << 20))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, "clone_grid", lambda target: None)
            copy_small([one(source, 0, 4 << 20)], fd, fresh=fresh)
        assert written(fd) == path.read_bytes()
        os.fsync(fd)
        assert (os.fstat(fd).st_blocks * 512 < 1 << 20) is fresh
        os.close(fd)


_MEASURE = """
import os, sys
from pathlib import Path
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.copying import copy_all, copy_extent
from gguftool.storage.sources.local import open_local
from gguftool.storage.plan import Copy
from gguftool.storage.sources.source import Extent
source = open_local(Path(sys.argv[1]))
fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, source.size + 32)
whole = Extent(source=source, offset=0, length=source.size)
copy_all([Copy(extent=whole, offset=32)], fd, CopyState(jobs=4), fresh=True)
copy_extent(Extent(source=source, offset=0, length=256 << 20), fd, 7)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc: run on Linux")
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 << 30)
        file.seek(1 << 30)
        file.write(SOURCE * 200)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, path, tmp_path / "target"],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    (tmp_path / "target").unlink()
    assert KIB < int(done.stdout) < 80 * KIB  # the kernel counts in KiB; ru_maxrss would include pytest's own


def test_copy_extent_writes_zeros_over_what_is_there(tmp_path: Path, target: int) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(b"")
    os.truncate(path, BUFFER * 2)
    os.pwrite(target, b"x" * BUFFER * 2, 0)
    copy_extent(Extent(source=open_local(path), offset=0, length=BUFFER * 2), target, 0)
    assert written(target) == bytes(BUFFER * 2)


def test_the_disk_is_started_early_but_not_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, int]] = []
    monkeypatch.setattr(
        fileio, "_sync_file_range", lambda: lambda fd, offset, length, flags: started.append((offset, length))
    )
    step = 8 << 20
    write_back = WriteBack(32 << 20)
    for number in range(8):
        write_back.start(0, number * step, step)
    assert started == [(number * step, step) for number in range(4, 8)]


# --- how work is cut and shared out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "place", "wanted"),
    [
        (0, 8192, 0, (0, 8192)),
        (0, 8191, 0, (0, 0)),  # below the least: one whole block
        (0, 12287, 4096, (0, 8192)),
        (100, 12288, 100, (3996, 8192)),
        (100, 8192 + 3996, 4196, (3996, 8192)),
        (100, 8191 + 3996, 4196, (0, 0)),
        (1, 20000, 0, (0, 0)),
        (0, 20000, 1, (0, 0)),
        (4097, 20480 + 4095, 8193, (4095, 20480)),
    ],
)
def test_whole_blocks_of_the_target_are_shared(
    source: LocalSource, offset: int, length: int, place: int, wanted: tuple[int, int]
) -> None:
    assert copying._whole_blocks(one(source, offset, length, place), 4096, 8192) == wanted


@pytest.mark.parametrize(
    ("place", "length", "wanted"),
    [
        (0, 0, []),
        (0, 99, [(0, 99)]),
        (0, 100, [(0, 100)]),
        (0, 101, [(0, 100), (100, 1)]),
        (130, 200, [(130, 70), (200, 100), (300, 30)]),
        (99, 2, [(99, 1), (100, 1)]),
    ],
)
def test_segments_end_at_multiples_in_the_target(
    source: LocalSource, place: int, length: int, wanted: list[tuple[int, int]]
) -> None:
    found = list(copying._segments(one(source, 7, length, place), 100))
    assert [(piece.offset, piece.extent.length) for piece in found] == wanted
    assert all(piece.extent.offset - 7 == piece.offset - place for piece in found)


@pytest.mark.parametrize(("jobs", "helpers"), [(1, 0), (2, 1), (64, 63), (65, 63), (None, 6)])
def test_the_calling_thread_is_one_of_the_jobs(
    jobs: int | None, helpers: int, source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def start(work: Callable[[], None], count: int) -> list[threading.Thread]:
        counts.append(count)
        return []

    monkeypatch.setattr(copying, "start", start)
    monkeypatch.setattr(LocalSource, "parallelism", 7)
    copy_small([one(source)], target, jobs=jobs)
    assert counts == [helpers]
    copy_small([one(source, 0, SEGMENT)], target, jobs=jobs)
    assert counts == [helpers]  # one segment is not worth a thread
    copy_small([one(source, 0, SEGMENT + 1)], target, jobs=jobs)
    assert counts == [helpers] * 2
    assert written(target) == SOURCE


@pytest.mark.parametrize(("length", "sizes"), [(1000, {1000}), (1 << 20, {512 * KIB})])
def test_buffers_are_as_large_as_the_work_but_bounded(
    length: int, sizes: set[int], tmp_path: Path, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(filler("large", length))
    seen: list[int] = []

    def read_into(fd: int, buffer: memoryview, offset: int) -> int:
        seen.append(len(buffer))
        return fileio.read_into(fd, buffer, offset)

    monkeypatch.setattr(copying, "read_into", read_into)
    copy_all([Copy(extent=Extent(source=open_local(path), offset=0, length=length), offset=0)], target)
    assert set(seen) == sizes
    assert sum(seen) == length
    assert written(target) == path.read_bytes()


@pytest.mark.parametrize(("length", "asked"), [(8 * KIB, 1), (8 * KIB - 1, 0)])
def test_holes_are_looked_for_only_in_what_is_long_enough(
    length: int, asked: int, source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []

    def leading_hole(fd: int, offset: int, length: int) -> int:
        calls.append((offset, length))
        return 0

    monkeypatch.setattr(copying, "leading_hole", leading_hole)
    copy_small([one(source, 5, length)], target, fresh=True)
    assert calls == [(5, length)] * asked
    copy_small([one(source, 5, length)], target)
    assert len(calls) == asked


def test_shared_bytes_are_progress_but_not_copied(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_clone(monkeypatch, by_blocks([]))
    progress: list[int] = []
    state = CopyState(sizes=SIZES, progress=progress.append)
    work = copying.Work(copies=(one(source, 100, 20_000, 100),), target=target)
    assert copying.copy_works([work], state) == 20_000 - 12_288
    assert sum(progress) == 20_000


def test_every_work_is_copied_into_its_own_target(source: LocalSource, tmp_path: Path) -> None:
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in "ab"]
    memory = MemorySource(label="m", data=SOURCE)
    streamed = Copy(extent=Extent(source=memory, offset=10, length=50), offset=2000)
    works = [copying.Work(copies=(one(source, number, 1000), streamed), target=fd) for number, fd in enumerate(fds)]
    assert copying.copy_works(works, CopyState(sizes=SIZES)) == 2 * 1050
    for number, fd in enumerate(fds):
        data = written(fd)
        assert (data[:1000], data[2000:]) == (SOURCE[number : number + 1000], SOURCE[10:60])
        os.close(fd)


def test_what_was_copied_is_written_back_early(source: LocalSource, target: int) -> None:
    class Recorder(WriteBack):
        def start(self, target: int, offset: int, length: int) -> None:
            seen.append((offset, length))

    seen: list[tuple[int, int]] = []
    copy_small([one(source, 0, 2 * SEGMENT, 100)], target, jobs=1, write_back=Recorder(0))
    assert seen == [(100, SEGMENT - 100), (SEGMENT, SEGMENT), (2 * SEGMENT, 100)]
    seen.clear()
    memory = MemorySource(label="m", data=SOURCE)
    copies = [Copy(extent=Extent(source=memory, offset=0, length=50), offset=7)]
    copy_small(copies, target, jobs=1, write_back=Recorder(0))
    assert seen == [(7, 50)]


def test_all_changed_sources_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"old")
    sources = tuple(open_local(path) for path in paths)
    copying.check_sources(sources)
    for path in paths[::2]:
        path.write_bytes(b"newer")
    with pytest.raises(SourceError) as caught:
        copying.check_sources(sources)
    message = str(caught.value)
    assert message.startswith(str(paths[0]))
    assert f"; {paths[2]}: changed" in message
    assert str(paths[1]) not in message


def test_a_source_that_lost_its_descriptor_is_an_error(
    source: LocalSource, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = copying._Files([], CopyState(), fresh=False)
    monkeypatch.setattr(LocalSource, "descriptor", lambda self: None)
    with pytest.raises(SourceError, match="has lost its descriptor") as caught:
        files._move(one(source), target, memoryview(bytearray(1)))
    assert caught.value.source == source.name


def test_what_would_be_shared_is_tried_with_one_block_of_each_copy(
    source: LocalSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, int, int]] = []
    use_clone(monkeypatch, by_blocks(tried))
    memory = MemorySource(label="m", data=SOURCE)
    copies = [
        one(source, 100, 100_000, 100),
        one(source, 0, 65_536, 131_072),
        one(source, 0, 65_535, 262_144),  # shorter than what is worth it
        one(source, 1, 100_000, 400_000),
        Copy(extent=Extent(source=memory, offset=0, length=100_000), offset=600_000 // 4096 * 4096),
    ]
    assert copying.shared_bytes(copies, tmp_path) == 94_208 + 65_536
    assert tried == [(4096, 0, 4096), (0, 0, 4096)]
    monkeypatch.setattr(copying, "clone_grid", lambda target: None)
    assert copying.shared_bytes(copies, tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
    assert copying.shared_bytes(copies, tmp_path / "missing") == 0
