"""Faults that only a real system gives: a full disk, limits, the order of system calls, a pulled plug, two runs."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gguftool.storage.sources.sidecars import helper_path
from tests.support import builders as b
from tests.support.command import environment, one_error_line, run_gguftool
from tests.support.mounts import mounted, needs_root
from tests.support.strace import events, needs_strace, traced

pytestmark = pytest.mark.slow

MIB = 1 << 20


def model(folder: Path, n_tensors: int = 6, floats: int = 1024) -> Path:
    """A model of `n_tensors` tensors of 4 * `floats` bytes."""
    path = folder / "m.gguf"
    tensors = [b.tensor(f"blk.{n}.ffn_up.weight", "F32", (floats,)) for n in range(n_tensors)]
    path.write_bytes(b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), tensors))
    return path


def helpers(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(".gguftool-"))


# --- the order of system calls ---------------------------------------------------------------------------------------


@needs_strace
@pytest.mark.parametrize("force", [False, True], ids=["new", "--force"])
@pytest.mark.parametrize("command", ["merge", "split", "export"])
def test_data_then_fsync_then_name_then_fsync_of_the_folder(command: str, force: bool, tmp_path: Path) -> None:
    source = model(tmp_path)
    out = tmp_path / "o"
    out.mkdir()
    arguments, names = {
        "merge": (["merge", source, "-o", out / "x.gguf"], ["x.gguf"]),
        "split": (["split", source, out / "s", "--max-tensors", 3], [b.shard_name("s", n, 3) for n in (1, 2, 3)]),
        "export": (["export", source, "--tensor", ".", "-o", out / "x.safetensors"], ["x.safetensors"]),
    }[command]
    if force:
        arguments.append("--force")
        for name in names:
            (out / name).write_bytes(b"old")
    done = traced(arguments, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    seen = events(tmp_path / "log", out)
    published = {}
    for name in names:
        part = helper_path(out / name, "part").name
        wrote = max(at for at, event in enumerate(seen) if event in (("pwrite64", part), ("copy_file_range", part)))
        synced = seen.index(("fsync", part), wrote)
        named = next(
            at for at, (call, about) in enumerate(seen) if call in ("link", "linkat", "rename") and about == name
        )
        assert wrote < synced < named, seen
        assert ("fsync", ".") in seen[named:], seen
        published[name] = named
    assert max(published, key=lambda name: published[name]) == names[0], "shard 1 gets its name last"
    all_durable = max(at for at, (call, about) in enumerate(seen) if call == "fsync" and about.endswith(".part"))
    assert all_durable < min(published.values()), "all data is durable before the first name"
    if command == "split":
        journal = helper_path(out / names[0], "set").name
        synced = seen.index(("fsync", journal))
        first_rename = next(at for at, (call, _) in enumerate(seen) if call in ("link", "rename"))
        assert synced < seen.index(("fsync", "."), synced) < first_rename, "the set journal is durable before any name"


@needs_strace
def test_in_place_the_journal_is_durable_before_the_first_byte_changes(tmp_path: Path) -> None:
    out = tmp_path / "o"
    out.mkdir()
    source = model(out)
    done = traced(["edit", source, "--set", "general.name=str:Tony", "--in-place"], tmp_path / "log")
    assert done.returncode == 0, done.stderr
    seen = events(tmp_path / "log", out)
    undo = helper_path(source, "undo").name
    part = helper_path(out / undo, "part").name
    journal_named = seen.index(("link", undo))
    changed = seen.index(("pwrite64", "m.gguf"))
    assert seen.index(("fsync", part)) < journal_named < seen.index(("fsync", "."), journal_named) < changed
    assert changed < seen.index(("fsync", "m.gguf"), changed) < seen.index(("unlink", undo))
    assert seen.index(("fsync", "."), seen.index(("unlink", undo)))


@needs_strace
@pytest.mark.parametrize(
    "inject",
    [
        "pwrite64:error=ENOSPC:when=1+",
        "pwrite64:error=EDQUOT:when=1",
        "pwrite64:error=EFBIG:when=2",
        "pwrite64:error=EIO:when=2",
        "pwrite64:error=EINTR:when=1",
        "copy_file_range,preadv,preadv2:error=EIO:when=1+",
        "copy_file_range,pwrite64:error=ENOSPC:when=2+",
        "copy_file_range,preadv,preadv2:error=EINTR:when=1",
        "copy_file_range,preadv,preadv2:retval=0:when=1",
        "fsync:error=EIO:when=1",
        "fsync:error=EIO:when=4",
        "fsync:error=EINTR:when=1",
        "link,linkat:error=EIO:when=2",
        "link,linkat:error=EPERM:when=1+",
        "ftruncate:error=ENOSPC:when=1",
        "flock:error=ENOLCK:when=1+",
        "flock:error=EINTR:when=1",
        "pwrite64,copy_file_range:signal=KILL:when=2",
        "link,linkat:signal=KILL:when=2",
        "link,linkat:signal=INT:when=1",
        "link,linkat:signal=TERM:when=3",
        "pwrite64:signal=INT:when=1",
        "pwrite64:signal=TERM:when=2",
    ],
)
def test_a_kernel_that_fails_leaves_all_or_nothing(inject: str, tmp_path: Path) -> None:
    source = model(tmp_path)
    before = source.read_bytes()
    arguments = ["split", source, tmp_path / "s", "--max-tensors", 3]
    (tmp_path / "clean").mkdir()
    assert run_gguftool("split", source, tmp_path / "clean/s", "--max-tensors", 3).returncode == 0
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "clean").iterdir()}
    log = tmp_path / "log"
    done = traced(arguments, log, inject)
    assert "INJECTED" in log.read_text(errors="replace") or "signal" in inject
    assert source.read_bytes() == before
    shards = {path.name: path.read_bytes() for path in tmp_path.glob("s-*.gguf")}
    if done.returncode == 0:
        assert shards == wanted
        return
    if "KILL" not in inject:
        assert shards == {}
        assert helpers(tmp_path) == []
        if "signal" not in inject:
            one_error_line(done.stderr)
    assert b.shard_name("s", 1, 3) not in shards
    again = run_gguftool(*arguments)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("s-*.gguf")} == wanted
    assert helpers(tmp_path) == []


# --- limits ----------------------------------------------------------------------------------------------------------


def limited(number: int, value: int) -> dict[str, object]:
    return {"preexec_fn": lambda: resource.setrlimit(number, (value, value))}


def test_a_file_size_limit_is_a_clean_error(tmp_path: Path) -> None:
    source = model(tmp_path)
    done = run_gguftool("merge", source, "-o", tmp_path / "out.gguf", **limited(resource.RLIMIT_FSIZE, 8192))
    assert done.returncode == 2
    assert "ulimit -f" in one_error_line(done.stderr)
    assert sorted(os.listdir(tmp_path)) == ["m.gguf"]


def test_five_hundred_shards_with_32_descriptors(tmp_path: Path) -> None:
    source = model(tmp_path, n_tensors=499, floats=64)
    few = limited(resource.RLIMIT_NOFILE, 32)
    for arguments in (
        ("split", source, tmp_path / "s"),
        ("hash", tmp_path / "s-00001-of-00500.gguf"),
        ("edit", tmp_path / "s-00001-of-00500.gguf", "--set", "general.name=str:N", "-o", tmp_path / "e"),
        ("edit", tmp_path / "s-00001-of-00500.gguf", "--set", "general.name=str:Tiny", "-o", tmp_path / "f"),
        ("merge", tmp_path / "f-00001-of-00500.gguf", "-o", tmp_path / "out.gguf"),
    ):
        done = run_gguftool(*arguments, **few)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()


@needs_root
@pytest.mark.parametrize("room", [64 << 10, 200 << 10, 400 << 10])
def test_a_disk_that_fills_up_midway_is_left_with_its_space(room: int, tmp_path: Path) -> None:
    source = model(tmp_path, n_tensors=64, floats=2048)
    with mounted(tmp_path / "full", "-t", "tmpfs", "-o", f"size={room}", "none") as full:
        free = os.statvfs(full).f_bavail
        done = run_gguftool("merge", source, "-o", full / "out.gguf")
        assert done.returncode == 2
        assert "make room" in one_error_line(done.stderr)
        assert os.listdir(full) == []
        assert os.statvfs(full).f_bavail == free
        # Past the check beforehand: the space goes while the run is on its way.
        done = run_gguftool_that_believes_in_space("merge", source, "-o", full / "out.gguf")
        assert done.returncode == 2
        assert "the disk is full" in one_error_line(done.stderr)
        assert os.listdir(full) == []
        assert os.statvfs(full).f_bavail == free


def run_gguftool_that_believes_in_space(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    code = (
        "import sys\nfrom gguftool.storage.execute import executor\nexecutor.check_space = lambda *a: None\n"
        "from gguftool.cli.main import main\nsys.argv[0] = 'gguftool'\nmain()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env=environment(), timeout=60)


# --- a pulled plug ---------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4: apt-get install e2fsprogs")
@pytest.mark.parametrize("command", ["merge", "merge --force", "split", "swap --in-place", "edit --in-place"])
def test_after_exit_0_the_plug_may_be_pulled(command: str, tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    with open(disk, "wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    with mounted(tmp_path / "mnt", "-o", "loop", str(disk)) as live:
        source = model(live)
        donor = tmp_path / "donor.gguf"
        donor.write_bytes(source.read_bytes().replace(b.filler("blk.3.ffn_up.weight", 4096), b"\x11" * 4096))
        (live / "old.gguf").write_bytes(b"old")
        os.sync()
        arguments: dict[str, list[object]] = {
            "merge": ["merge", source, "-o", live / "new/deep/x.gguf"],
            "merge --force": ["merge", source, "-o", live / "old.gguf", "--force"],
            "split": ["split", source, live / "new/s"],
            "swap --in-place": ["swap", source, "--from", donor, "--tensor", "blk.3", "--in-place"],
            "edit --in-place": ["edit", source, "--set", "general.name=str:Tony", "--in-place"],
        }
        done = run_gguftool(*arguments[command])
        shutil.copyfile(disk, copy)  # what the disk holds at this moment, without the caches
        assert done.returncode == 0, done.stderr
        wanted = tree(live)
    with mounted(tmp_path / "after", "-o", "loop", str(copy)) as after:
        assert tree(after) == wanted


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- other processes -------------------------------------------------------------------------------------------------


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gguftool", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["new", "--force"])
def test_of_runs_on_one_output_each_is_whole_or_refused(force: tuple[str, ...], tmp_path: Path) -> None:
    source = model(tmp_path, n_tensors=32, floats=16384)
    runs = [start("merge", source, "-o", tmp_path / "out.gguf", *force) for _ in range(20)]
    codes = []
    for run in runs:
        _, said = run.communicate(timeout=180)  # twenty at once on few cores
        codes.append(run.returncode)
        if run.returncode:
            assert re.search("another gguftool|exists already", one_error_line(said))
    assert codes.count(0) >= 1
    assert force or codes.count(0) == 1
    assert (tmp_path / "out.gguf").read_bytes() == source.read_bytes()
    assert helpers(tmp_path) == []


def test_killed_at_random_moments_the_next_run_makes_it_whole(tmp_path: Path) -> None:
    source = model(tmp_path, n_tensors=40, floats=65536)
    dice = random.Random(20)
    begun = time.monotonic()
    assert run_gguftool("split", source, tmp_path / "s").returncode == 0
    took = time.monotonic() - begun
    wanted = {path.name: path.read_bytes() for path in tmp_path.glob("s-*")}
    for _ in range(12):
        for path in tmp_path.glob("s-*"):
            path.unlink()
        with start("split", source, tmp_path / "s") as run:
            time.sleep(dice.uniform(0.3, 1.0) * took)
            run.send_signal(signal.SIGKILL)
            run.communicate(timeout=60)
        shards = {path.name: path.read_bytes() for path in tmp_path.glob("s-*")}
        assert shards == wanted or b.shard_name("s", 1, 41) not in shards
        if shards != wanted:
            again = run_gguftool("split", source, tmp_path / "s")
            assert again.returncode == 0, again.stderr
        assert {path.name: path.read_bytes() for path in tmp_path.glob("s-*")} == wanted
