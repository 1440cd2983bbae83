"""The executor's promise: complete under the final name, or nothing there that was not there before."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError, GGUFToolError, SourceError
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Plan
from gguftool.storage.sources.local import LocalSource, open_local
from tests.support import builders as b
from tests.support.command import environment, one_error_line, run_gguftool
from tests.support.faults import Faults, helper_path, small_disk, tree
from tests.support.memory_source import MemorySource, copy_plan, expected

DATA = bytes(range(256)) * 256
NAMES = [f"m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture
def source(tmp_path: Path) -> LocalSource:
    path = tmp_path / "in" / "input.gguf"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return open_local(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def set_plan(source: LocalSource, out: Path) -> Plan:
    return copy_plan(source, *(out / name for name in NAMES))


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_outputs_hold_what_the_plan_says(source: LocalSource, out: Path, count: int, sync: bool) -> None:
    targets = [out / f"{number}.gguf" for number in range(count)]
    done: list[int] = []
    receipt = execute(copy_plan(source, *targets), Options(sync=sync, progress=done.append))
    assert tree(out) == {target.name: expected(DATA, number) for number, target in enumerate(targets)}
    assert receipt.paths == tuple(targets)
    assert receipt.nbytes == sum(target.stat().st_size for target in targets)
    assert sum(done) == len(DATA) * count


def test_a_source_without_a_file_is_copied_plainly(out: Path) -> None:
    execute(copy_plan(MemorySource(label="memory", data=DATA), out / "a.gguf"))
    assert tree(out) == {"a.gguf": expected(DATA)}


def test_missing_folders_are_made(source: LocalSource, out: Path) -> None:
    execute(copy_plan(source, out / "x" / "y" / "a.gguf"))
    assert (out / "x" / "y" / "a.gguf").read_bytes() == expected(DATA)


def test_missing_folders_go_again_when_it_fails(source: LocalSource, out: Path) -> None:
    plan = copy_plan(source, out / "x" / "y" / "a.gguf")
    with pytest.raises(ZeroDivisionError):
        execute(plan, Options(progress=lambda nbytes: 1 // 0))
    assert tree(out) == {}


def test_a_name_of_255_bytes_works(source: LocalSource, out: Path) -> None:
    name = "n" * 250 + ".gguf"
    execute(copy_plan(source, out / name))
    assert list(tree(out)) == [name]


# --- what is refused -------------------------------------------------------------------------------------------------


def _same(source: Path, target: Path) -> Path:
    return source


def _dotted(source: Path, target: Path) -> Path:
    return source.parent / "." / ".." / source.parent.name / source.name


def _hard_link(source: Path, target: Path) -> Path:
    os.link(source, target)
    return target


def _symlink(source: Path, target: Path) -> Path:
    target.symlink_to(source)
    return target


def _linked_folder(source: Path, target: Path) -> Path:
    (target.parent / "linked").symlink_to(source.parent)
    return target.parent / "linked" / source.name


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", [_same, _dotted, _hard_link, _symlink, _linked_folder])
def test_an_output_that_is_an_input_is_refused(
    tmp_path: Path, out: Path, way: Callable[[Path, Path], Path], force: bool
) -> None:
    path = tmp_path / "input.gguf"
    path.write_bytes(DATA)
    target = way(path, out / "target.gguf")
    plan = copy_plan(open_local(path), out / "fine.gguf", target)
    before = tree(tmp_path)
    with pytest.raises(ExecuteError, match=r"is an input|is a symbolic link"):
        execute(plan, Options(force=force))
    assert tree(tmp_path) == before


def test_an_existing_output_needs_force(source: LocalSource, out: Path) -> None:
    (out / "a.gguf").write_bytes(b"old")
    with pytest.raises(ExecuteError, match="--force"):
        execute(copy_plan(source, out / "a.gguf"))
    assert tree(out) == {"a.gguf": b"old"}
    execute(copy_plan(source, out / "a.gguf"), Options(force=True))
    assert tree(out) == {"a.gguf": expected(DATA)}


def test_an_output_that_appears_meanwhile_is_not_replaced(source: LocalSource, out: Path) -> None:
    with pytest.raises(ExecuteError, match="exists already"):
        execute(copy_plan(source, out / "a.gguf"), Options(progress=lambda nbytes: (out / "a.gguf").touch() or None))
    assert tree(out) == {"a.gguf": b""}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("nowhere"), "symbolic link"),
        (lambda path: path.symlink_to("/dev/null"), "symbolic link"),
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ],
    ids=["dangling", "to a device", "folder", "pipe"],
)
def test_what_is_no_regular_file_is_never_written_to(
    source: LocalSource, out: Path, make: Callable[[Path], None], said: str, force: bool
) -> None:
    make(out / "a.gguf")
    before = sorted(os.listdir(out))
    with pytest.raises(ExecuteError, match=said):
        execute(copy_plan(source, out / "a.gguf"), Options(force=force))
    assert sorted(os.listdir(out)) == before


def test_every_refused_output_is_named_at_once(source: LocalSource, out: Path) -> None:
    for name in NAMES[1:]:
        (out / name).mkdir()
    with pytest.raises(ExecuteError) as error:
        execute(set_plan(source, out))
    assert all(name in str(error.value) for name in NAMES[1:])


def test_a_name_too_long_is_an_error_of_bounded_length(source: LocalSource, out: Path) -> None:
    plan = copy_plan(source, *(out / f"{'n' * 300}-{number}.gguf" for number in range(500)))
    with pytest.raises(ExecuteError, match="name too long") as error:
        execute(plan)
    assert len(str(error.value)) < 20_000


def test_a_file_in_the_place_of_a_folder_is_refused(source: LocalSource, out: Path) -> None:
    (out / "file").write_bytes(b"x")
    for target in (out / "file" / "a.gguf", out / "file" / "sub" / "a.gguf"):
        with pytest.raises(ExecuteError, match=r"Not a directory|cannot make this folder"):
            execute(copy_plan(source, target))
    assert tree(out) == {"file": b"x"}


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_without_permission_it_says_so_and_leaves_nothing(public_folder: Path) -> None:
    (public_folder / "in.gguf").write_bytes(b.small_model())
    (public_folder / "closed").mkdir(mode=0o555)
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        prefix = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        if not shutil.which("setpriv") or subprocess.run([*prefix, sys.executable, "-c", ""], check=False).returncode:
            pytest.skip("root may write anywhere and setpriv cannot start Python as nobody: run the tests as a user")
    for target in ("closed/out.gguf", "closed/new/out.gguf"):
        done = run_gguftool("merge", "in.gguf", "-o", target, prefix=prefix, cwd=public_folder)
        assert done.returncode == 2
        assert "ermission denied" in one_error_line(done.stderr)
    assert tree(public_folder / "closed") == {}


# --- full disks ------------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = MemorySource(label="big", data=bytes(2 << 20))
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(ExecuteError, match=r"needs [0-9,]+ bytes and [0-9,]+ are free"):
            execute(copy_plan(source, disk / "new" / "a.gguf"))
        assert tree(disk) == {}


@pytest.mark.parametrize("count", [1, 3])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(tmp_path: Path, count: int) -> None:
    source = MemorySource(label="big", data=bytes([1]) * (768 << 10) if count == 1 else bytes([1]) * (256 << 10))
    with small_disk(tmp_path / "disk", "1m") as disk:

        def fill(nbytes: int) -> None:
            if not (disk / "other").exists():
                (disk / "other").write_bytes(bytes(400 << 10))

        with pytest.raises(ExecuteError, match=r"disk is full"):
            execute(copy_plan(source, *(disk / name for name in NAMES[:count])), Options(progress=fill))
        assert list(tree(disk)) == ["other"]


def test_a_file_size_limit_is_an_error_not_a_death(tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(b.small_model())
    done = run_gguftool(
        "merge",
        tmp_path / "in.gguf",
        "-o",
        tmp_path / "out.gguf",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 2
    assert "ulimit" in one_error_line(done.stderr)
    assert list(tree(tmp_path)) == ["in.gguf"]


# --- sources that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.open("ab").write(b"x") and None,
        lambda path: os.truncate(path, 100),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_suffix(".moved")),
    ],
    ids=["grown", "truncated", "touched", "gone", "renamed"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_source_that_changes_while_it_is_read_makes_no_output(
    source: LocalSource, out: Path, change: Callable[[Path], None]
) -> None:
    calls: list[int] = []

    def progress(nbytes: int) -> None:
        calls.append(nbytes)
        if len(calls) == 1:
            change(source.path)

    with pytest.raises(SourceError, match=r"changed since|No such file"):
        execute(set_plan(source, out), Options(progress=progress))
    assert tree(out) == {}


def test_an_input_that_only_gave_metadata_is_checked_too(source: LocalSource, tmp_path: Path, out: Path) -> None:
    donor = tmp_path / "donor.gguf"
    donor.write_bytes(b"x")
    plan = copy_plan(source, out / "a.gguf")
    plan = Plan(outputs=plan.outputs, inputs=(*plan.inputs, open_local(donor)))
    donor.write_bytes(b"xy")
    with pytest.raises(SourceError, match=r"donor.gguf"):
        execute(plan)
    assert tree(out) == {}


# --- the kernel's copy call ------------------------------------------------------------------------------------------


def test_short_writes_are_continued(source: LocalSource, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:777], at))
    execute(copy_plan(source, out / "a.gguf"))
    assert tree(out) == {"a.gguf": expected(DATA)}


def test_a_disk_that_accepts_nothing_is_an_error(
    source: LocalSource, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(ExecuteError, match="no more bytes"):
        execute(copy_plan(source, out / "a.gguf"))
    assert tree(out) == {}


# --- each call into the system fails once ----------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "over an old set"])
@pytest.mark.parametrize("count", [1, 3])
def test_whichever_call_fails_the_names_hold_the_old_or_nothing(
    source: LocalSource, tmp_path: Path, count: int, old: bool
) -> None:
    before = {name: b"old " + name.encode() for name in NAMES[:count]} if old else {}
    fail_at, reached = 0, True
    while reached:
        out = tmp_path / f"out{fail_at}" / "new"
        if old:
            out.mkdir(parents=True)
            for name, data in before.items():
                (out / name).write_bytes(data)
        plan = copy_plan(source, *(out / name for name in NAMES[:count]))
        failure = None
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, fail_at)
            try:
                execute(plan, Options(force=old))
            except GGUFToolError as error:
                failure = str(error)
        after = tree(out) if out.exists() else {}
        if failure is None:
            assert after == {name: expected(DATA, number) for number, name in enumerate(NAMES[:count])}
        elif after != before:
            # One rename cannot be taken back; then it has to be said that it was made.
            assert (count, old) == (1, True), (fail_at, faults.calls)
            assert "was replaced and is complete" in failure
        reached = len(faults.calls) > fail_at
        fail_at += 1
    assert fail_at > 8 * count
    assert tree(source.path.parent) == {"input.gguf": DATA}


# --- sets ------------------------------------------------------------------------------------------------------------


def _published(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[str]:
    real, names = os.link, []

    def link(part: Path, target: Path) -> None:
        names.append(os.path.basename(target))
        if len(names) - 1 == fail_at:
            raise OSError(errno.EIO, "Input/output error")
        real(part, target)

    monkeypatch.setattr(os, "link", link)
    return names


@pytest.mark.parametrize("force", [False, True])
def test_shard_1_is_published_last(
    source: LocalSource, out: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    if force:
        for name in NAMES:
            (out / name).write_bytes(b"old")
    published = _published(monkeypatch)
    execute(set_plan(source, out), Options(force=force))
    assert published == [*NAMES[1:], NAMES[0]]
    assert tree(out) == {name: expected(DATA, number) for number, name in enumerate(NAMES)}


def test_old_and_new_shards_never_stand_together_with_shard_1(
    source: LocalSource, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        (out / name).write_bytes(b"old")
    real, seen = os.rename, []

    def rename(path: Path, target: Path) -> None:
        real(path, target)
        seen.append(sorted(name for name in os.listdir(out) if name in NAMES))

    monkeypatch.setattr(os, "rename", rename)
    execute(set_plan(source, out), Options(force=True))
    assert seen[0] == NAMES[1:], "shard 1 moves aside first"


@pytest.mark.parametrize("existing", [(), (0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_set_that_cannot_be_published_is_taken_back(
    source: LocalSource, out: Path, monkeypatch: pytest.MonkeyPatch, existing: tuple[int, ...], fail_at: int
) -> None:
    for number in existing:
        (out / NAMES[number]).write_bytes(b"old %d" % number)
    before = tree(out)
    _published(monkeypatch, fail_at)
    with pytest.raises(ExecuteError, match="no output was made or changed"):
        execute(set_plan(source, out), Options(force=True))
    assert tree(out) == before


# --- several runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_second_run_on_the_same_output_is_refused(source: LocalSource, out: Path, count: int) -> None:
    plan = copy_plan(source, *(out / name for name in NAMES[:count]))
    refused: list[str] = []

    def second(nbytes: int) -> None:
        with pytest.raises(ExecuteError, match="another gguftool") as error:
            execute(plan)
        refused.append(str(error.value))

    execute(plan, Options(progress=second))
    assert refused
    assert tree(out) == {name: expected(DATA, number) for number, name in enumerate(NAMES[:count])}


def test_many_processes_on_one_output_make_one_whole_file(tmp_path: Path) -> None:
    (tmp_path / "in.gguf").write_bytes(b.small_model(layers=20))
    command = [sys.executable, "-m", "gguftool", "merge", "in.gguf", "-o", "out/out.gguf"]
    options = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    runs = [subprocess.Popen(command, **options) for _ in range(6)]  # type: ignore[call-overload]
    said = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert codes.count(0) == 1, said
    assert set(codes) == {0, 2}
    assert tree(tmp_path / "out") == {"out.gguf": (tmp_path / "in.gguf").read_bytes()}


def test_a_part_file_of_a_killed_run_is_removed(source: LocalSource, out: Path) -> None:
    helper_path(out / "a.gguf", "part").write_bytes(b"half of it")
    execute(copy_plan(source, out / "a.gguf"))
    assert tree(out) == {"a.gguf": expected(DATA)}


def test_a_left_over_part_that_is_a_second_name_of_a_published_file_does_no_harm(
    source: LocalSource, out: Path
) -> None:
    """A crash between the two steps of publishing leaves both names on one file."""
    (out / "a.gguf").write_bytes(b"published")
    os.link(out / "a.gguf", helper_path(out / "a.gguf", "part"))
    os.link(out / "a.gguf", out / "b.gguf")
    execute(copy_plan(source, out / "a.gguf"), Options(force=True))
    assert tree(out) == {"a.gguf": expected(DATA), "b.gguf": b"published"}


def test_a_part_name_that_is_a_symlink_is_not_followed(source: LocalSource, tmp_path: Path, out: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    helper_path(out / "a.gguf", "part").symlink_to(victim)
    with pytest.raises(ExecuteError):
        execute(copy_plan(source, out / "a.gguf"))
    assert victim.read_bytes() == b"precious"
