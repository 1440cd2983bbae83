"""Attacks by helper files: another user plants them where a writer looks, in folders that both can write.

The attacker and the victim are two real users without privileges, so these tests need root.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Copy, OutputFile, Plan
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.sidecars import helper_path
from gguftool.storage.sources.source import Extent
from tests.support import builders as b
from tests.support.command import one_error_line, run_gguftool
from tests.support.run_recorder import CHECKPOINT, Told
from tests.support.users import ATTACKER, VICTIM, as_user, needs_two_users, running_as, shared_folder

pytestmark = needs_two_users

MODEL = b.small_model()
SHARDS = b.shard_set("set", [[], [b.tensor("a.weight", "F32", (64,))], [b.tensor("b.weight", "F32", (64,))]])
FIRST = b.shard_name("set", 1, 3)


@pytest.fixture(params=[0o1777, 0o777], ids=["sticky", "open"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that both users can write, with a model of the victim's."""
    with shared_folder(request.param) as made:
        give(made / "m.gguf", MODEL)
        yield made


def give(path: Path, data: bytes, user: int = VICTIM, mode: int = 0o644) -> Path:
    """Write a file that belongs to `user`."""
    path.write_bytes(data)
    os.chown(path, user, user)
    path.chmod(mode)
    return path


def plant(path: Path, data: bytes = b"", mode: int = 0o666) -> Path:
    return give(path, data, ATTACKER, mode)


def victim_runs(*arguments: object, umask: int = 0o022) -> subprocess.CompletedProcess[bytes]:
    return run_gguftool(*arguments, timeout=30, prefix=running_as(VICTIM), umask=umask)


def assert_refused(done: subprocess.CompletedProcess[bytes], planted: Path, owner: int = ATTACKER) -> str:
    assert done.returncode == 2, (done.stdout, done.stderr)
    said = one_error_line(done.stderr)
    assert planted.name in said
    assert f"user {owner}" in said
    return said


# --- a stranger's bytes never become ours ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_a_planted_part_does_not_become_the_output(mode: int, folder: Path) -> None:
    planted = plant(helper_path(folder / "out.gguf", "part"), bytes(len(MODEL)), mode)
    assert_refused(victim_runs("merge", folder / "m.gguf", "-o", folder / "out.gguf"), planted)
    assert not (folder / "out.gguf").exists()
    assert planted.stat().st_uid == ATTACKER


def test_a_planted_part_is_refused_with_force_and_the_old_file_stays(folder: Path) -> None:
    give(folder / "out.gguf", b"old and good")
    planted = plant(helper_path(folder / "out.gguf", "part"), bytes(len(MODEL)))
    for more in (["--force"], ["--force", "--no-resume"]):
        assert_refused(victim_runs("merge", folder / "m.gguf", "-o", folder / "out.gguf", *more), planted)
    assert (folder / "out.gguf").read_bytes() == b"old and good"


def undo_journal(target: Path, ranges: list[list[int]], old: bytes) -> bytes:
    text = json.dumps({"target": target.name, "size": target.stat().st_size, "ranges": ranges}).encode()
    return b"gguftool undo 1\n" + struct.pack("<Q", len(text)) + text + old


@pytest.mark.parametrize(
    "command",
    [
        ("edit", "--recover"),
        ("edit", "--in-place", "--set", "general.name=str:N"),
        ("dump",),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_planted_undo_journal_changes_no_byte_and_is_not_overlooked(command: tuple[str, ...], folder: Path) -> None:
    model = folder / "m.gguf"
    planted = plant(helper_path(model, "undo"), undo_journal(model, [[100, 8]], b"PWNEDPWN"))
    assert_refused(victim_runs(command[0], model, *command[1:]), planted)
    assert model.read_bytes() == MODEL


def plant_set(folder: Path, data: bytes | None = None) -> Path:
    """The victim's set of three shards, and a journal that says to replace the second by the attacker's part."""
    for name, shard in SHARDS.items():
        give(folder / name, shard)
    second = folder / b.shard_name("set", 2, 3)
    evil = bytes(len(SHARDS[second.name]))
    plant(helper_path(second, "part"), evil, 0o644)
    fields = {"version": "gguftool set 1", "fingerprint": "", "replace": True, "names": [[second.name, len(evil)]]}
    return plant(helper_path(folder / FIRST, "set"), json.dumps(fields).encode() + b"\n" if data is None else data)


def test_a_planted_set_journal_installs_no_shard(folder: Path) -> None:
    planted = plant_set(folder)
    assert_refused(victim_runs("edit", folder / FIRST, "--recover"), planted)
    for name, data in SHARDS.items():
        assert (folder / name).read_bytes() == data


@pytest.mark.parametrize("content", [None, b"", b"torn"])
def test_a_reader_does_not_go_on_beside_a_planted_set_journal(content: bytes | None, folder: Path) -> None:
    planted = plant_set(folder, content)
    for name in SHARDS:
        assert_refused(victim_runs("dump", folder / name), planted)


def test_a_planted_part_is_not_installed_by_our_own_set_journal(folder: Path) -> None:
    journal = plant_set(folder)
    os.chown(journal, VICTIM, VICTIM)
    journal.chmod(0o600)
    second = folder / b.shard_name("set", 2, 3)
    assert_refused(victim_runs("edit", folder / FIRST, "--recover"), helper_path(second, "part"))
    assert second.read_bytes() == SHARDS[second.name]
    assert journal.exists()


def consume_journal(folder: Path) -> bytes:
    """A journal that is right in itself, claims that all is copied, and would write zeros."""
    status = (folder / "m.gguf").stat()
    stamp = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    content = {
        "models": [str(folder / "m.gguf")],
        "options": [],
        "sources": [[str(folder / "m.gguf"), stamp, True]],
        "outputs": [["out.gguf", 4096, 0]],
        "marks": [None],
        "sequence": [],
        "copies": [[]],
    }
    text = json.dumps(content).encode()
    data = b"gguftool consume 1\n" + struct.pack("<Q", len(text)) + text
    return data + sha256(data).digest() + b"\n" + b"copied 0 " + sha256(b"").hexdigest().encode() + b"\n"


def test_a_planted_consume_journal_removes_no_input(folder: Path) -> None:
    planted = plant(helper_path(folder / "out.gguf", "consume"), consume_journal(folder))
    for more in ([], ["--force"], ["--no-resume"]):
        done = victim_runs("merge", folder / "m.gguf", "-o", folder / "out.gguf", "--consume", "--yes", *more)
        assert_refused(done, planted)
    assert (folder / "m.gguf").read_bytes() == MODEL
    assert not (folder / "out.gguf").exists()


def interrupted(folder: Path) -> Plan:
    """Leave the part file and journal of an interrupted run, as root; the caller decides whose they become."""
    (folder / "big").write_bytes(bytes(range(1, 201)) * 10)
    source = open_local(folder / "big")
    copies = tuple(Copy(extent=Extent(source=source, offset=at, length=100), offset=at) for at in range(0, 2000, 100))
    plan = Plan(outputs=(OutputFile(path=folder / "out", head=b"", copies=copies, size=2000),), inputs=(source,))
    journal = helper_path(folder / "out", "resume")

    def interrupt(_nbytes: int) -> None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, Options(checkpoint=CHECKPOINT, progress=interrupt))
    return plan


@pytest.mark.parametrize("suffix", ["part", "resume"])
def test_a_run_does_not_resume_from_files_that_another_user_owns(suffix: str, folder: Path) -> None:
    plan = interrupted(folder)
    for name in ("part", "resume"):
        path = helper_path(folder / "out", name)
        owner = ATTACKER if name == suffix else VICTIM
        os.chown(path, owner, owner)
    told = Told()
    problem = as_user(VICTIM, lambda: execute(plan, told.options()))
    assert helper_path(folder / "out", suffix).name in problem
    assert f"user {ATTACKER}" in problem
    assert not (folder / "out").exists()


# --- nothing hangs, nothing is followed ------------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has at most 108 bytes
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to(path.parent / "m.gguf"),
    "dangling": lambda path: path.symlink_to(path.parent / "absent"),
    "hard link": lambda path: os.link(path.parent / "m.gguf", path),
    "socket": make_socket,
}
WRITERS = {
    "part": ("merge", "m.gguf", "-o", "out.gguf"),
    "resume": ("merge", "m.gguf", "-o", "out.gguf"),
    "consume": ("merge", "m.gguf", "-o", "out.gguf", "--consume", "--yes"),
    "only-copy": ("merge", "m.gguf", "-o", "out.gguf"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [*WRITERS, "undo", "set"])
def test_whatever_has_the_name_of_a_helper_is_one_clear_error(suffix: str, kind: str) -> None:
    with shared_folder(0o777) as folder:
        give(folder / "m.gguf", MODEL)
        target = "out.gguf" if suffix in WRITERS else "m.gguf"
        planted = helper_path(folder / target, suffix)
        KINDS[kind](planted)
        os.chown(planted, VICTIM, VICTIM, follow_symlinks=False)
        commands = [WRITERS[suffix]] if suffix in WRITERS else [("dump", "m.gguf"), ("edit", "m.gguf", "--recover")]
        for command in commands:
            done = victim_runs(*(folder / word if word.endswith(".gguf") else word for word in command))
            assert_refused(done, planted, VICTIM)
        assert (folder / "m.gguf").read_bytes() == MODEL
        assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize("suffix", ["part", "resume"])
def test_a_helper_of_ours_that_others_can_write_is_refused_in_a_shared_folder(suffix: str, folder: Path) -> None:
    planted = give(helper_path(folder / "out.gguf", suffix), b"x", VICTIM, 0o664)
    said = assert_refused(victim_runs("merge", folder / "m.gguf", "-o", folder / "out.gguf"), planted, VICTIM)
    assert "0664" in said


def test_an_old_file_planted_by_another_user_does_not_cost_the_old_output(folder: Path) -> None:
    give(folder / "out.gguf", b"old and good")
    planted = plant(helper_path(folder / "out.gguf", "old"), b"not the old one")
    done = victim_runs("merge", folder / "m.gguf", "-o", folder / "out.gguf", "--force")
    if done.returncode:
        assert_refused(done, planted)
        assert (folder / "out.gguf").read_bytes() == b"old and good"
    else:
        assert (folder / "out.gguf").read_bytes() == MODEL
    assert bool(done.returncode) == bool(folder.stat().st_mode & 0o1000)


# --- the way out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["part", "resume", "undo", "consume"])
def test_the_command_in_the_error_works_as_it_stands(kind: str) -> None:
    with shared_folder(0o777) as made:
        folder = made / "it's a folder"
        folder.mkdir()
        folder.chmod(0o777)
        give(folder / "m.gguf", MODEL)
        target = "m.gguf" if kind == "undo" else "out.gguf"
        planted = plant(helper_path(folder / target, kind), b"x")
        command = (
            "merge",
            folder / "m.gguf",
            "-o",
            folder / "out.gguf",
            *(["--consume", "--yes"] * (kind == "consume")),
        )
        said = assert_refused(victim_runs(*command), planted)
        way_out = said.rpartition("if nobody needs it: ")[2]
        assert shlex.split(way_out)[0] in ("rm", "mv")
        subprocess.run([*running_as(VICTIM), "sh", "-c", way_out], check=True)
        done = victim_runs(*command)
        assert done.returncode == 0, done.stderr
        assert (folder / "out.gguf").read_bytes() == MODEL


# --- what is ours stays usable ---------------------------------------------------------------------------------------


def test_new_helpers_can_be_opened_by_nobody_else(folder: Path) -> None:
    plan = interrupted(folder)
    for suffix in ("part", "resume"):
        assert helper_path(plan.outputs[0].path, suffix).stat().st_mode & 0o777 == 0o600


def test_what_version_0_1_left_in_a_folder_of_our_own_is_resumed() -> None:
    with shared_folder(0o755) as folder:
        os.chown(folder, VICTIM, VICTIM)
        plan = interrupted(folder)
        for suffix in ("part", "resume"):
            path = helper_path(folder / "out", suffix)
            os.chown(path, VICTIM, VICTIM)
            path.chmod(0o664)
        notes = folder / "notes"
        give(notes, b"")
        problem = as_user(
            VICTIM,
            lambda: execute(plan, Options(checkpoint=CHECKPOINT, note=lambda text: notes.write_text(text) and None)),
        )
        assert problem == ""
        assert "resumed after" in notes.read_text()
        assert (folder / "out").read_bytes() == (folder / "big").read_bytes()
