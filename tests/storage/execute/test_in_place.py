"""Changes in place of split sets: whole shards replaced, all or none, and what a crash leaves is refused by readers."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, FormatError, PlanError, SourceError
from gguftool.model.opening import open_model
from gguftool.model.recovery import recover_model
from gguftool.storage.execute import in_place
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.in_place import journal_lock
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.publishing.sets import finish_set
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path, set_journal_path
from gguftool.storage.sources.source import Extent
from gguftool.surgery.edit.plan import Edits, plan_edit
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.half_way import SET_SWAP, SHARDS, half_way
from tests.support.writer_cases import listing, set_up, visible


def inodes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_ino for name in SHARDS}


def swap(folder: Path, pattern: str, donor: str = "other.gguf", shard: int = 0) -> None:
    done = run_gguftool("swap", folder / SHARDS[shard], "--from", folder / donor, "--tensor", pattern, "--in-place")
    assert done.returncode == 0, done.stderr


def test_only_shards_that_change_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    before = inodes(folder)
    swap(folder, "blk.0.attn_q.weight", donor="donor.gguf", shard=1)
    changed = [name for name in SHARDS if inodes(folder)[name] != before[name]]
    assert SHARDS[2] in changed
    assert SHARDS[1] not in changed
    old, new = (b.filler(f"{prefix}blk.0.attn_q.weight", 7 * 34) for prefix in ("", "other "))
    data = (folder / SHARDS[2]).read_bytes()
    assert new in data
    assert old not in data
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


def test_an_edit_of_any_length_replaces_shard_1_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    before = inodes(folder)
    value = "x" * 5000
    done = run_gguftool("edit", folder / SHARDS[2], "--set", f"general.name=str:{value}", "--in-place")
    assert done.returncode == 0, done.stderr
    assert [name for name in SHARDS if inodes(folder)[name] != before[name]] == [SHARDS[0]]
    assert value in run_gguftool("dump", folder / SHARDS[1], "--array-limit", 1, "--json").stdout.decode()


def test_nothing_to_change_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    model = open_model(folder / SHARDS[0])
    same = next(kv for kv in model.kvs if kv.key == "general.name")
    with pytest.raises(PlanError, match="nothing would change"):
        plan_edit(model, Edits(values=(same,)), None)


def test_a_shard_that_is_a_symbolic_link_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    (folder / SHARDS[0]).rename(tmp_path / "blob")
    (folder / SHARDS[0]).symlink_to(tmp_path / "blob")
    before = listing(folder)
    done = run_gguftool("edit", folder / SHARDS[1], "--set", "general.name=str:N", "--in-place")
    assert done.returncode == 2
    assert "symbolic link" in one_error_line(done.stderr)
    assert listing(folder) == before


def test_readers_refuse_a_set_between_old_and_new_by_any_shard(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    half_way(folder)
    assert (folder / SHARDS[1]).exists()
    for name in (SHARDS[1], SHARDS[2], "."):
        done = run_gguftool("dump", folder / name)
        assert done.returncode == 2
        assert "--recover" in one_error_line(done.stderr)


@pytest.mark.parametrize("shard", SHARDS)
def test_recover_finishes_and_says_so(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wanted = half_way(folder)
    done = run_gguftool("edit", folder / shard, "--recover")
    assert done.returncode == 0, done.stderr
    assert b"finished" in done.stdout
    assert listing(folder) == wanted
    again = run_gguftool("edit", folder / shard, "--recover")
    assert again.returncode == 2
    assert "no unfinished change" in one_error_line(again.stderr)


def test_the_next_change_in_place_recovers_first_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    half_way(folder)
    done = run_gguftool("edit", folder / SHARDS[1], "--set", "general.name=str:N", "--in-place")
    assert done.returncode == 0, done.stderr
    assert b"finished" in done.stderr
    assert open_model(folder / SHARDS[0]).is_complete


def test_a_living_run_is_not_recovered(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    helper_path(tmp_path / "m.gguf", "undo").write_bytes(b"whatever")
    with journal_lock(tmp_path / "m.gguf"):
        done = run_gguftool("edit", tmp_path / "m.gguf", "--recover")
    assert done.returncode == 2
    assert "another gguftool" in one_error_line(done.stderr)
    assert helper_path(tmp_path / "m.gguf", "undo").exists()


@pytest.mark.parametrize(
    "names", ['[["../victim", 3]]', '[["/etc/victim", 3]]', '[["", 3]]', "7", '[["a\\u0000b", 3]]', "[[1]]"]
)
def test_a_strangers_set_journal_moves_nothing_outside_its_folder(names: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    (tmp_path / "victim").write_bytes(b"dear")
    text = f'{{"version": "gguftool set 1", "fingerprint": "", "replace": true, "names": {names}}}\n'
    set_journal_path(folder / SHARDS[0]).write_text(text)
    before = visible(listing(folder))
    done = run_gguftool("edit", folder / SHARDS[0], "--recover")
    assert done.returncode == 2
    assert "damaged" in one_error_line(done.stderr)
    assert visible(listing(folder)) == before
    assert (tmp_path / "victim").read_bytes() == b"dear"


def test_a_set_journal_that_was_never_finished_means_nothing_had_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    set_up(SET_SWAP, folder)
    set_journal_path(folder / SHARDS[0]).write_text('{"version": "gguftool se')
    before = visible(listing(folder))
    with pytest.raises(SourceError, match="--recover"):
        open_model(folder / SHARDS[0])
    assert recover_model(str(folder / SHARDS[1])) != ()
    assert listing(folder) == before
    assert finish_set(folder / SHARDS[0]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("edit", "--in-place"),
        ("edit", "--in-place", "--set", "no value"),
        ("edit", "--in-place", "--set", "general.name=u8:999"),
        ("edit", "--in-place", "--set-file", "tokenizer.chat_template=absent"),
        ("edit", "--in-place", "--set", "a=str:b", "-o", "out.gguf"),
        ("swap", "--in-place", "--from", "absent.gguf", "--tensor", "x"),
        ("swap", "--in-place", "--from", "m.gguf", "--tensor", "x", "-o", "out.gguf"),
    ],
    ids=" ".join,
)
def test_a_command_that_is_refused_for_its_arguments_recovers_nothing(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b.small_model())
    text = json.dumps({"target": "m.gguf", "size": model.stat().st_size, "ranges": [[100, 8]]}).encode()
    undo = b"gguftool undo 1\n" + struct.pack("<Q", len(text)) + text + b"old byte"
    helper_path(model, "undo").write_bytes(undo)
    before = listing(tmp_path)
    done = run_gguftool(arguments[0], model, *arguments[1:], cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert listing(tmp_path) == before
    done = run_gguftool("edit", model, "--in-place", "--set", "general.name=str:N", cwd=tmp_path)
    assert b"has its old bytes back" in done.stderr
    assert model.read_bytes()[100:108] == b"old byte" or done.returncode == 0


def test_a_donor_that_changes_after_it_was_copied_gives_the_old_file_back(tmp_path: Path) -> None:
    base, donor = tmp_path / "m.gguf", tmp_path / "donor"
    base.write_bytes(b"old bytes here")
    donor.write_bytes(b"new")
    source, given = open_local(base), open_local(donor)
    copy = Copy(extent=Extent(source=given, offset=0, length=3), offset=4)
    output = OutputFile(path=base, head=b"", copies=(copy,), size=14, base=source)
    copied: list[bytes] = []

    def touch(_nbytes: int) -> None:
        if base.read_bytes() == b"old newes here":
            copied.append(b"new")
            os.utime(donor, ns=(1, 1))

    with pytest.raises(SourceError, match=r"donor.*changed"):
        execute(Plan(outputs=(output,), inputs=(source, given)), Options(progress=touch))
    assert copied
    assert base.read_bytes() == b"old bytes here"
    assert os.listdir(tmp_path) in (["m.gguf", "donor"], ["donor", "m.gguf"])


@pytest.mark.parametrize("size", [-1, 1])
def test_a_part_of_another_size_than_the_set_journal_says_is_not_installed(size: int, tmp_path: Path) -> None:
    old, new = b"the old shard", b"the new shard"
    for name in SHARDS:
        (tmp_path / name).write_bytes(old)
    part = helper_path(tmp_path / SHARDS[1], "part")
    part.write_bytes(new)
    fields = {
        "version": "gguftool set 1",
        "fingerprint": "",
        "replace": True,
        "names": [[SHARDS[1], len(new) + size]],
    }
    set_journal_path(tmp_path / SHARDS[0]).write_text(json.dumps(fields) + "\n")
    with pytest.raises(ExecuteError, match=f"has {len(new)} bytes, but the journal says {len(new) + size}"):
        finish_set(tmp_path / SHARDS[0])
    assert (tmp_path / SHARDS[1]).read_bytes() == old
    assert part.read_bytes() == new
    assert set_journal_path(tmp_path / SHARDS[0]).exists()


# --- the undo journal, field by field --------------------------------------------------------------------------------


def undo_of(fields: object, old: bytes, *, magic: bytes = b"gguftool undo 1\n", length: int | None = None) -> bytes:
    text = json.dumps(fields).encode()
    return magic + struct.pack("<Q", len(text) if length is None else length) + text + old


def put_undo(target: Path, data: bytes) -> None:
    path = helper_path(target, "undo")
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)


GOOD = {"target": "m.gguf", "size": 20, "ranges": [[0, 2], [5, 3], [19, 1]]}


def test_recovery_writes_every_range_back_and_removes_the_journal(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"n" * 20)
    put_undo(target, undo_of(GOOD, b"ABCDEF"))
    journal = in_place.recover(target)
    assert target.read_bytes() == b"ABnnnCDEnnnnnnnnnnnF"
    assert (journal.ranges, journal.size, journal.target) == (((0, 2), (5, 3), (19, 1)), 20, target)
    assert os.listdir(tmp_path) == ["m.gguf"]
    with pytest.raises(SourceError, match="no unfinished change"):
        in_place.recover(target)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not an undo journal"),
        (b"gguftool undo 1\n", "is not an undo journal"),
        (b"gguftool undo 1\n" + bytes(7), "is not an undo journal"),
        (undo_of(GOOD, b"ABCDEF", magic=b"gguftool undo 2\n"), "is not an undo journal"),
        (undo_of(GOOD, b"ABCDEF", length=0), "is not an undo journal"),
        (undo_of(GOOD, b"", length=len(json.dumps(GOOD)) + 1), "is not an undo journal"),
        (undo_of(GOOD, b"", length=1 << 63), "is not an undo journal"),
        (undo_of(GOOD, b"ABCDE"), "does not belong to"),
        (undo_of(GOOD, b"ABCDEFG"), "does not belong to"),
        (undo_of({**GOOD, "target": "n.gguf"}, b"ABCDEF"), "does not belong to"),
        (undo_of({**GOOD, "target": "l.gguf"}, b"ABCDEF"), "does not belong to"),
        (undo_of({**GOOD, "size": 19}, b"ABCDEF"), "does not belong to"),
        (undo_of({**GOOD, "size": 21}, b"ABCDEF"), "does not belong to"),
        (undo_of({**GOOD, "ranges": []}, b""), "does not belong to"),
        (undo_of({**GOOD, "ranges": [[-1, 3]]}, b"ABC"), "does not belong to"),
        (undo_of({**GOOD, "ranges": [[19, 2]]}, b"AB"), "does not belong to"),
        (undo_of({**GOOD, "ranges": [[5, 3], [4, -1]]}, b"AB"), "does not belong to"),
        (undo_of({**GOOD, "ranges": 5}, b"ABCDEF"), "is damaged"),
        (undo_of({**GOOD, "ranges": [[1]]}, b"A"), "is damaged"),
        (undo_of({"target": "m.gguf"}, b"A"), "is damaged"),
        (undo_of([], b"A"), "is damaged"),
    ],
)
def test_a_damaged_undo_journal_changes_nothing(tmp_path: Path, data: bytes, words: str) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"n" * 20)
    put_undo(target, data)
    with pytest.raises(FormatError, match=words) as caught:
        in_place.recover(target)
    assert caught.value.source == str(helper_path(target, "undo"))
    assert target.read_bytes() == b"n" * 20
    assert helper_path(target, "undo").read_bytes() == data


def test_an_empty_text_of_a_range_at_the_end_is_read(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"n" * 20)
    put_undo(target, undo_of({**GOOD, "ranges": [[20, 0], [18, 2]]}, b"XY"))
    in_place.recover(target)
    assert target.read_bytes() == b"n" * 18 + b"XY"


def test_the_journal_holds_the_old_bytes_behind_each_other(tmp_path: Path) -> None:
    target, donor = tmp_path / "m.gguf", tmp_path / "donor"
    target.write_bytes(bytes(range(20)))
    donor.write_bytes(b"new")
    base, given = open_local(target), open_local(donor)
    copies = tuple(
        Copy(extent=Extent(source=given, offset=0, length=length), offset=at) for at, length in ((5, 3), (10, 1))
    )
    output = OutputFile(path=target, head=b"HH", copies=copies, size=20, base=base)
    journal = in_place.journal_file(output)
    begin = len(journal.head)
    assert journal.head == undo_of({"target": "m.gguf", "size": 20, "ranges": [[0, 2], [5, 3], [10, 1]]}, b"")
    assert [(copy.extent.offset, copy.extent.length, copy.offset - begin) for copy in journal.copies] == [
        (0, 2, 0),
        (5, 3, 2),
        (10, 1, 5),
    ]
    assert journal.size == begin + 6
    receipt = execute(Plan(outputs=(output,), inputs=(base, given)), Options())
    assert target.read_bytes() == b"HH" + bytes([2, 3, 4]) + b"new" + bytes([8, 9]) + b"n" + bytes(range(11, 20))
    assert (receipt.paths, receipt.nbytes) == ((target,), 6)
    assert sorted(os.listdir(tmp_path)) == ["donor", "m.gguf"]
    with pytest.raises(ExecuteError, match="has no base"):
        in_place.journal_file(OutputFile(path=target, head=b"", copies=(), size=20))


def test_a_file_that_cannot_get_its_old_bytes_back_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"n" * 20)
    put_undo(target, undo_of(GOOD, b"ABCDEF"))

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(in_place, "sync_file", fails)
    with pytest.raises(ExecuteError) as caught:
        in_place.recover(target)
    assert caught.value.source == str(target)
    assert "cannot get its old bytes back: Input/output error; they are safe in" in str(caught.value)
    assert f"edit {target} --recover" in str(caught.value)
    assert helper_path(target, "undo").exists()
