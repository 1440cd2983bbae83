"""Part files: which file is the one that was written, and what may be taken over, removed or published."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.record import replace
from gguftool.storage.execute import part as part_module
from gguftool.storage.execute.part import (
    create_part,
    publish,
    refuse_busy,
    refuse_only_copies,
    remove_left_over,
    take_over,
)
from gguftool.storage.sources.sidecars import consume_path, helper_path, only_copy_path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_part_has_its_size_at_once_unless_it_is_to_stay_empty(target: Path) -> None:
    part = create_part(target, 10)
    assert (part.path.read_bytes(), part.path, part.target) == (bytes(10), helper_path(target, "part"), target)
    part.close()
    part = create_part(target, 10, is_sized=False)
    assert part.path.read_bytes() == b""
    assert part.size == 10
    part.close()


def test_a_live_run_holds_its_part(target: Path) -> None:
    part = create_part(target, 10)
    for act in (refuse_busy, remove_left_over, lambda path: take_over(path, 10), lambda path: create_part(path, 10)):
        with pytest.raises(ExecuteError, match="another gguftool is writing") as caught:
            act(target)
        assert caught.value.source == str(target)
    part.close()
    refuse_busy(target)
    assert part.path.exists()
    remove_left_over(target)
    assert not part.path.exists()
    remove_left_over(target)
    refuse_busy(target)
    assert take_over(target, 10) is None


def test_an_open_part_is_known_by_its_inode_and_size(target: Path) -> None:
    part = create_part(target, 10)
    assert part.is_at(part.path)
    assert not part.is_at(target)
    assert not part.is_published()
    part.require()
    os.ftruncate(part.fd, 9)
    assert not part.is_at(part.path)
    with pytest.raises(ExecuteError, match="is not the file that was written here"):
        part.require()
    part.require_place()
    os.ftruncate(part.fd, 10)
    part.path.rename(target)
    assert part.is_published()
    for check in (part.require, part.require_place):
        with pytest.raises(
            ExecuteError, match=f"the file that was written is now {target}; no output was made"
        ) as caught:
            check()
        assert caught.value.source == str(part.path)
    part.path.write_bytes(bytes(10))
    for check in (part.require, part.require_place):
        with pytest.raises(ExecuteError, match="removed or replaced"):
            check()
    part.remove_quietly()
    assert part.path.exists()
    part.close()


def test_a_closed_part_is_known_by_its_time_too(target: Path) -> None:
    part = create_part(target, 10).closed()
    assert part.fd == -1
    assert part.is_at(part.path)
    status = os.stat(part.path)
    os.utime(part.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not part.is_at(part.path)
    part.remove_quietly()
    assert part.path.exists()
    os.utime(part.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    part.remove_quietly()
    assert not part.path.exists()
    part.remove_quietly()


def test_an_open_part_of_any_descriptor_is_known_whatever_its_time(target: Path) -> None:
    part = create_part(target, 10)
    status = os.stat(part.path)
    assert replace(part, fd=0, mtime=5).is_file(status)
    assert not replace(part, fd=-1, mtime=5).is_file(status)
    assert replace(part, fd=-1, mtime=None).is_file(status)
    part.close()


def test_on_served_file_systems_times_do_not_count(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "is_served", lambda fd: True)
    part = create_part(target, 10).closed()
    os.utime(part.path, ns=(1, 1))
    assert part.is_at(part.path)


def test_a_closed_part_is_found_beside_an_open_one_in_a_folder_that_moved(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    first, other = create_part(folder / "a", 10), create_part(folder / "b", 10).closed()
    folder.rename(tmp_path / "moved")
    with pytest.raises(ExecuteError, match=f"is now {tmp_path / 'moved' / other.path.name}"):
        other.require(first)
    with pytest.raises(ExecuteError) as caught:
        other.require()
    assert "the file that was written is now" not in str(caught.value)
    os.truncate(tmp_path / "moved" / other.path.name, 3)
    with pytest.raises(ExecuteError) as caught:
        other.require(first)
    assert "the file that was written is now" not in str(caught.value)
    with pytest.raises(ExecuteError) as caught:
        other.require(first.closed())
    assert "the file that was written is now" not in str(caught.value)


def test_publishing_never_replaces_and_takes_back_what_is_not_its_own(target: Path) -> None:
    part = create_part(target, 10)
    with pytest.raises(ExecuteError, match="removed or replaced"):
        publish(part.path, target, lambda path: False)
    answers = [True, False]
    with pytest.raises(ExecuteError, match="removed or replaced"):
        publish(part.path, target, lambda path: answers.pop(0))
    assert (target.exists(), part.path.exists()) == (False, True)
    target.write_bytes(b"old")
    with pytest.raises(ExecuteError, match="exists already; --force replaces it") as caught:
        publish(part.path, target, part.is_at)
    assert caught.value.source == str(target)
    assert target.read_bytes() == b"old"
    target.unlink()
    publish(part.path, target, part.is_at)
    assert (target.read_bytes(), part.path.exists()) == (bytes(10), False)
    part.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL])
def test_without_hard_links_it_is_renamed(target: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(old: Path, new: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    part = create_part(target, 10)
    answers = [True, False]
    with pytest.raises(ExecuteError, match="removed or replaced"):
        publish(part.path, target, lambda path: answers.pop(0))
    assert (target.exists(), part.path.exists()) == (False, True)
    target.write_bytes(b"old")
    with pytest.raises(ExecuteError, match="exists already"):
        publish(part.path, target, part.is_at)
    assert target.read_bytes() == b"old"
    target.unlink()
    publish(part.path, target, part.is_at)
    assert (target.read_bytes(), part.path.exists()) == (bytes(10), False)
    part.close()


def test_other_errors_of_a_link_are_errors(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(old: Path, new: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    part = create_part(target, 10)
    with pytest.raises(OSError, match="Input/output"):
        publish(part.path, target, part.is_at)
    assert not target.exists()
    part.close()


def test_a_part_that_lost_its_name_while_it_was_locked_is_another_runs(target: Path) -> None:
    path = helper_path(target, "part")
    path.write_bytes(b"")
    path.chmod(0o600)
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    with pytest.raises(ExecuteError, match="another gguftool"):
        part_module._lock_part(fd, path, target, 0)
    path.write_bytes(b"")
    with pytest.raises(ExecuteError, match="another gguftool"):
        part_module._lock_part(fd, path, target, 0)
    os.close(fd)


def test_a_failure_while_a_part_gets_its_size_leaves_nothing(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ftruncate(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    with pytest.raises(OSError, match="full"):
        create_part(target, 10)
    assert not helper_path(target, "part").exists()


@pytest.mark.parametrize("path_of", [consume_path, only_copy_path])
def test_what_may_be_the_only_copy_is_not_written_over(tmp_path: Path, path_of: object) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]
    refuse_only_copies(targets)
    path = path_of(targets[1])  # type: ignore[operator]
    path.write_bytes(b"")
    path.chmod(0o600)
    with pytest.raises(ExecuteError, match=f"a merge --consume is unfinished here: {path.name}") as caught:
        refuse_only_copies(targets)
    assert caught.value.source == str(targets[1])
    refuse_only_copies(targets[:1])
