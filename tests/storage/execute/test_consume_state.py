"""The part files and the space of a run that removes its sources, piece by piece."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, SourceError
from gguftool.storage.execute import consume, consume_state
from gguftool.storage.execute.consume_journal import consume_file
from gguftool.storage.execute.consume_state import Consuming, find_unfinished, open_consuming
from gguftool.storage.execute.part import PartFile, create_part
from gguftool.storage.plan import Consume, Copy, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import consume_path, only_copy_path
from gguftool.storage.sources.source import Extent
from tests.support.memory_source import MemorySource

HEAD = b"h" * 5000
REQUEST = Request(models=("/x/one", "/x/two"), options=("--force",))


@pytest.fixture
def begun(tmp_path: Path) -> Plan:
    sources = []
    for name, data in (("one", b"a" * 8192), ("two", b"b" * 4096)):
        (tmp_path / name).write_bytes(data)
        sources.append(open_local(tmp_path / name))
    copies = (
        Copy(extent=Extent(source=sources[0], offset=0, length=8192), offset=8192),
        Copy(extent=Extent(source=sources[1], offset=96, length=4000), offset=16384),
    )
    output = OutputFile(path=tmp_path / "out", head=HEAD, copies=copies, size=20480)
    steps = (Step(source=sources[0], frees=True), Step(source=sources[1], frees=True))
    request = Request(models=tuple(str(tmp_path / name) for name in ("one", "two")), options=("--force",))
    return Plan(
        outputs=(output,),
        inputs=tuple(sources),
        consume=Consume(anchor=tmp_path / "out", steps=steps, request=request),
    )


@contextlib.contextmanager
def opened(plan: Plan, lines: bytes = b"") -> Iterator[Consuming]:
    assert plan.consume is not None
    path = consume_path(plan.consume.anchor)
    path.unlink(missing_ok=True)
    path.write_bytes(consume_file(plan, plan.consume).head + lines)
    path.chmod(0o600)
    with contextlib.ExitStack() as cleanup:
        run = open_consuming(plan.consume.anchor, cleanup)
        assert run is not None
        yield run


def put_part(plan: Plan, data: bytes) -> Path:
    path = only_copy_path(plan.outputs[0].path)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_records_are_lines_even_behind_a_torn_one(begun: Plan, tmp_path: Path) -> None:
    with opened(begun, b"copied 0 torn") as run:
        run.note_copied(1, "f" * 64)
        run.note_copied(0, "0" * 64)
        assert run.begun.copied == {1: "f" * 64, 0: "0" * 64}
        assert run.make_part(0) is True
        assert run.make_part(0) is False
        parts = run.parts()
        run.note_complete(parts)
        lines = run.path.read_bytes().split(b"\n")[-5:]
    inode = only_copy_path(tmp_path / "out").stat().st_ino
    assert lines == [
        b"copied 0 torn",
        b"copied 1 " + b"f" * 64,
        b"copied 0 " + b"0" * 64,
        b"complete %d" % inode,
        b"",
    ]


def test_a_second_run_is_refused_while_the_first_holds_the_journal(begun: Plan, tmp_path: Path) -> None:
    with opened(begun), pytest.raises(ExecuteError, match="another gguftool"), contextlib.ExitStack() as cleanup:
        open_consuming(tmp_path / "out", cleanup)
    with contextlib.ExitStack() as cleanup:
        assert open_consuming(tmp_path / "elsewhere", cleanup) is None


def test_copies_are_found_by_their_step(begun: Plan) -> None:
    with opened(begun) as run:
        for number in (0, 1):
            assert run.copies_of(number) == [(0, (begun.outputs[0].copies[number],))]
            assert not run.is_freed(number)
        assert not run.something_is_freed()
        assert begun.consume is not None
        Path(begun.consume.steps[1].source.name).unlink()
        assert run.something_is_freed()


@pytest.mark.parametrize(
    ("data", "blank_is_good", "exact_is_good"),
    [
        (b"", True, False),
        (HEAD.ljust(20480, b"\0"), True, True),
        (HEAD.ljust(20481, b"\0"), False, False),
        (HEAD.ljust(20479, b"\0"), True, False),
        (bytes(20480), True, False),
        ((HEAD[:4096] + bytes(904)).ljust(20480, b"\0"), True, False),
        ((bytes(4096) + HEAD[4096:]).ljust(20480, b"\0"), True, False),
        (b"x" + HEAD[1:], False, False),
        (HEAD[:4096] + b"x" + bytes(99), False, False),
        (HEAD[:-1] + b"x", False, False),
    ],
)
def test_a_part_file_begins_as_planned_or_is_blank_in_places(
    begun: Plan, data: bytes, blank_is_good: bool, exact_is_good: bool
) -> None:
    path = put_part(begun, data)
    with open(path, "rb") as file:
        found = [
            consume_state._begins_as_planned(file.fileno(), begun.outputs[0], exact=exact) for exact in (False, True)
        ]
    assert found == [blank_is_good, exact_is_good]
    with opened(begun) as run:
        if blank_is_good:
            run.check_parts()
        else:
            with pytest.raises(ExecuteError, match=f"is not the part file that {run.path.name} describes"):
                run.check_parts()
    assert path.read_bytes() == data


def test_a_part_file_gets_its_size_but_is_never_cut(begun: Plan, tmp_path: Path) -> None:
    with opened(begun) as run:
        path = put_part(begun, b"x" * 20481)
        with pytest.raises(ExecuteError, match="is longer than planned; nothing was removed"), run.part(0):
            pass
        assert path.stat().st_size == 20481
        put_part(begun, b"x" * 100)
        os.link(path, tmp_path / "second")
        with pytest.raises(ExecuteError, match=r"has 2 names \(hard links\)"), run.part(0):
            pass
        (tmp_path / "second").unlink()
        with run.part(0) as part:
            assert path.read_bytes() == b"x" * 100 + bytes(20380)
            assert (part.size, part.target) == (20480, tmp_path / "out")
        run.check_before_removal()
        put_part(begun, bytes(20480))
        with pytest.raises(ExecuteError, match="removed or replaced"):
            run.check_before_removal()
        with pytest.raises(ExecuteError, match="removed or replaced"), run.part(0):
            pass


def test_a_second_name_that_comes_while_it_is_opened_is_noticed(
    begun: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_part(begun, bytes(20480))

    def open_helper(path: Path, **_: object) -> int:
        fd = os.open(path, os.O_RDWR)
        os.link(path, tmp_path / "second")
        return fd

    with opened(begun) as run:
        monkeypatch.setattr(consume_state, "open_helper", open_helper)
        with pytest.raises(ExecuteError, match="is not the part file that was written here") as caught, run.part(0):
            pass
    assert caught.value.source == str(path)


def test_nothing_is_removed_without_the_journal(begun: Plan) -> None:
    with opened(begun) as run:
        run.check_before_removal()
        run.path.unlink()
        with pytest.raises(ExecuteError, match="removed or replaced"):
            run.check_before_removal()
        assert run.discard() is False


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_part_of_removed_sources_is_not_made_again(begun: Plan, number: int) -> None:
    with opened(begun) as run:
        Path(run.steps[number].source.name).unlink()
        with pytest.raises(ExecuteError, match="is gone, and so are sources"):
            run.make_part(0)
        assert run.discard() is False
        assert run.path.exists()


def test_what_was_not_needed_yet_is_discarded(begun: Plan) -> None:
    path = put_part(begun, b"")
    with opened(begun) as run:
        assert run.discard() is True
        assert not run.path.exists()
        assert not path.exists()


def test_outputs_are_published_when_they_are_the_complete_files(begun: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(HEAD.ljust(20480, b"\0"))
    copied = b"copied 0 " + b"0" * 64 + b"\ncopied 1 " + b"0" * 64 + b"\n"
    good = copied + b"complete %d\n" % out.stat().st_ino
    with opened(begun, good) as run:
        assert run.is_published() is False  # the sources are there
    for source in begun.inputs:
        Path(source.name).unlink()
    with opened(begun, copied) as run:
        assert run.is_published() is False
    with opened(begun, good) as run:
        assert run.is_published() is True
    for data in (HEAD.ljust(20479, b"\0"), HEAD.ljust(20481, b"\0"), b"x" + HEAD[1:].ljust(20479, b"\0"), bytes(20480)):
        out.write_bytes(data)
        with opened(begun, good) as run, pytest.raises(ExecuteError, match="was complete and had its name"):
            run.is_published()
        put_part(begun, b"")
        with opened(begun, good) as run:
            assert run.is_published() is False
        only_copy_path(out).unlink()
    out.write_bytes(HEAD.ljust(20480, b"\0"))
    with opened(begun, copied + b"complete %d\n" % (out.stat().st_ino + 1)) as run, pytest.raises(ExecuteError):
        run.is_published()
    out.unlink()
    with opened(begun, good) as run, pytest.raises(ExecuteError) as caught:
        run.is_published()
    assert caught.value.source == str(out)


def test_only_the_same_command_goes_on(begun: Plan, tmp_path: Path) -> None:
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    seen: list[Plan] = []
    with opened(begun):
        for models, options, good in (
            ((one, two), ("--force",), True),
            ((two,), ("--force",), True),
            ((str(tmp_path),), ("--force",), True),
            ((str(tmp_path / "t*"),), ("--force",), True),
            ((one, two), (), False),
            ((one, "/elsewhere/two"), ("--force",), False),
        ):
            request = Request(models=models, options=options)
            if good:
                assert find_unfinished(tmp_path / "out", request, seen.append) is not None
            else:
                with pytest.raises(ExecuteError, match="only that command resumes it"):
                    find_unfinished(tmp_path / "out", request, seen.append)
    assert len(seen) == 4
    assert find_unfinished(tmp_path / "elsewhere", REQUEST, seen.append) is None


# --- reading back ----------------------------------------------------------------------------------------------------


@pytest.fixture
def part(tmp_path: Path) -> Iterator[PartFile]:
    made = create_part(tmp_path / "p", 3 << 20)
    yield made
    made.close()


def test_what_reads_back_is_compared_and_hashed(part: PartFile) -> None:
    data = bytes(range(256)) * 8192
    source = MemorySource(label="m", data=data)
    copies = (Copy(extent=Extent(source=source, offset=100, length=(1 << 20) + 7), offset=500),)
    copies += (Copy(extent=Extent(source=source, offset=0, length=10), offset=2 << 20),)
    for copy in copies:
        os.pwrite(part.fd, copy.extent.read(), copy.offset)
    wanted = hashlib.sha256(data[100 : 100 + (1 << 20) + 7] + data[:10]).hexdigest()
    digests = (hashlib.sha256(), hashlib.sha256())
    consume.read_back(copies, part, digests[0])
    consume.digest_part(copies, part, digests[1])
    assert [digest.hexdigest() for digest in digests] == [wanted, wanted]
    os.pwrite(part.fd, b"?", 500 + (1 << 20) + 6)
    with pytest.raises(ExecuteError, match="does not read back the bytes that were written") as caught:
        consume.read_back(copies, part, hashlib.sha256())
    assert caught.value.offset == 500 + (1 << 20)  # where the piece begins that differs
    os.ftruncate(part.fd, 600)
    for read in (consume.read_back, consume.digest_part):
        with pytest.raises(ExecuteError, match="ends early") as caught:
            read(copies, part, hashlib.sha256())
        assert (caught.value.source, caught.value.offset) == (str(part.path), 600)


def test_only_the_file_that_was_copied_goes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    source = open_local(path)
    os.link(path, tmp_path / "b")
    with pytest.raises(SourceError, match="is no longer the file that was copied"):
        consume.free(source)  # the link changed its ctime
    source = open_local(path)
    with pytest.raises(SourceError, match="has several names"):
        consume.free(source)
    (tmp_path / "b").unlink()
    source = open_local(path)
    consume.free(source)
    assert not path.exists()
    with pytest.raises(SourceError, match="is no longer the file"):
        consume.free(source)
    consume.free(MemorySource(label="m", data=b""))


# --- space -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "shared", "fits"),
    [(13192, 0, True), (13191, 0, False), (13191, 1, True), (5000, 8192, True), (4999, 8192, False), (None, 0, True)],
)
def test_the_fullest_moment_must_fit(
    begun: Plan, free: int | None, shared: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head and the first source, which then goes; the second is smaller than the first."""

    def shared_bytes(copies: tuple[Copy, ...], folder: Path) -> int:
        return min(shared, sum(copy.extent.length for copy in copies))

    monkeypatch.setattr(consume, "free_bytes", lambda folder: free)
    monkeypatch.setattr(consume, "shared_bytes", shared_bytes)
    with opened(begun) as run:
        if fits:
            consume.check_room(run)
            return
        with pytest.raises(ExecuteError, match="bytes at its peak") as caught:
            consume.check_room(run)
    assert caught.value.source == str(begun.outputs[0].path.parent)
    if not shared:
        assert "needs 13,192 bytes at its peak" in str(caught.value)
        assert "and 13,191 are free here" in str(caught.value)


def test_two_runs_do_not_remove_files_of_one_folder(begun: Plan) -> None:
    hold: Callable[..., None] = consume.hold_folders
    with contextlib.ExitStack() as cleanup:
        hold(begun.inputs, cleanup)
        with (
            pytest.raises(ExecuteError, match="another merge --consume is removing files here"),
            contextlib.ExitStack() as more,
        ):
            hold(begun.inputs, more)
    with contextlib.ExitStack() as cleanup:
        hold(begun.inputs, cleanup)
        hold((MemorySource(label="m", data=b""),), cleanup)
