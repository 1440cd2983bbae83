"""The mode of what gets its final name: that of plain creation in its folder, or of the file that it replaces."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.publishing.sets import finish_set
from gguftool.storage.sources.sidecars import helper_path, set_journal_path
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.syscalls import count_calls, killed_at
from tests.support.writer_cases import CASES, options_of, run, set_up, visible

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX systems: run on Linux or macOS")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m.gguf").write_bytes(b.small_model())
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o000, 0o027])
@pytest.mark.parametrize("sync", [(), ("--no-sync",)])
def test_outputs_have_the_mode_that_the_umask_gives(umask: int, sync: tuple[str, ...], model: Path) -> None:
    folder = model.parent
    assert run_gguftool("merge", model, "-o", folder / "out.gguf", *sync, umask=umask).returncode == 0
    assert run_gguftool("split", model, folder / "s", *sync, umask=umask).returncode == 0
    made = [folder / "out.gguf", *folder.glob("s-*.gguf")]
    assert len(made) > 2
    assert {mode(path) for path in made} == {0o666 & ~umask}
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


def test_with_force_a_file_keeps_the_mode_of_the_one_that_it_replaces(model: Path) -> None:
    out = model.parent / "out.gguf"
    for wanted in (0o600, 0o640, 0o664, 0o444):
        out.write_bytes(b"old")
        out.chmod(wanted)
        assert run_gguftool("merge", model, "-o", out, "--force").returncode == 0
        assert mode(out) == wanted
        out.unlink()


def test_shards_keep_the_modes_of_those_that_they_replace(model: Path) -> None:
    folder = model.parent
    assert run_gguftool("split", model, folder / "s").returncode == 0
    shards = sorted(folder.glob("s-*.gguf"))
    for number, path in enumerate(shards):
        path.chmod(0o600 | number % 8 << 3)
    before = [mode(path) for path in shards]
    shards[-1].unlink()
    assert run_gguftool("split", model, folder / "s", "--force").returncode == 0
    assert [mode(path) for path in shards] == [*before[:-1], 0o644]
    assert run_gguftool("edit", shards[1], "--set", "general.name=str:N" + "n" * 99, "--in-place").returncode == 0
    assert mode(shards[0]) == before[0]


def test_a_merge_that_removes_its_inputs_gives_the_plain_mode(model: Path) -> None:
    folder = model.parent
    done = run_gguftool("merge", model, "-o", folder / "out.gguf", "--consume", "--yes", umask=0o002)
    assert done.returncode == 0, done.stderr
    assert mode(folder / "out.gguf") == 0o664


@pytest.mark.parametrize("name", ["edit --in-place", "swap --in-place"])
def test_an_undo_journal_is_private_as_it_has_the_bytes_of_a_file_that_may_be(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    folder = tmp_path / "run"
    set_up(case, folder)
    calls = count_calls(lambda: run(case, folder))
    seen = set()
    for at in range(len(calls)):
        set_up(case, folder)
        plan = case.plan(folder)
        killed_at(at, lambda plan=plan: execute(plan, options_of(case)))  # type: ignore[misc]
        seen |= {mode(path) for path in folder.glob(".gguftool-*.undo")}
    assert seen == {0o600}


@pytest.mark.slow
def test_a_set_that_recovery_finishes_has_the_same_modes(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "split")
    folder = tmp_path / "run"
    set_up(case, folder)
    plan = case.plan(folder)
    calls = count_calls(lambda: execute(plan, options_of(case)))
    finished = 0
    for at in range(len(calls)):
        set_up(case, folder)
        plan = case.plan(folder)
        assert killed_at(at, lambda plan=plan: execute(plan, options_of(case)))  # type: ignore[misc]
        if set_journal_path(plan.first_shard_path).exists() and finish_set(plan.first_shard_path):
            finished += 1
            assert {mode(output.path) for output in plan.outputs} == {0o644}, at
            assert visible(dict.fromkeys(os.listdir(folder), b"")) == dict.fromkeys(os.listdir(folder), b"")
    assert finished > 10


def default_acl(folder: Path, user: int) -> None:
    """Let `user` read and write every new file in `folder`, as setfacl -d -m u:USER:rw does."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 6, user), (4, 4, nobody), (0x10, 6, nobody), (0x20, 0, nobody)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_default", value)
    except (AttributeError, OSError) as error:
        pytest.skip(f"no access lists here ({error}): run with --basetemp on ext4, XFS or tmpfs")


def test_a_default_access_list_holds_for_outputs_and_not_for_helpers(model: Path) -> None:
    folder = model.parent / "shared"
    folder.mkdir()
    default_acl(folder, 1234)
    (folder / "plain").touch(mode=0o666)
    wanted = os.getxattr(folder / "plain", "system.posix_acl_access")
    assert run_gguftool("merge", model, "-o", folder / "out.gguf").returncode == 0
    assert run_gguftool("split", model, folder / "s").returncode == 0
    for path in (folder / "out.gguf", *folder.glob("s-*.gguf")):
        assert os.getxattr(path, "system.posix_acl_access") == wanted
        assert mode(path) == mode(folder / "plain")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="giving files away takes root: run as root")
def test_a_replaced_file_of_another_user_gives_no_mode(model: Path) -> None:
    out = model.parent / "out.gguf"
    out.write_bytes(b"old")
    out.chmod(0o666)
    os.chown(out, 65534, 65534)
    assert run_gguftool("merge", model, "-o", out, "--force").returncode == 0
    assert mode(out) == 0o644
    assert out.stat().st_uid == 0


def test_a_probe_that_a_kill_left_is_no_obstacle(model: Path) -> None:
    out = model.parent / "out.gguf"
    helper_path(out, "mode").write_bytes(b"")
    assert run_gguftool("merge", model, "-o", out).returncode == 0
    assert sorted(os.listdir(model.parent)) == ["m.gguf", "out.gguf"]
