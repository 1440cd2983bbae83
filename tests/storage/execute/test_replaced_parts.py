"""Publishing goes by the file that was written: what others put at a part's path in mid-run gets no final name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.storage.execute import consume, executor
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.publishing import one_file, sets
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path
from gguftool.storage.sources.source import Extent
from tests.storage.execute.test_consume import from_command, half_done, shards
from tests.support.command import run_gguftool
from tests.support.run_recorder import CHECKPOINT

DATA = bytes(range(1, 251)) * 16
NAMES = ("s-00001-of-00003.gguf", "s-00002-of-00003.gguf", "s-00003-of-00003.gguf")
OLD = b"the old and good file"


def plan_of(folder: Path, *names: str) -> Plan:
    """Copy the source in pieces of 100 bytes into each of `names` in `folder`."""
    if not (folder.parent / "source").exists():
        (folder.parent / "source").write_bytes(DATA)
    source = open_local(folder.parent / "source")
    copies = tuple(
        Copy(extent=Extent(source=source, offset=at, length=100), offset=at) for at in range(0, len(DATA), 100)
    )
    outputs = tuple(OutputFile(path=folder / name, head=b"", copies=copies, size=len(DATA)) for name in names)
    return Plan(outputs=outputs, inputs=(source,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def once(act: Callable[[], object], after: int = 1500) -> Callable[[int], None]:
    """A progress function that acts once, after so many bytes."""
    seen = [0]

    def progress(nbytes: int) -> None:
        before, seen[0] = seen[0], seen[0] + nbytes
        if before < after <= seen[0]:
            act()

    return progress


def stale(path: Path, size: int) -> None:
    """Put the unfinished part of another run at `path`."""
    path.unlink(missing_ok=True)
    path.write_bytes(b"\xee" * size)
    path.chmod(0o600)


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, 1 << 30])
@pytest.mark.parametrize("force", [False, True])
def test_a_run_whose_part_was_deleted_does_not_publish_that_of_the_next(
    force: bool, checkpoint: int, folder: Path
) -> None:
    """The user takes the part for a stale one, deletes it, and starts the command again."""
    out = folder / "a.gguf"
    plan = plan_of(folder, out.name)
    if force:
        out.write_bytes(OLD)
    left: list[bytes] = []

    def start_again() -> None:
        helper_path(out, "part").unlink()
        second = Options(force=force, checkpoint=CHECKPOINT, progress=once(interrupt, 500))
        with pytest.raises(KeyboardInterrupt):
            execute(plan_of(folder, out.name), second)
        left.append(helper_path(out, "part").read_bytes())

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(ExecuteError, match="not the file that was written here"):
        execute(plan, Options(force=force, checkpoint=checkpoint, progress=once(start_again)))
    assert (out.read_bytes() if force else out.exists()) == (OLD if force else False)
    assert helper_path(out, "part").read_bytes() == left[0]
    execute(plan_of(folder, out.name), Options(force=force, checkpoint=CHECKPOINT))
    assert out.read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), 7, None])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("names", [("a.gguf",), NAMES])
def test_a_folder_that_was_replaced_in_mid_run_gets_no_stale_part_as_an_output(
    names: tuple[str, ...], force: bool, size: int | None, folder: Path
) -> None:
    plan = plan_of(folder, *names)
    moved = folder.parent / "moved"

    def move() -> None:
        folder.rename(moved)
        folder.mkdir()
        for name in names:
            if size is not None:
                stale(helper_path(folder / name, "part"), size)
            if force:
                (folder / name).write_bytes(OLD)

    last = (len(names) - 1) * len(DATA) + 1500
    with pytest.raises(ExecuteError) as error:
        execute(plan, Options(force=force, progress=once(move, last)))
    assert str(moved) in str(error.value)
    visible = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == (dict.fromkeys(names, OLD) if force else {})
    if size is not None:
        assert helper_path(folder / names[0], "part").read_bytes() == b"\xee" * size


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("force", [False, True])
def test_no_shard_is_named_that_another_run_wrote(force: bool, number: int, folder: Path) -> None:
    plan = plan_of(folder, *NAMES)
    if force:
        for name in NAMES:
            (folder / name).write_bytes(OLD)
    part = helper_path(folder / NAMES[number], "part")

    def replace_all() -> None:
        part.unlink()
        stale(part, len(DATA))

    with pytest.raises(ExecuteError, match="not the file that was written here"):
        execute(plan, Options(force=force, publishing=replace_all))
    visible = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == (dict.fromkeys(NAMES, OLD) if force else {})
    assert part.read_bytes() == b"\xee" * len(DATA)


@pytest.mark.parametrize("names", [("a.gguf",), NAMES])
@pytest.mark.parametrize("force", [False, True])
def test_a_part_replaced_in_the_last_moment_is_taken_back(
    force: bool, names: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(folder, *names)
    if force:
        for name in names:
            (folder / name).write_bytes(OLD)
    call = "replace" if force and len(names) == 1 else "link"
    real = getattr(os, call)
    target = folder / names[-1]

    def swapped(source: Path, name: Path, **options: object) -> None:
        if Path(name) == target:
            stale(Path(source), len(DATA))
        real(source, name, **options)

    monkeypatch.setattr(os, call, swapped)
    with pytest.raises(ExecuteError, match="not the file that was written here"):
        execute(plan, Options(force=force))
    visible = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == (dict.fromkeys(names, OLD) if force else {})


@pytest.mark.parametrize("suffix", ["only-copy", "consume"])
@pytest.mark.parametrize("how", ["gone", "other"])
def test_no_source_is_removed_once_the_only_copy_or_its_journal_is_another_file(
    how: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to the helper files in mid-run, what is not safe stays, and bytes go to one file."""
    paths = shards(tmp_path / "in")
    helper = helper_path(tmp_path / "out.gguf", suffix)
    real = consume.free

    def free(source: object) -> None:
        real(source)  # type: ignore[arg-type]
        if not (tmp_path / "aside").exists():
            data = helper.read_bytes()
            os.rename(helper, tmp_path / "aside")
            if how == "other":
                stale(helper, len(data))

    monkeypatch.setattr(consume, "free", free)
    with pytest.raises(ExecuteError):
        executor.execute(from_command(tmp_path), Options())
    assert sum(path.exists() for path in paths) == len(paths) - 1
    monkeypatch.undo()
    if how == "other":
        helper.unlink()
    os.rename(tmp_path / "aside", helper)
    command = ("merge", tmp_path / "in", "-o", tmp_path / "out.gguf", "--consume", "--yes")
    done = run_gguftool(*command)
    assert done.returncode == 0, done.stderr
    (tmp_path / "again").mkdir()
    assert (tmp_path / "out.gguf").read_bytes() == half_done(tmp_path / "again", monkeypatch)[0]


# --- files that moved aside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES[:1], NAMES], ids=["one file", "a set"])
def test_what_takes_the_place_of_a_file_that_moved_aside_does_not_get_its_name(
    names: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        (folder / name).write_bytes(OLD)
    old = helper_path(folder / names[0], "old")
    moved = folder.parent / "kept"

    def fail(folders: object) -> None:
        if not old.exists():
            return  # the journal of a set is made durable first
        if not moved.exists():
            os.rename(old, moved)
            old.write_bytes(b"a stranger's")
        raise OSError(5, "Input/output error")

    for module in (one_file, sets):
        monkeypatch.setattr(module, "sync_folders", fail)
    with pytest.raises(ExecuteError, match="was replaced while"):
        execute(plan_of(folder, *names), Options(force=True))
    assert moved.read_bytes() == OLD
    assert old.read_bytes() == b"a stranger's"
    assert not (folder / names[0]).exists() or (folder / names[0]).read_bytes() != b"a stranger's"
