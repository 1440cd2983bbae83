"""Publishing: what is durable when, what an error leaves, and what finishes a set after a kill, from every state."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.record import replace as changed
from gguftool.storage.execute.part import PartFile, create_part
from gguftool.storage.execute.publishing import one_file, set_journal, sets
from gguftool.storage.execute.publishing.one_file import publish_one
from gguftool.storage.execute.publishing.sets import HalfwayError, finish_set, publish_set
from gguftool.storage.plan import Consume, OutputFile, Plan
from gguftool.storage.sources.sidecars import helper_path, set_journal_path

NAMES = ["s-00002-of-00002.gguf", "s-00001-of-00002.gguf"]  # in publishing order


def put(path: Path, data: bytes) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def journal(folder: Path, **fields: object) -> Path:
    known = {"version": "gguftool set 1", "fingerprint": "f", "replace": False, "names": [[name, 3] for name in NAMES]}
    put(set_journal_path(folder / NAMES[1]), json.dumps({**known, **fields}).encode() + b"\n")
    return folder / NAMES[1]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("left", [0, 1, 2])
def test_parts_that_are_left_get_their_names(tmp_path: Path, replace: bool, left: int) -> None:
    first = journal(tmp_path, replace=replace)
    for number, name in enumerate(NAMES):
        if number < 2 - left:
            put(tmp_path / name, b"new")
        else:
            put(helper_path(tmp_path / name, "part"), b"new")
            if replace:
                put(tmp_path / name, b"old")
    if replace:
        put(helper_path(first, "old"), b"old")
    found = finish_set(first)
    assert found is not None
    assert (found.fingerprint, found.replace) == ("f", replace)
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")
    assert finish_set(first) is None


def test_a_foreign_file_keeps_its_name_and_the_journal_stays(tmp_path: Path) -> None:
    first = journal(tmp_path)
    put(helper_path(tmp_path / NAMES[0], "part"), b"new")
    put(tmp_path / NAMES[0], b"foreign")
    before = state(tmp_path)
    with pytest.raises(ExecuteError, match="exists already"):
        finish_set(first)
    assert state(tmp_path) == before


def test_a_second_name_of_a_published_file_goes(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for name in NAMES:
        os.link(put(tmp_path / name, b"new"), helper_path(tmp_path / name, "part"))
    assert finish_set(first) is not None
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")


@pytest.mark.parametrize(
    "fields",
    [{"version": "gguftool set 2"}, {"suffix": "old"}, {"names": [["t-00001-of-00002.gguf", 3]]}, {"names": 5}],
)
def test_what_is_no_set_journal_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    first = journal(tmp_path, **fields)
    with pytest.raises(ExecuteError, match="is not a set journal of this gguftool, or is damaged") as caught:
        finish_set(first)
    assert caught.value.source == str(set_journal_path(first))


def test_only_true_allows_a_journal_to_replace_files(tmp_path: Path) -> None:
    first = journal(tmp_path, replace=1)
    put(helper_path(first, "part"), b"new")
    put(first, b"foreign")
    with pytest.raises(ExecuteError, match="exists already"):
        finish_set(first)
    assert first.read_bytes() == b"foreign"


def test_a_journal_that_arrives_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = journal(tmp_path)
    for name in NAMES:
        put(helper_path(tmp_path / name, "part"), b"new")
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, min(size, 7)))
    assert finish_set(first) is not None
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")


@pytest.mark.parametrize("there", [True, False])
def test_a_shard_1_that_does_not_change_gets_its_name_back_last(tmp_path: Path, there: bool) -> None:
    first = journal(tmp_path, replace=True, names=[[NAMES[0], 3]])
    put(helper_path(tmp_path / NAMES[0], "part"), b"new")
    put(helper_path(first, "old"), b"one")
    if there:
        put(first, b"1st")  # it has its name already: what lies aside is a leftover
    assert finish_set(first) is not None
    assert state(tmp_path) == {NAMES[0]: b"new", NAMES[1]: b"1st" if there else b"one"}


def test_what_recovery_names_is_durable_before_the_journal_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = journal(tmp_path)
    for name in NAMES:
        put(helper_path(tmp_path / name, "part"), b"new")
    syncs = Syncs(monkeypatch, tmp_path)
    assert finish_set(first) is not None
    assert [{name: found.get(name) for name in NAMES} for found in syncs.states] == [dict.fromkeys(NAMES, b"new")]
    assert set_journal_path(first).name in syncs.states[0]


@pytest.mark.parametrize("aside", [True, False])
def test_recovery_gives_the_mode_of_the_old_file_wherever_it_lies(tmp_path: Path, aside: bool) -> None:
    first = journal(tmp_path, replace=True)
    put(helper_path(first, "part"), b"new")
    put(helper_path(first, "old") if aside else first, b"old").chmod(0o640)
    assert finish_set(first) is not None
    assert first.stat().st_mode & 0o777 == 0o640


# --- while nothing fails, and when something does --------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[..., list[PartFile]]]:
    """Write complete part files that hold "new", the last one still open, as a run does."""
    with contextlib.ExitStack() as cleanup:

        def write(*names: str) -> list[PartFile]:
            parts = [create_part(tmp_path / name, 3) for name in names]
            for part in parts:
                os.pwrite(part.fd, b"new", 0)
            cleanup.callback(parts[-1].close)
            return [*(part.closed() for part in parts[:-1]), parts[-1]]

        yield write


def plan(folder: Path, *names: str) -> Plan:
    """The plan for `names` in publishing order; shard 1 need not be among them."""
    outputs = tuple(OutputFile(path=folder / name, head=b"new", copies=(), size=3) for name in (names[-1], *names[:-1]))
    return Plan(outputs=outputs, inputs=(), first_shard=folder / NAMES[1])


class Syncs:
    """Record what a folder holds whenever it is made durable, and files made durable; fail call `fail_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, fail_at: int | None = None) -> None:
        self.folder, self.fail_at = folder, fail_at
        self.states: list[dict[str, bytes]] = []
        self.files: list[tuple[int, int]] = []  # inode, and the number of folders synced before
        for module in (one_file, set_journal, sets):
            monkeypatch.setattr(module, "sync_folders", self._folders)
        monkeypatch.setattr(set_journal, "sync_file", self._file)

    def _folders(self, folders: list[Path]) -> None:
        assert folders == [self.folder]
        self.states.append(state(self.folder))
        if len(self.states) - 1 == self.fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _file(self, fd: int) -> None:
        self.files.append((os.fstat(fd).st_ino, len(self.states)))


@pytest.mark.parametrize("old", [True, False])
def test_a_set_is_durable_before_its_journal_goes(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    for name in NAMES if old else ():
        put(tmp_path / name, b"old")
    parts = written(*NAMES)
    resume = put(tmp_path / "resume", b"obsolete")
    path = set_journal_path(tmp_path / NAMES[1])
    syncs = Syncs(monkeypatch, tmp_path)
    made: list[int] = []
    real = set_journal.create_helper
    monkeypatch.setattr(set_journal, "create_helper", lambda path: made.append(real(path)) or made[-1])
    publish_set(plan(tmp_path, *NAMES), parts, resume, replace=old, sync=True)
    begun, named, done = syncs.states
    assert [count for _, count in syncs.files] == [0], "the journal's bytes come before its name"
    fields = json.loads(begun[path.name])
    assert begun[path.name].endswith(b"\n")
    assert fields == {
        "version": "gguftool set 1",
        "fingerprint": plan(tmp_path, *NAMES).fingerprint,
        "replace": old,
        "names": [[name, 3] for name in NAMES],
    }
    assert {name: begun.get(name) for name in NAMES} == dict.fromkeys(NAMES, b"old" if old else None)
    assert {name: named.get(name) for name in (*NAMES, path.name)} == {
        **dict.fromkeys(NAMES, b"new"),
        path.name: begun[path.name],
    }
    assert done == state(tmp_path) == dict.fromkeys(NAMES, b"new")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_without_sync_nothing_waits_for_the_disk(
    tmp_path: Path,
    written: Callable[..., list[PartFile]],
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    names: list[str],
) -> None:
    for name in names if old else ():
        put(tmp_path / name, b"old")
    parts = written(*names)
    syncs = Syncs(monkeypatch, tmp_path)
    if len(names) == 1:
        publish_one(parts[0], replace=old, sync=False)
    else:
        publish_set(plan(tmp_path, *names), parts, None, replace=old, sync=False)
    assert (syncs.states, syncs.files) == ([], [])
    assert state(tmp_path) == dict.fromkeys(names, b"new")


@pytest.mark.parametrize("sync", [0, 1])
@pytest.mark.parametrize("old", ["both", "first", "none", "stale"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]], ids=["all", "without shard 1"])
def test_a_set_that_cannot_be_made_durable_is_taken_back(
    tmp_path: Path,
    written: Callable[..., list[PartFile]],
    monkeypatch: pytest.MonkeyPatch,
    sync: int,
    old: str,
    names: list[str],
) -> None:
    for name in NAMES if old == "both" else NAMES[1:] if old == "first" or names != NAMES else ():
        put(tmp_path / name, name.encode())
    parts = written(*names)
    before = state(tmp_path)
    if old == "stale":  # left by a run that was killed after it published; its target was removed since
        put(helper_path(tmp_path / NAMES[0], "old"), b"stale")
        before.update({helper_path(tmp_path / NAMES[0], "old").name: b"stale"} if sync == 0 else {})
    Syncs(monkeypatch, tmp_path, fail_at=sync)
    with pytest.raises(OSError, match="Input/output error"):
        publish_set(plan(tmp_path, *names), parts, None, replace=old != "none" or names != NAMES, sync=True)
    assert state(tmp_path) == before
    for part in parts:
        part.require()


def test_shard_1_stays_the_same_file_if_only_others_change(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put(tmp_path / NAMES[1], b"one")
    inode = first.stat().st_ino
    put(tmp_path / NAMES[0], b"old")
    parts = written(NAMES[0])
    syncs = Syncs(monkeypatch, tmp_path)
    publish_set(plan(tmp_path, NAMES[0]), parts, None, replace=True, sync=True)
    assert first.stat().st_ino == inode
    assert syncs.states[1][first.name] == b"one"
    assert state(tmp_path) == {NAMES[0]: b"new", NAMES[1]: b"one"}


@pytest.mark.parametrize("emptied", [True, False])
def test_a_journal_that_cannot_be_removed_is_emptied(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch, emptied: bool
) -> None:
    parts = written(*NAMES)
    path = set_journal_path(tmp_path / NAMES[1])
    real = os.unlink

    def unlink(name: Path) -> None:
        if name == path:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(name)

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "unlink", unlink)
    if not emptied:
        monkeypatch.setattr(os, "ftruncate", refuse)
    expected = (
        contextlib.nullcontext() if emptied else pytest.raises(HalfwayError, match="is complete, but its journal")
    )
    with expected:
        publish_set(plan(tmp_path, *NAMES), parts, None, replace=False, sync=True)
    left = state(tmp_path)
    assert (left.pop(path.name) == b"") == emptied
    assert left == dict.fromkeys(NAMES, b"new")


def test_a_set_that_cannot_be_taken_back_keeps_its_journal(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        put(tmp_path / name, b"old")
    parts = written(*NAMES)
    with monkeypatch.context() as patch:
        Syncs(patch, tmp_path, fail_at=1)

        def fail(part: PartFile) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(sets, "unpublish", fail)
        words = r"neither published \(Input/output error\) nor rolled back \(Read-only file system\).*--recover"
        with pytest.raises(HalfwayError, match=words):
            publish_set(plan(tmp_path, *NAMES), parts, None, replace=True, sync=True)
    assert finish_set(tmp_path / NAMES[1]) is not None
    assert state(tmp_path) == dict.fromkeys(NAMES, b"new")


def test_a_journal_of_parts_that_are_only_copies_says_so(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = written(*NAMES)
    syncs = Syncs(monkeypatch, tmp_path)
    consuming = changed(plan(tmp_path, *NAMES), consume=Consume(anchor=tmp_path / "s", steps=()))
    publish_set(consuming, parts, None, replace=False, sync=True)
    assert json.loads(syncs.states[0][set_journal_path(tmp_path / NAMES[1]).name])["suffix"] == "only-copy"


def test_a_journal_is_written_to_its_end_by_short_writes(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = written(*NAMES)
    syncs = Syncs(monkeypatch, tmp_path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    publish_set(plan(tmp_path, *NAMES), parts, None, replace=False, sync=True)
    data = syncs.states[0][set_journal_path(tmp_path / NAMES[1]).name]
    assert json.loads(data)["names"] == [[name, 3] for name in NAMES]


def test_another_runs_journal_stays(tmp_path: Path, written: Callable[..., list[PartFile]]) -> None:
    parts = written(*NAMES)
    journal(tmp_path)
    before = state(tmp_path)
    with pytest.raises(ExecuteError, match="another gguftool is writing this file"):
        publish_set(plan(tmp_path, *NAMES), parts, None, replace=False, sync=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize("other", ["a", "z"])
def test_a_set_in_two_folders_is_refused(tmp_path: Path, written: Callable[..., list[PartFile]], other: str) -> None:
    for name in ("m", other):
        (tmp_path / name).mkdir()
    names = [f"{other}/{NAMES[0]}", f"m/{NAMES[1]}"]
    parts = written(*names)
    whole = changed(plan(tmp_path, *names), first_shard=tmp_path / "m" / NAMES[1])
    with pytest.raises(ExecuteError, match="must be in one folder"):
        publish_set(whole, parts, None, replace=False, sync=True)
    for part in parts:
        part.require()


@pytest.mark.parametrize("fail_at", [None, 1])
@pytest.mark.parametrize("names", [[NAMES[0], "s-00003-of-00003.gguf", NAMES[1]], NAMES[:1]])
def test_shard_1_never_stands_between_old_and_new(
    tmp_path: Path,
    written: Callable[..., list[PartFile]],
    monkeypatch: pytest.MonkeyPatch,
    fail_at: int | None,
    names: list[str],
) -> None:
    for name in {*names, NAMES[1]}:
        put(tmp_path / name, b"old")
    parts = written(*names)
    Syncs(monkeypatch, tmp_path, fail_at=fail_at)
    moments = []

    def watch(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            real(*args, **options)
            now = state(tmp_path)
            if NAMES[1] in now:
                moments.append([now.get(name) for name in names])

        return call

    for name in ("link", "rename", "unlink"):
        monkeypatch.setattr(os, name, watch(getattr(os, name)))
    expected = contextlib.nullcontext() if fail_at is None else pytest.raises(OSError, match="Input/output error")
    with expected:
        publish_set(plan(tmp_path, *names), parts, None, replace=True, sync=True)
    assert moments
    assert all(moment in ([b"old"] * len(names), [b"new"] * len(names)) for moment in moments)


def test_an_interrupt_right_after_a_shard_got_its_name_takes_it_back(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = written(*NAMES)
    before = state(tmp_path)
    real = sets.publish

    def interrupted(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(sets, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_set(plan(tmp_path, *NAMES), parts, None, replace=False, sync=True)
    assert state(tmp_path) == before


def test_an_incomplete_set_is_refused_before_anything_moves(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        put(tmp_path / name, b"old")
    parts = written(*NAMES)
    parts[0].path.unlink()
    before = state(tmp_path)
    syncs = Syncs(monkeypatch, tmp_path)
    with pytest.raises(ExecuteError, match="is not the file that was written here"):
        publish_set(plan(tmp_path, *NAMES), parts, None, replace=True, sync=True)
    assert (syncs.states, state(tmp_path)) == ([], before)


def test_a_journal_that_another_run_locked_first_stops_this_run(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = written(*NAMES)
    before = state(tmp_path)
    monkeypatch.setattr(set_journal, "lock", lambda fd: False)
    with pytest.raises(ExecuteError, match="another gguftool is writing this file"):
        publish_set(plan(tmp_path, *NAMES), parts, None, replace=False, sync=True)
    assert state(tmp_path) == before


# --- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "replace"), [(True, True), (False, True), (False, False)])
def test_the_old_file_is_kept_until_the_new_name_is_durable(
    tmp_path: Path,
    written: Callable[..., list[PartFile]],
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    replace: bool,
) -> None:
    backup = helper_path(tmp_path / "a", "old").name
    if old:
        put(tmp_path / "a", b"old")
    (part,) = written("a")
    syncs = Syncs(monkeypatch, tmp_path, fail_at=1)  # an error after the name is durable does not matter
    publish_one(part, replace=replace, sync=True)
    kept = {backup: b"old"} if old else {}
    assert syncs.states == [{"a": b"new", **kept}, {"a": b"new"}][: 2 if old else 1]
    assert state(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("where", ["rename", "sync"])
def test_a_file_that_cannot_be_published_leaves_the_old_one(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch, old: bool, where: str
) -> None:
    inode = put(tmp_path / "a", b"old").stat().st_ino if old else None
    (part,) = written("a")
    before = state(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if where == "rename":
        monkeypatch.setattr(os, "replace", fail)
    else:
        Syncs(monkeypatch, tmp_path, fail_at=0)
    with pytest.raises(OSError, match="Input/output error"):
        publish_one(part, replace=True, sync=True)
    assert state(tmp_path) == before
    assert not old or (tmp_path / "a").stat().st_ino == inode


def test_an_old_file_that_a_killed_run_kept_is_not_taken_for_the_old_one(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a", b"old")
    put(helper_path(tmp_path / "a", "old"), b"older")
    (part,) = written("a")
    Syncs(monkeypatch, tmp_path, fail_at=0)
    with pytest.raises(OSError, match="Input/output error"):
        publish_one(part, replace=True, sync=True)
    assert state(tmp_path) == {"a": b"old", part.path.name: b"new"}


@pytest.mark.parametrize("private", [True, False])
def test_only_journals_keep_the_mode_of_helpers(
    tmp_path: Path, written: Callable[..., list[PartFile]], private: bool
) -> None:
    (part,) = written("a")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    publish_one(part, replace=False, sync=False, private=private)
    assert (tmp_path / "a").stat().st_mode & 0o777 == (0o600 if private else plain.stat().st_mode & 0o777)


def test_an_interrupt_right_after_a_file_got_its_name_gives_the_old_one_back(
    tmp_path: Path, written: Callable[..., list[PartFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a", b"old")
    (part,) = written("a")
    before = state(tmp_path)
    real = os.replace

    def interrupted(old: Path, new: Path) -> None:
        real(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_one(part, replace=True, sync=True)
    assert state(tmp_path) == before
