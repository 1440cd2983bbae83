"""Heads and copies in part files: sizes, names in errors, checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.storage.execute import fill
from gguftool.storage.execute.copy_state import CopyState
from gguftool.storage.execute.fill import NullDigests, check_sizes, digests_for, verify_checksum, write_outputs
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import PartFile, create_part
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.source import Extent
from tests.support.memory_source import MemorySource

Pair = tuple[PartFile, OutputFile]


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[list[Pair]]:
    source = MemorySource(label="m", data=b"0123456789")
    found = []
    (tmp_path / "sub").mkdir()
    for name, head in (("a", b"head"), ("sub/b", b"other")):
        copy = Copy(extent=Extent(source=source, offset=2, length=6), offset=10)
        output = OutputFile(path=tmp_path / name, head=head, copies=(copy,), size=20)
        found.append((create_part(output.path, 20), output))
    yield found
    for part, _ in found:
        part.close()


def test_heads_and_copies_are_written_and_counted(pairs: list[Pair]) -> None:
    assert write_outputs(pairs, CopyState()) == 4 + 5 + 6 + 6
    for (part, _), head in zip(pairs, (b"head", b"other"), strict=True):
        assert part.path.read_bytes() == head.ljust(10, b"\0") + b"234567" + bytes(4)
    check_sizes(pairs)


def test_parts_are_fresh_unless_it_is_said(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(fill, "copy_works", lambda works, state, *, fresh: asked.append(fresh) or 0)
    write_outputs(pairs, CopyState())
    write_outputs(pairs, CopyState(), fresh=False)
    assert asked == [True, False]


@pytest.mark.parametrize("size", [19, 21])
def test_a_part_of_another_size_is_refused(pairs: list[Pair], size: int) -> None:
    os.ftruncate(pairs[1][0].fd, size)
    with pytest.raises(ExecuteError) as caught:
        check_sizes(pairs)
    assert str(caught.value) == f"{pairs[1][0].path}: is {size} bytes long, but 20 were planned"


def test_errors_without_a_name_get_that_of_the_output_or_the_folder(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name: list[str | None] = [None]

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error", name[0])

    monkeypatch.setattr(fill, "sync_file", fails)
    for parts, wanted in ((pairs, tmp_path), (pairs[:1], tmp_path / "a"), (pairs[1:], tmp_path / "sub" / "b")):
        with pytest.raises(OSError, match="Input/output") as caught:
            fill.sync_parts(parts)
        assert caught.value.filename == str(wanted)
    name[0] = "own"
    with pytest.raises(OSError, match="own") as caught:
        fill.sync_parts(pairs)
    assert caught.value.filename == "own"


def test_every_part_is_made_durable(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(fill, "sync_file", synced.append)
    fill.sync_parts(pairs)
    assert synced == [part.fd for part, _ in pairs]


def test_an_expected_checksum_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "written"
    path.write_bytes(b"data")
    right = hashlib.sha256(b"data").hexdigest()

    def output(expected: str | None) -> OutputFile:
        return OutputFile(path=tmp_path / "out", head=b"", copies=(), size=4, sha256=expected)

    verify_checksum(path, output(None))
    verify_checksum(path, output(right))
    for wrong in ("0" * 64, "f" * 64):  # one sorts before, one behind
        with pytest.raises(ExecuteError) as caught:
            verify_checksum(path, output(wrong))
        assert f"would have sha256 {right}, but the recorded one is {wrong}" in str(caught.value)
        assert caught.value.source == str(tmp_path / "out")


def test_without_a_wish_nothing_is_hashed(tmp_path: Path) -> None:
    plan = Plan(outputs=(OutputFile(path=tmp_path / "a", head=b"x", copies=(), size=1),), inputs=())
    digests = digests_for(plan, Options())
    assert type(digests) is NullDigests
    assert digests.finish() is None
    assert digests.step > 1 << 60
    assert fill.digests_of(plan, Options()) is None
    for wish in (Options(hash_files=True), Options(hash_parts=True)):
        digests = digests_for(plan, wish)
        assert type(digests) is not NullDigests
        digests.close()


def test_complete_outputs_are_hashed_where_they_are(tmp_path: Path) -> None:
    outputs = tuple(OutputFile(path=tmp_path / name, head=b"x", copies=(), size=1) for name in "ab")
    plan = Plan(outputs=outputs, inputs=())
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"3"), ("d", b"4")):
        (tmp_path / name).write_bytes(data)
    for paths, wanted in ((None, (b"1", b"2")), ([tmp_path / "c", tmp_path / "d"], (b"3", b"4"))):
        found = fill.digests_of(plan, Options(hash_files=True), paths)
        assert found is not None
        assert [each.sha256 for each in found.files] == [hashlib.sha256(data).hexdigest() for data in wanted]
        assert [each.name for each in found.files] == [str(tmp_path / "a"), str(tmp_path / "b")]
