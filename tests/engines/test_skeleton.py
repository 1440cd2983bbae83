"""Skeletons: heads with holes, and the places that take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.engines import skeleton
from gguftool.engines.skeleton import SkeletonFile, scratch_folder, write_skeleton
from gguftool.errors import ExecuteError
from gguftool.format.file_names import ShardName
from gguftool.storage.system.reflink import file_system_of

SHM = Path("/dev/shm")


@pytest.fixture
def in_memory() -> str:
    if not SHM.is_dir() or file_system_of(SHM.stat().st_dev) != "tmpfs":
        pytest.skip("no tmpfs here; run: mount -t tmpfs none /dev/shm")
    return str(SHM)


def test_a_skeleton_is_the_head_and_a_hole(tmp_path: Path) -> None:
    head, size = b"GGUF" + bytes(range(256)) * 100, 300 << 30
    path = write_skeleton(tmp_path, [SkeletonFile(head=head, size=size)])
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 < len(head) + 100_000
    with open(path, "rb") as file:
        assert file.read(len(head) + 3) == head + bytes(3)


def test_a_set_keeps_its_numbers_and_starts_at_its_first_shard(tmp_path: Path) -> None:
    shards = [ShardName(prefix="/else/where", number=number, count=3) for number in (1, 3)]
    path = write_skeleton(tmp_path, [SkeletonFile(head=b"x", size=100, shard=shard) for shard in shards])
    assert path.name == "model-00001-of-00003.gguf"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "model-00003-of-00003.gguf"]


def test_a_folder_in_memory_is_passed_over(tmp_path: Path, in_memory: str) -> None:
    with scratch_folder([in_memory, str(tmp_path)]) as folder:
        assert folder.parent == tmp_path
        write_skeleton(folder, [SkeletonFile(head=b"x", size=1000)])
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_it_is_refused_with_all_reasons(tmp_path: Path, in_memory: str) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ExecuteError) as caught, scratch_folder([in_memory, str(missing)]):
        pass
    text = str(caught.value)
    assert f"{in_memory}: tmpfs, where holes that an engine touches take memory" in text
    assert f"{missing}: No such file or directory" in text
    assert "set TMPDIR" in text


def test_a_file_system_without_holes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(path: Path, head: bytes, size: int) -> None:
        written.append(size)
        path.write_bytes(head.ljust(size, b"\0"))

    monkeypatch.setattr(skeleton, "write_sparse", full)
    with pytest.raises(ExecuteError, match="does not keep holes"), scratch_folder([str(tmp_path)]):
        pass
    assert sum(written) <= 8 << 20  # found out before the model is written
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_caller_is_not_taken_for_the_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder([str(tmp_path)]):
        raise FileNotFoundError
    assert list(tmp_path.iterdir()) == []
