"""The journal of `merge --consume`, field by field."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from gguftool.errors import ExecuteError, PlanError, SourceError
from gguftool.record import replace
from gguftool.storage.execute import consume_journal
from gguftool.storage.execute.consume_journal import (
    FreedSource,
    consume_file,
    digest_in,
    read_unfinished,
    real_path,
    stamp_if_same,
)
from gguftool.storage.plan import Consume, Copy, Mark, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import FileStamp, open_local
from gguftool.storage.sources.sidecars import consume_path
from gguftool.storage.sources.source import Extent
from tests.support.memory_source import MemorySource

DIGEST = b"0123456789abcdef" * 4


@pytest.fixture
def begun(tmp_path: Path) -> Plan:
    """Two outputs of two sources, of which the first is to go."""
    sources = []
    for name, data in (("one", b"a" * 100), ("two", b"b" * 50)):
        (tmp_path / name).write_bytes(data)
        sources.append(open_local(tmp_path / name))
    outputs = tuple(
        OutputFile(
            path=tmp_path / name,
            head=head,
            copies=(
                Copy(extent=Extent(source=sources[0], offset=50, length=50), offset=10),
                Copy(extent=Extent(source=sources[1], offset=0, length=20), offset=60),
            ),
            size=90,
            marks=marks,
        )
        for name, head, marks in (
            ("out", b"head", (Mark(name="m", offset=10, length=80), Mark(name="n", offset=0, length=1))),
            ("out-2", b"another", None),
        )
    )
    steps = (Step(source=sources[0], frees=True), Step(source=sources[1], frees=False))
    request = Request(models=("one", "two"), options=("--force",))
    consume = Consume(anchor=tmp_path / "out", steps=steps, request=request)
    return Plan(outputs=outputs, inputs=tuple(sources), sequence=("n", "m"), consume=consume)


def put(plan: Plan, more: bytes = b"", cut: int = 0) -> bytes:
    assert plan.consume is not None
    data = consume_file(plan, plan.consume).head
    path = consume_path(plan.consume.anchor)
    path.unlink(missing_ok=True)
    path.write_bytes(data[: len(data) - cut] + more)
    path.chmod(0o600)
    return data


def test_a_journal_holds_the_whole_plan(begun: Plan, tmp_path: Path) -> None:
    assert read_unfinished(tmp_path / "out") is None
    data = put(begun, b"copied 1 " + DIGEST + b"\ncomplete 7 8\n")
    found = read_unfinished(tmp_path / "out")
    assert found is not None
    assert found.plan.outputs == begun.outputs
    assert (found.plan.sequence, found.plan.inputs) == (begun.sequence, begun.inputs)
    assert found.consume.request == Request(models=("one", "two"), options=("--force",))
    assert [step.frees for step in found.consume.steps] == [True, False]
    assert (found.copied, found.complete) == ({1: DIGEST.decode()}, (7, 8))
    assert found.consume.begun == digest_in(data) == hashlib.sha256(data[:-33]).hexdigest()


@pytest.mark.parametrize(
    ("lines", "copied", "complete"),
    [
        (b"", {}, None),
        (b"copied 0 " + DIGEST, {}, None),  # torn
        (b"copied 0 " + DIGEST + b"\n", {0}, None),
        (b"copied 2 " + DIGEST + b"\n", {}, None),  # there are two steps
        (b"copied 1 " + DIGEST[:-1] + b"\n", {}, None),
        (b"copied 1 " + DIGEST + b"0\n", {}, None),
        (b"copied -1 " + DIGEST + b"\n", {}, None),
        (b"complete 1\n", {}, None),
        (b"complete 1 2 3\n", {}, None),
        (b"complete 1 x\n", {}, None),
        (b"complete 1 2\ncomplete 3\n", {}, (1, 2)),
        (b"complete 1 2\ncomplete 3 4\n", {}, (3, 4)),
        (b"complete 1 2", {}, None),
        (b"\ncopied 0 \ncopied 1 " + DIGEST + b"\n", {1}, None),
    ],
)
def test_lines_that_are_torn_or_foreign_claim_nothing(
    begun: Plan, tmp_path: Path, lines: bytes, copied: Any, complete: tuple[int, ...] | None
) -> None:
    put(begun, lines)
    found = read_unfinished(tmp_path / "out")
    assert found is not None
    assert set(found.copied) == set(copied)
    assert found.complete == complete


def test_a_cut_or_changed_journal_is_damaged(begun: Plan, tmp_path: Path) -> None:
    whole = put(begun)
    path = consume_path(tmp_path / "out")
    for size in (*range(0, 40), len(whole) - 34, len(whole) - 33, len(whole) - 2, len(whole) - 1):
        put(begun, cut=len(whole) - size)
        with pytest.raises(ExecuteError, match="is not a journal of merge --consume, or is damaged") as caught:
            read_unfinished(tmp_path / "out")
        assert caught.value.source == str(path)
    for at in (0, 18, 19, 30, len(whole) - 40, len(whole) - 10):
        put(begun)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 1]))
        with pytest.raises(ExecuteError, match="damaged"):
            read_unfinished(tmp_path / "out")


def remade(content: bytes, change: tuple[bytes, bytes]) -> bytes:
    """The journal with other text and a right digest."""
    start = len(b"gguftool consume 1\n") + 8
    (length,) = struct.unpack("<Q", content[start - 8 : start])
    text = content[start : start + length]
    assert text.count(change[0]) >= 1, text
    text = text.replace(*change, 1)
    data = content[: start - 8] + struct.pack("<Q", len(text)) + text + content[start + length : -33]
    return data + hashlib.sha256(data).digest() + b"\n"


@pytest.mark.parametrize(
    ("old", "new", "is_good"),
    [
        (b'["out", 90, 4]', b'["out", 90, 4]', True),
        (b"[0, 50, 50, 10]", b"[0, 51, 49, 10]", True),
        (b"[0, 50, 50, 10]", b"[0, 51, 50, 10]", False),  # behind the source's end
        (b"[0, 50, 50, 10]", b"[0, -1, 50, 10]", False),
        (b"[0, 50, 50, 10]", b"[2, 50, 50, 10]", False),
        (b"[0, 50, 50, 10]", b"[0, 50, true, 10]", False),
        (b"[0, 50, 50, 10]", b"[0, 50, 50]", False),
        (b'["m", 10, 80]', b'["m", 11, 79]', True),
        (b'["m", 10, 80]', b'["m", 11, 80]', False),
        (b'["m", 10, 80]', b'["m", 31, 60]', False),
        (b'["m", 10, 80]', b'["m", -1, 80]', False),
        (b'"out-2"', b'"out-3"', True),
        (b'"out-2"', b'"ouz-2"', False),
        (b'"out-2"', b'"out2"', False),
        (b'"out-2"', b'"out"', False),  # twice
        (b'"out-2"', b'"out-/x"', False),
        (b"true]", b"1]", False),
        (b'/two"', b'/one"', False),
    ],
)
def test_a_journal_with_a_right_digest_is_checked_too(
    begun: Plan, tmp_path: Path, old: bytes, new: bytes, is_good: bool
) -> None:
    whole = put(begun)
    consume_path(tmp_path / "out").write_bytes(remade(whole, (old, new)))
    if is_good:
        assert read_unfinished(tmp_path / "out") is not None
    else:
        with pytest.raises(ExecuteError, match="damaged"):
            read_unfinished(tmp_path / "out")


def test_a_source_is_freed_only_if_it_was_to_go_and_is_copied_and_gone(begun: Plan, tmp_path: Path) -> None:
    def kinds() -> list[bool]:
        found = read_unfinished(tmp_path / "out")
        assert found is not None
        return [isinstance(step.source, FreedSource) for step in found.consume.steps]

    both = b"".join(b"copied %d %s\n" % (number, DIGEST) for number in (0, 1))
    put(begun, both)
    assert kinds() == [False, False]
    (tmp_path / "one").unlink()
    (tmp_path / "two").unlink()
    assert kinds() == [True, False]
    put(begun)
    assert kinds() == [False, False]
    (tmp_path / "one").write_bytes(b"another")
    put(begun, both)
    assert kinds() == [True, False]


def test_a_removed_source_keeps_its_identity_and_has_no_data(begun: Plan, tmp_path: Path) -> None:
    source = begun.inputs[0]
    freed = FreedSource(path=tmp_path / "one", file_stamp=source.file_stamp)  # type: ignore[attr-defined]
    assert (freed.name, freed.size, freed.identity) == (str(tmp_path / "one"), 100, source.identity)
    with pytest.raises(SourceError, match="was removed after its bytes were copied") as caught:
        freed.read_at(5, 1)
    assert caught.value.offset == 5


def test_inode_size_and_time_tell_files_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    stamp = FileStamp.of(os.stat(path))
    assert stamp_if_same(path, stamp) == stamp
    for index, same in ((0, True), (1, False), (2, False), (3, False), (4, True)):
        other = FileStamp(*(value + (place == index) for place, value in enumerate(stamp)))
        assert stamp_if_same(path, other) == (stamp if same else None), index
    assert stamp_if_same(tmp_path / "b", stamp) is None
    assert stamp_if_same(path / "b", stamp) is None

    def stat(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(consume_journal.os, "stat", stat)
    with pytest.raises(SourceError, match="cannot read: Input/output error") as caught:
        stamp_if_same(path, stamp)
    assert caught.value.source == str(path)


def test_links_are_resolved_in_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "name").symlink_to("elsewhere")
    assert real_path(tmp_path / "link" / "name") == tmp_path / "real" / "name"
    monkeypatch.chdir(tmp_path)
    assert real_path("link/name") == tmp_path / "real" / "name"


def test_what_cannot_be_recorded_is_refused(begun: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun.consume is not None
    strange = replace(begun.consume, steps=(Step(source=MemorySource(label="m", data=b""), frees=True),))
    with pytest.raises(PlanError, match="m: is not a local file"):
        consume_file(begun, strange)
    file = consume_file(begun, begun.consume)
    assert (file.size, file.copies, file.path) == (len(file.head), (), consume_path(tmp_path / "out"))
    monkeypatch.setattr(consume_journal, "_MAX_PLAN", file.size)
    assert consume_file(begun, begun.consume).size == file.size
    monkeypatch.setattr(consume_journal, "_MAX_PLAN", file.size - 1)
    with pytest.raises(PlanError, match=f"would take {file.size:,} bytes, over {file.size - 1:,}"):
        consume_file(begun, begun.consume)
    monkeypatch.undo()
    put(begun)
    monkeypatch.setattr(consume_journal, "_MAX_JOURNAL", file.size)
    assert read_unfinished(tmp_path / "out") is not None
    monkeypatch.setattr(consume_journal, "_MAX_JOURNAL", file.size - 1)
    with pytest.raises(ExecuteError, match="damaged"):
        read_unfinished(tmp_path / "out")


def test_a_journal_has_room_for_a_gibibyte_of_plan_and_a_line_for_each_file() -> None:
    assert consume_journal._MAX_PLAN == 1 << 30
    assert 800_000 < (consume_journal._MAX_JOURNAL - consume_journal._MAX_PLAN) // 80 < 900_000
