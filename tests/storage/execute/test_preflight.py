"""Where an output may go, and sources that change while they are read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gguftool.errors import ExecuteError, SourceError
from gguftool.model.opening import open_model
from gguftool.storage.execute import preflight
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.part import create_part
from gguftool.storage.plan import OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.surgery.merge import plan_merge
from tests.support import builders as b
from tests.support.command import environment, one_error_line, run_gguftool

MODEL = b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), b.llama_tensors())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    return path


def links(source: Path) -> dict[str, Path]:
    folder = source.parent
    (folder / "sub").mkdir()
    (folder / "hard.gguf").hardlink_to(source)
    (folder / "soft.gguf").symlink_to(source)
    (folder / "folder").symlink_to(folder)
    return {
        "same": source,
        "dots": folder / "sub" / ".." / "m.gguf",
        "hard link": folder / "hard.gguf",
        "symbolic link": folder / "soft.gguf",
        "linked folder": folder / "folder" / "m.gguf",
    }


def two_outputs(*paths: Path) -> Plan:
    return Plan(outputs=tuple(OutputFile(path=path, head=b"x", copies=(), size=1) for path in paths), inputs=())


@pytest.mark.parametrize("way", ["same", "dots", "linked folder"])
def test_two_outputs_of_one_plan_are_not_one_file(way: str, source: Path) -> None:
    target = links(source)[way]
    source.unlink()
    with pytest.raises(ExecuteError, match="is named for two outputs; give each file a name of its own"):
        execute(two_outputs(source, target), Options(force=True))
    assert not source.exists()


def test_names_in_one_folder_differ_in_more_than_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "IGNORES_CASE", True)
    preflight.check_targets(two_outputs(tmp_path / "a" / "x", tmp_path / "b" / "X"), force=False)
    with pytest.raises(ExecuteError, match=r"X: its name differs from that of \S+x only in case"):
        execute(two_outputs(tmp_path / "c" / "x", tmp_path / "c" / "X"), Options())


@pytest.mark.parametrize("way", ["same", "dots", "hard link", "symbolic link", "linked folder"])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_an_input_is_never_the_output(way: str, force: tuple[str, ...], source: Path) -> None:
    target = links(source)[way]
    done = run_gguftool("edit", source, "--set", "general.name=str:N", "-o", target, *force)
    assert done.returncode == 2
    assert "input" in one_error_line(done.stderr) or "symbolic link" in one_error_line(done.stderr)
    assert source.read_bytes() == MODEL


def test_a_planned_shard_that_is_the_input_is_refused(tmp_path: Path) -> None:
    name = tmp_path / b.shard_name("s", 2, 7)
    (tmp_path / "m.gguf").write_bytes(MODEL)
    name.hardlink_to(tmp_path / "m.gguf")
    done = run_gguftool("split", tmp_path / "m.gguf", tmp_path / "s", "--force")
    assert done.returncode == 2
    assert "is an input" in one_error_line(done.stderr)
    assert name.read_bytes() == MODEL


def make_odd(kind: str, path: Path, victim: Path) -> None:
    if kind == "symbolic link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.parent / "nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "folder", "pipe"])
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_nothing_is_written_through_what_is_no_file(
    kind: str, force: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    make_odd(kind, tmp_path / "out.gguf", victim)
    done = run_gguftool("merge", source, "-o", tmp_path / "out.gguf", *force)
    assert done.returncode == 2
    assert "symbolic link" in one_error_line(done.stderr) or "regular file" in one_error_line(done.stderr)
    assert victim.read_bytes() == b"dear"
    assert not (tmp_path / "nowhere").exists()


def test_devices_are_refused(source: Path) -> None:
    done = run_gguftool("merge", source, "-o", "/dev/full", "--force")
    assert done.returncode == 2
    assert "not a regular file" in one_error_line(done.stderr)


def test_a_helper_name_that_is_taken_by_a_link_is_not_followed(source: Path, tmp_path: Path) -> None:
    from gguftool.storage.sources.sidecars import helper_path

    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    for suffix in ("part", "set", "resume"):
        place = helper_path(tmp_path / "out.gguf", suffix)
        place.symlink_to(victim)
        done = run_gguftool("merge", source, "-o", tmp_path / "out.gguf")
        assert victim.read_bytes() == b"dear", suffix
        if done.returncode:
            one_error_line(done.stderr)
        (tmp_path / "out.gguf").unlink(missing_ok=True)
        place.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["x" * 255, "new\nline.gguf", "-dash.gguf", "$(echo).gguf", "\udcff\udcfe.gguf", " .gguf"]
)
@pytest.mark.parametrize(
    "encoding",
    [
        {"PYTHONIOENCODING": "utf-8"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["utf-8", "ascii", "LC_ALL=C", "C and no UTF-8 mode"],
)
def test_odd_names_work(name: str, encoding: dict[str, str], source: Path, tmp_path: Path) -> None:
    target = tmp_path / "o" / name
    command = [sys.executable, "-m", "gguftool", "merge", str(source), "-o", str(target)]
    environ = {**environment(), **encoding}
    done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == MODEL
    assert os.listdir(tmp_path / "o") == [name]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="drops to another user, which needs root")
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_without_permission_is_an_error_before_anything_is_read(mode: int, source: Path) -> None:
    folder = source.parent / "o"
    folder.mkdir(mode=mode)
    os.chmod(source.parent, 0o755)
    os.chmod(source, 0o644)
    code = (
        "import os, sys\nfrom gguftool.errors import GGUFToolError\nfrom gguftool.model.opening import open_model\n"
        "from gguftool.storage.execute.executor import execute\nfrom gguftool.surgery.merge import plan_merge\n"
        "from pathlib import Path\nimport gguftool.storage.execute.preflight, gguftool.storage.execute.resume\n"
        "model = open_model('m.gguf')\nplan = plan_merge([model], Path('o/out.gguf'))\nos.setuid(65534)\n"
        "try:\n    execute(plan)\nexcept GGUFToolError as error:\n    sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, check=False, timeout=60, cwd=source.parent)
    assert done.returncode == 1
    assert b"permission" in done.stderr.lower()
    assert b"Traceback" not in done.stderr
    assert os.listdir(folder) == []


# --- sources that change ---------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xaa" * 8)


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes())
    os.replace(new, path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [truncate, grow, rewrite, replace, remove], ids=lambda change: change.__name__)
@pytest.mark.parametrize("when", ["before it is read", "meanwhile", "after it is read"])
def test_a_source_that_changes_while_it_is_read_gives_no_output(
    change: Callable[[Path], None], when: str, tmp_path: Path
) -> None:
    shards = b.shard_set("s", [[], b.llama_tensors()[:3], b.llama_tensors()[3:]])
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    time.sleep(0.01)  # so that the clock of the file system has moved on
    victim = tmp_path / sorted(shards)[1]
    plan = plan_merge([open_model(victim)], tmp_path / "out.gguf")
    total = plan.preview().bytes_copied
    done = 0
    changed: list[int] = []

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if not changed and done >= {"before it is read": 0, "meanwhile": 1, "after it is read": total}[when]:
            changed.append(done)
            change(victim)

    with pytest.raises(SourceError, match=victim.name):
        execute(plan, Options(progress=progress))
    assert len(changed) == 1
    assert sorted(os.listdir(tmp_path)) == sorted({*shards} - ({victim.name} if change is remove else set()))


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    tensors = [b.tensor(f"blk.{n}.ffn_up.weight", "F32", (65536,)) for n in range(8)]
    new = b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), tensors)
    (tmp_path / "m.gguf").write_bytes(new)
    out = tmp_path / "out.gguf"
    out.write_bytes(MODEL)
    command = [sys.executable, "-m", "gguftool", "merge", str(tmp_path / "m.gguf"), "-o", str(out), "--force"]
    seen = set()
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            seen.add(out.read_bytes() == MODEL)
            assert out.read_bytes() in (MODEL, new)
        assert run.returncode == 0
    assert True in seen
    assert out.read_bytes() == new


# --- room, and what the refusals say ---------------------------------------------------------------------------------


def plan_for(*paths: Path, size: int = 100, **options: Any) -> Plan:
    outputs = tuple(OutputFile(path=path, head=b"", copies=(), size=size, **options) for path in paths)
    return Plan(outputs=outputs, inputs=())


@pytest.mark.parametrize(("count", "more"), [(1, ""), (2, " (and 1 more)"), (3, " (and 2 more)")])
def test_outputs_that_exist_are_counted(tmp_path: Path, count: int, more: str) -> None:
    paths = [tmp_path / f"{number}" for number in range(count)]
    for path in paths:
        path.touch()
    with pytest.raises(ExecuteError) as caught:
        preflight.check_targets(plan_for(*paths, tmp_path / "new"), force=False)
    assert str(caught.value) == f"{paths[0]}: exists already{more}; --force replaces it"
    preflight.check_targets(plan_for(*paths), force=True)


@pytest.mark.parametrize("ignores_case", [False, True])
def test_names_that_differ_in_case_alone_are_refused_where_the_system_ignores_case(
    ignores_case: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "IGNORES_CASE", ignores_case)
    paths = [tmp_path / "fine.gguf", tmp_path / "Model.gguf", tmp_path / "model.GGUF"]
    preflight.check_targets(plan_for(paths[1], tmp_path / "sub" / "Model.gguf"), force=False)  # another folder
    if not ignores_case:
        preflight.check_targets(plan_for(*paths), force=False)
        return
    with pytest.raises(ExecuteError) as caught:
        preflight.check_targets(plan_for(*paths), force=True)
    assert str(caught.value).startswith(f"{paths[2]}: its name differs from that of {paths[1]} only in case")


def test_names_of_devices_are_refused_where_the_system_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tmp_path / "aux.gguf", tmp_path / "fine.gguf")
    monkeypatch.setattr(preflight, "NAMES_HAVE_RULES", False)
    preflight.check_targets(plan, force=False)
    monkeypatch.setattr(preflight, "NAMES_HAVE_RULES", True)
    with pytest.raises(ExecuteError) as caught:
        preflight.check_targets(plan, force=False)
    assert str(caught.value) == f"{tmp_path / 'aux.gguf'}: 'AUX' is the name of a device on Windows"


@pytest.mark.parametrize("role", ["base", "replaces"])
def test_another_file_in_the_place_of_the_one_to_change_is_refused(tmp_path: Path, role: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    plan = plan_for(path, **{role: open_local(path)})
    preflight.check_targets(plan, force=False)
    path.rename(tmp_path / "b")
    path.write_bytes(b"x" * 100)
    with pytest.raises(ExecuteError, match="is a symbolic link or another file now"):
        preflight.check_targets(plan, force=True)


def test_a_file_with_two_names_is_not_changed_in_place_but_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    (tmp_path / "b").hardlink_to(path)
    with pytest.raises(ExecuteError, match=r"has 2 names \(hard links\)"):
        preflight.check_targets(plan_for(path, base=open_local(path)), force=True)
    preflight.check_targets(plan_for(path, replaces=open_local(path)), force=False)


def test_outputs_must_fit_together_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(tmp_path / "a", tmp_path / "b", size=1000)
    free: list[int | None] = [2000]
    monkeypatch.setattr(preflight, "free_bytes", lambda folder: free[0])
    preflight.check_space(plan)
    free[0] = None
    preflight.check_space(plan)
    free[0] = 1999
    with pytest.raises(ExecuteError) as caught:
        preflight.check_space(plan)
    assert str(caught.value).startswith(f"{tmp_path}: needs 2,000 bytes and 1,999 are free here")
    monkeypatch.setattr(preflight, "_left_over_bytes", lambda path: 1 if path.name == "a" else 0)
    preflight.check_space(plan)
    free[0] = 1900
    with pytest.raises(ExecuteError, match="needs 1,999 bytes and 1,900"):
        preflight.check_space(plan)
    monkeypatch.setattr(preflight, "shared_bytes", lambda copies, folder: 98)
    with pytest.raises(ExecuteError, match="needs 1,901 bytes and 1,900"):
        preflight.check_space(plan)
    monkeypatch.setattr(preflight, "shared_bytes", lambda copies, folder: 99)
    preflight.check_space(plan)


def test_a_change_in_place_needs_room_twice_only_where_blocks_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    output = OutputFile(path=path, head=b"h" * 100, copies=(), size=1000, base=open_local(path))
    free: list[int | None] = [199]
    shared = [0]
    monkeypatch.setattr(preflight, "free_bytes", lambda folder: free[0])
    monkeypatch.setattr(preflight, "shared_bytes", lambda copies, folder: shared[0])
    monkeypatch.setattr(preflight, "overwrites", lambda path: False)
    with pytest.raises(ExecuteError, match=r"needs 200 bytes for its journal .* 199 are free") as caught:
        preflight.check_change(output)
    assert caught.value.source == str(path)
    for some in (1, 2):
        shared[0] = some
        preflight.check_change(output)
    shared[0] = 0
    for room in (200, None):
        free[0] = room
        preflight.check_change(output)
    free[0] = 0
    monkeypatch.setattr(preflight, "overwrites", lambda path: True)
    preflight.check_change(output)


def test_free_space_is_what_users_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(f_bavail=7, f_frsize=512, f_bfree=99, f_bsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: answer)
    assert preflight.free_bytes(tmp_path) == 7 * 512

    def fails(number: int) -> Callable[[Path], None]:
        def statvfs(folder: Path) -> None:
            raise OSError(number, os.strerror(number))

        return statvfs

    monkeypatch.setattr(os, "statvfs", fails(errno.ENOSYS))
    assert preflight.free_bytes(tmp_path) is None
    monkeypatch.setattr(os, "statvfs", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        preflight.free_bytes(tmp_path)


def test_a_left_over_part_counts_unless_it_has_its_final_name(tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert preflight._left_over_bytes(target) == 0
    part = create_part(target, 1 << 16)
    os.pwrite(part.fd, b"x" * (1 << 16), 0)
    os.fsync(part.fd)
    part.close()
    assert preflight._left_over_bytes(target) == 1 << 16
    os.link(part.path, target)
    assert preflight._left_over_bytes(target) == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; make room and run it again"),
        (errno.EDQUOT, "your disk quota is used up"),
        (errno.EFBIG, "the file is larger than this file system"),
        (errno.EROFS, "the file system is mounted read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
        (None, "odd"),
    ],
)
def test_what_the_system_says_is_explained(tmp_path: Path, number: int | None, words: str) -> None:
    plan = plan_for(tmp_path / "sub" / "a")
    for name in (None, "/some/file"):
        with pytest.raises(ExecuteError) as caught, preflight.translate_os_errors(plan):
            raise OSError("odd") if number is None else OSError(number, os.strerror(number), name)
        where = str(tmp_path / "sub") if name is None or number is None else name
        assert str(caught.value).startswith(f"{where}: cannot write: {words}")
        assert str(caught.value).endswith("; no output was made or changed")


@pytest.mark.parametrize("sync", [True, False])
def test_made_folders_are_durable_only_with_sync(tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(preflight, "sync_folders", synced.extend)
    with preflight.folders(plan_for(tmp_path / "x" / "y" / "a", tmp_path / "x" / "z" / "b"), sync=sync):
        pass
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"y", "z"}
    assert synced == ([tmp_path, tmp_path / "x", tmp_path / "x"] if sync else [])


def test_a_failed_run_leaves_folders_that_are_in_use(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    plan = plan_for(tmp_path / "x" / "y" / "a", tmp_path / "old" / "b")

    def fail_in_folders() -> None:
        with preflight.folders(plan, sync=False):
            (tmp_path / "x" / "kept").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_folders()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "old", "x"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with (
        pytest.raises(ExecuteError, match="cannot make this folder") as caught,
        preflight.folders(plan_for(tmp_path / "x" / "y" / "a"), sync=False),
    ):
        pass
    assert caught.value.source == str(tmp_path / "x" / "y")
