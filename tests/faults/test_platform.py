"""Faults that take a place, a limit or a lie of their own; docs/testing.md lists where the others are tested."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import gguftool
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.system import fileio
from gguftool.surgery.merge import plan_merge
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.mounts import mounted, needs_root
from tests.support.writer_cases import CASES, listing, run, set_up

GIB = 1 << 30
MODEL = b.gguf(b.llama_kvs(b.KV("general.quantization_version", b.U32, 2)), b.llama_tensors())
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(MODEL)
    return path


def sparse_model(path: Path, size: int) -> Path:
    """A model whose first tensor is a hole of `size` bytes, and whose second has bytes."""
    last = replace(b.tensor("last.weight", "F32", (100,)), offset=size)
    row = 1 << 20
    head = b.head(b.llama_kvs(), (b.Tensor("hole.weight", (row, size // row // 4), 0), last))
    start = b.round_up(len(head), 32)
    with path.open("wb") as file:
        file.write(head)
        file.seek(start + size)
        file.write(last.data)
        file.truncate(start + size + b.round_up(len(last.data), 32))
    return path


# --- places ----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.skipif(shutil.which("mkfs.vfat") is None, reason="no mkfs.vfat: apt-get install dosfstools")
def test_a_file_too_large_for_fat_is_an_error_with_a_hint(tmp_path: Path) -> None:
    model, image = sparse_model(tmp_path / "big.gguf", 4 * GIB), tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(6 * GIB)
    subprocess.run(["mkfs.vfat", "-F", "32", str(image)], check=True, capture_output=True)
    with mounted(tmp_path / "fat", "-t", "vfat", "-o", "loop", str(image)) as fat:
        done = run_gguftool("merge", model, "-o", fat / "x.gguf")
        assert done.returncode == 2
        assert "FAT32: under 4 GiB" in one_error_line(done.stderr)
        assert os.listdir(fat) == []


@needs_strace
@pytest.mark.parametrize(
    ("inject", "said"),
    [
        ("ftruncate:error=EFBIG:when=1", "FAT32: under 4 GiB"),
        ("pwrite64:error=EDQUOT:when=2+", "quota is used up"),
        ("ftruncate:error=EDQUOT:when=1", "quota is used up"),
        ("ftruncate:error=EROFS:when=1", "mounted read-only"),
    ],
)
def test_the_answers_of_the_system_come_with_the_way_out(inject: str, said: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    strace = ("strace", "-f", "-qq", "-o", str(tmp_path / "log"), "-e", f"trace={inject.partition(':')[0]}")
    done = run_gguftool("merge", source, "-o", tmp_path / "o/x.gguf", prefix=(*strace, "-e", f"inject={inject}"))
    assert "INJECTED" in (tmp_path / "log").read_text(errors="replace")
    assert done.returncode == 2
    assert said in one_error_line(done.stderr)
    assert os.listdir(tmp_path / "o") == []


@needs_root
@pytest.mark.parametrize("command", ["merge", "edit --in-place"])
def test_a_file_system_that_is_mounted_read_only(command: str, source: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "-t", "tmpfs", "-o", "size=1m", "none") as folder:
        shutil.copy(source, folder / "in.gguf")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        arguments = {
            "merge": ["merge", source, "-o", folder / "x.gguf"],
            "edit --in-place": ["edit", folder / "in.gguf", "--set", "general.name=str:Tony", "--in-place"],
        }[command]
        done = run_gguftool(*arguments)
        assert done.returncode == 2
        assert "read-only" in one_error_line(done.stderr)
        assert os.listdir(folder) == ["in.gguf"]


@needs_root
def test_an_input_by_the_way_of_a_bind_mount_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in/m.gguf"
    source.write_bytes(MODEL)
    with mounted(tmp_path / "again", "--bind", str(tmp_path / "in")) as again:
        done = run_gguftool("edit", source, "--set", "general.name=str:N", "-o", again / "m.gguf", "--force")
        assert done.returncode == 2
        assert "is an input" in one_error_line(done.stderr)
    assert source.read_bytes() == MODEL


@needs_root
@pytest.mark.skipif(shutil.which("chattr") is None, reason="no chattr: apt-get install e2fsprogs")
def test_an_immutable_file_is_not_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    if subprocess.run(["chattr", "+i", str(out)], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files: run on ext4, XFS or btrfs, with CAP_LINUX_IMMUTABLE")
    try:
        done = run_gguftool("merge", source, "-o", out, "--force")
    finally:
        subprocess.run(["chattr", "-i", str(out)], check=True)
    assert done.returncode == 2
    one_error_line(done.stderr)
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "out.gguf"]


def test_text_of_a_file_is_no_part_of_a_path(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "o").mkdir(parents=True)
    names = ["../../escaped", "/tmp/gguftool-escaped", "..", ".", "a/b", "x" * 300, "nul\0"]
    kvs = [b.KV("general.architecture", b.STR, "../arch"), b.KV("general.name", b.STR, "../../name")]
    (jail / "m.gguf").write_bytes(b.gguf(kvs, [b.tensor(name, "F32", (8,)) for name in names]))
    done = run_gguftool("split", jail / "m.gguf", jail / "o/s")
    assert done.returncode == 0, done.stderr
    count = len(names) + 1
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["jail/m.gguf", *(f"jail/o/s-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))]
    assert not Path("/tmp/gguftool-escaped").exists()


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2 * GIB, 4 * GIB, 40 * GIB])
def test_sizes_over_2_to_the_31_and_32_are_exact_and_holes_stay_holes(size: int, tmp_path: Path) -> None:
    model = sparse_model(tmp_path / "m.gguf", size)
    if model.stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files: run on ext4, XFS, btrfs or tmpfs")
    memory = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * GIB, 2 * GIB))}
    done = run_gguftool("edit", model, "--set", "general.name=str:" + "N" * 99, "-o", tmp_path / "x.gguf", **memory)
    assert done.returncode == 0, done.stderr
    made = gguftool.open_model(tmp_path / "x.gguf")
    assert made.tensors["hole.weight"].nbytes == size
    assert made.tensors["last.weight"].extent.read() == b.tensor("last.weight", "F32", (100,)).data
    assert made.tensors["hole.weight"].extent.source.read_at(size // 2, 4096) == bytes(4096)
    assert (tmp_path / "x.gguf").stat().st_blocks * 512 < 64 << 20


def test_a_storm_of_signals_that_interrupt_calls_changes_nothing(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "split, checkpoints")
    set_up(case, tmp_path / "calm")
    run(case, tmp_path / "calm")
    beats: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: beats.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(20):
            set_up(case, tmp_path / "storm")
            run(case, tmp_path / "storm", hash_files=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(beats) > 20
    assert listing(tmp_path / "storm") == listing(tmp_path / "calm")


def test_syncfs_is_made_again_where_a_signal_interrupts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((errno.EINTR, errno.EINTR, 0, errno.EIO))
    said = [0]

    def syncfs(_fd: int) -> int:
        said[0] = next(answers)
        return -1 if said[0] else 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: SimpleNamespace(syncfs=syncfs))
    monkeypatch.setattr(ctypes, "get_errno", lambda: said[0])
    fileio.syncfs(0)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fileio.syncfs(0)


# --- a disk that lies ------------------------------------------------------------------------------------------------


@needs_strace
def test_a_write_that_only_pretends_is_seen_by_its_hashes(source: Path, tmp_path: Path) -> None:
    """Size and sources are verified always; the bytes by --hash, against a manifest of the inputs."""
    manifest = tmp_path / "m.sums"
    manifest.write_bytes(run_gguftool("hash", source).stdout)
    out = tmp_path / "x.gguf"
    lie = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:retval=256:when=2")
    strace = ("strace", "-f", "-qq", "-o", str(tmp_path / "log"), *lie)
    done = run_gguftool("merge", source, "-o", out, "--hash", prefix=strace)
    assert "INJECTED" in (tmp_path / "log").read_text(errors="replace")
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size == len(MODEL)
    assert out.read_bytes() != MODEL
    assert (
        done.stdout.decode().split()[0]
        == hashlib.sha256(out.read_bytes()).hexdigest()
        != hashlib.sha256(MODEL).hexdigest()
    )
    assert run_gguftool("hash", out, "--check", manifest).returncode == 1


# --- other systems ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_on_macos_files_are_made_durable_by_f_fullfsync(
    answer: int | None, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F_FULLFSYNC is 51 in the <fcntl.h> of macOS; where a file system has none, fsync has to do."""
    asked, plain = [], []

    def fcntl(fd: int, command: int) -> int:
        asked.append(os.fstat(fd).st_ino)
        assert command == 51
        if answer is not None:
            raise OSError(answer, os.strerror(answer))
        return 0

    real = os.fsync
    monkeypatch.setattr(fileio, "_FULL_SYNC", 51)
    monkeypatch.setattr(fileio, "fcntl", SimpleNamespace(fcntl=fcntl), raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: (plain.append(os.fstat(fd).st_ino), real(fd))[1])
    execute(plan_merge([gguftool.open_model(source)], tmp_path / "x.gguf"))
    file, folder = (tmp_path / "x.gguf").stat().st_ino, tmp_path.stat().st_ino
    assert asked[0] == file
    assert folder in asked
    assert plain == ([] if answer is None else asked)


def test_on_macos_an_error_of_f_fullfsync_is_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fcntl(_fd: int, _command: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fileio, "_FULL_SYNC", 51)
    monkeypatch.setattr(fileio, "fcntl", SimpleNamespace(fcntl=fcntl), raising=False)
    with pytest.raises(gguftool.ExecuteError, match="Input/output error"):
        execute(plan_merge([gguftool.open_model(source)], tmp_path / "x.gguf"))
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_does_not_count_its_space_is_written_to(
    number: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    calls: list[Callable[..., object]] = []
    monkeypatch.setattr(os, "statvfs", lambda *args: (calls.append(unknown), unknown(*args)))
    monkeypatch.setattr(os, "fstatvfs", unknown)
    execute(plan_merge([gguftool.open_model(source)], tmp_path / "x.gguf"), Options())
    assert calls
    assert (tmp_path / "x.gguf").read_bytes() == MODEL
