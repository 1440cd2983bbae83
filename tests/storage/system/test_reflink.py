"""Blocks are shared on file systems that can: XFS and btrfs in loop-mounted images."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguftool.errors import ExecuteError
from gguftool.format.kv import ValueType, make_kv
from gguftool.model.layout import OutputOptions
from gguftool.model.opening import open_model
from gguftool.model.padding import Filler
from gguftool.storage.execute.consume_state import find_unfinished
from gguftool.storage.execute.copying import copy_all
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.plan import Consume, Copy, OutputFile, Plan, Request, Step
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.source import Extent
from gguftool.storage.system.reflink import own_bytes
from gguftool.surgery.alter.views import plan_views
from gguftool.surgery.edit.plan import Edits, plan_edit
from gguftool.surgery.inputs import open_donor, open_inputs
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.split import SplitOptions, plan_split
from gguftool.surgery.swap import plan_swap
from tests.support import builders
from tests.support.builders import STR, filler, gguf, llama_kvs, tensor

pytestmark = pytest.mark.slow

MIB = 1 << 20
MAKERS = {"xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q")}
PACKAGES = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}
NAMES = [f"blk.{index}.ffn_up.weight" for index in range(8)]
# btrfs may count as free what it does not give; then the disk is full midway.
NO_ROOM = r"needs [\d,]+ bytes and [\d,]+ are free here|the disk is full"
ROWS = 123_361  # 4 MiB of Q8_0 and a bit, so that nothing lies on a block by chance


@pytest.fixture(scope="module", params=MAKERS)
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a file system with reflinks; unmounted whatever happens."""
    kind = request.param
    maker = MAKERS[kind]
    if shutil.which(maker[0]) is None:
        pytest.skip(f"no {maker[0]}: apt-get install {PACKAGES[kind]}")
    folder = tmp_path_factory.mktemp(kind)
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(600 * MIB)
    subprocess.run([*maker, str(image)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, mount], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop mounts here ({done.stderr.strip()}): run as root, outside of a container")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
        image.unlink()


@pytest.fixture
def folder(mounted: Path) -> Iterator[Path]:
    path = mounted / "here"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def model(folder: Path) -> Path:
    return write_model(folder / "model.gguf")


def write_model(path: Path, *kvs: builders.KV) -> Path:
    tensors = [tensor(name, "Q8_0", (32, ROWS)) for name in NAMES]
    path.write_bytes(gguf(llama_kvs(*kvs, layers=8), tensors))
    return path


def free(folder: Path) -> int:
    """Bytes free once what was written has its blocks and what was deleted has given them back (XFS takes a while)."""
    last, now = -1, 0
    while last != now:
        subprocess.run(["sync", "-f", folder], check=True)
        time.sleep(0.1)
        space = os.statvfs(folder)
        last, now = now, space.f_bfree * space.f_frsize
    return now


def tensors_of(path: Path) -> list[bytes]:
    return [item.extent.read() for item in open_model(path).tensors.values()]


def test_congruent_extents_share_blocks_and_others_are_copied(folder: Path) -> None:
    data = filler("reflink", 16 * MIB)
    (folder / "source").write_bytes(data)
    extent = Extent(source=open_local(folder / "source"), offset=1000, length=16 * MIB - 3000)
    for name, offset, most in (("congruent", 4096 * 5 + 1000, MIB), ("other", 4096 * 5 + 1032, 20 * MIB)):
        before = free(folder)
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        copy_all([Copy(extent=extent, offset=offset)], fd, fresh=True)
        os.close(fd)
        assert (folder / name).read_bytes() == bytes(offset) + data[1000:-2000]
        used = before - free(folder)
        assert 0 <= used < most
        assert (used > 10 * MIB) is (name == "other")


def test_bytes_of_its_own_are_those_that_a_file_shares_with_no_other(folder: Path) -> None:
    pieces, size = 600, 64 << 10  # more extents than are asked for at once, every other one shared
    (folder / "source").write_bytes(filler("reflink", pieces * size))
    source = open_local(folder / "source")
    assert own_bytes(folder / "source") == pieces * size
    fd = os.open(folder / "half", os.O_RDWR | os.O_CREAT)
    shared = [number * size for number in range(0, pieces, 2)]
    copy_all([Copy(extent=Extent(source=source, offset=at, length=size), offset=at) for at in shared], fd, fresh=True)
    copy_all([Copy(extent=Extent(source=source, offset=32, length=size), offset=size)], fd, fresh=True)
    os.close(fd)
    assert size <= own_bytes(folder / "half") < 2 * size  # XFS counts where its extents are noted
    assert own_bytes(folder / "none") == 0


def test_pieces_of_a_tensor_share_blocks_too(folder: Path) -> None:
    """Experts of 2 MiB stay congruent, whichever of them are left and in whatever order."""
    (folder / "model.gguf").write_bytes(
        gguf(llama_kvs(), [tensor("blk.0.ffn_up_exps.weight", "F16", (1024, 1024, 10))])
    )
    model = open_model(folder / "model.gguf")
    experts = model.tensors["blk.0.ffn_up_exps.weight"].take(2, [7, 2, 3, 9, 0])
    before = free(folder)
    options = OutputOptions(filler=Filler(pad=True))
    execute(plan_views(model.kvs, [experts], folder / "out.gguf", options, like=model))
    assert before - free(folder) < MIB
    assert tensors_of(folder / "out.gguf") == [experts.raw()]


def test_edit_with_pad_takes_almost_no_space(model: Path, folder: Path) -> None:
    before = free(folder)
    template = make_kv("tokenizer.chat_template", ValueType.STRING, "x" * 7000)
    plan = plan_edit(open_model(model), Edits(values=(template,)), folder / "out.gguf", Filler(pad=True))
    digests = execute(plan, Options(hash_files=True)).digests
    assert digests is not None
    assert digests.files[0].sha256 == hashlib.sha256((folder / "out.gguf").read_bytes()).hexdigest()
    assert tensors_of(folder / "out.gguf") == tensors_of(model)
    assert 0 <= before - free(folder) < 2 * MIB < plan.preview().bytes_congruent


def test_swap_takes_the_space_of_what_was_swapped(model: Path, folder: Path) -> None:
    donor = write_model(folder / "donor.gguf", builders.KV("general.description", STR, "d" * 500))
    before = free(folder)
    options = OutputOptions(filler=Filler(pad=True))
    execute(plan_swap(open_model(model), open_donor(str(donor)), NAMES[2:3], folder / "out.gguf", options))
    assert tensors_of(folder / "out.gguf") == tensors_of(model)
    assert 0 <= before - free(folder) < 6 * MIB


def test_merge_of_aligned_shards_takes_almost_no_space(model: Path, folder: Path) -> None:
    execute(plan_split(open_model(model), str(folder / "set"), SplitOptions(output=OutputOptions(alignment=4096))))
    shards = open_model(folder / "set-00001-of-00009.gguf")
    before = free(folder)
    execute(plan_merge([shards], folder / "out.gguf"))
    assert tensors_of(folder / "out.gguf") == tensors_of(model)
    assert 0 <= before - free(folder) < 0.05 * model.stat().st_size


def fill_up(folder: Path, room: int) -> None:
    """Leave about `room` bytes to whoever asks now."""
    free(folder)  # settles what was deleted
    space = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - room)


@pytest.fixture
def nearly_full(model: Path, folder: Path) -> Path:
    """A model on a file system with room for a quarter of it."""
    fill_up(folder, model.stat().st_size // 4)
    return model


def test_what_is_shared_needs_no_room(nearly_full: Path, folder: Path) -> None:
    template = make_kv("tokenizer.chat_template", ValueType.STRING, "x" * 7000)
    source, edits = open_model(nearly_full), Edits(values=(template,))
    execute(plan_edit(source, edits, folder / "out.gguf", Filler(pad=True)))
    assert tensors_of(folder / "out.gguf") == tensors_of(nearly_full)
    with pytest.raises(ExecuteError, match=NO_ROOM):
        execute(plan_edit(source, edits, folder / "moved.gguf", Filler()))
    assert sorted(path.name for path in folder.iterdir()) == ["filler", "model.gguf", "out.gguf"]


def test_where_sharing_is_declined_the_room_is_asked_for(nearly_full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = make_kv("tokenizer.chat_template", ValueType.STRING, "x" * 7000)
    plan = plan_edit(
        open_model(nearly_full), Edits(values=(template,)), nearly_full.with_name("out.gguf"), Filler(pad=True)
    )
    monkeypatch.setattr("gguftool.storage.execute.copying.clone_grid", lambda fd: None)
    with pytest.raises(ExecuteError, match=NO_ROOM):
        execute(plan)
    assert not plan.outputs[0].path.exists()


def test_consume_of_what_is_shared_needs_no_room(model: Path, folder: Path) -> None:
    wanted = tensors_of(model)
    execute(
        plan_split(
            open_model(model),
            str(folder / "set"),
            SplitOptions(output=OutputOptions(alignment=4096, max_size=40 * MIB)),
        )
    )
    model.unlink()
    shards = sorted(folder.glob("set-*"))
    fill_up(folder, 4 * MIB)
    request = Request(models=(str(folder / "set-*"),))
    plan = plan_merge(open_inputs([str(shards[0])]), folder / "out.gguf", MergeOptions(consume=request))
    execute(plan)
    assert tensors_of(folder / "out.gguf") == wanted
    assert sorted(path.name for path in folder.iterdir()) == ["filler", "out.gguf"]


class _Stopped(BaseException):
    """What a signal raises."""


def stop_behind(nbytes: int) -> Callable[[int], None]:
    """Return a progress callback that ends the run when so many bytes are done."""
    left = nbytes

    def progress(done: int) -> None:
        nonlocal left
        left -= done
        if left < 0:
            raise _Stopped

    return progress


def test_what_an_interrupted_run_copied_is_not_asked_room_for_where_the_rest_is_shared(folder: Path) -> None:
    (folder / "source").write_bytes(data := filler("reflink", 96 * MIB))
    source = open_local(folder / "source")
    moved = Extent(source=source, offset=32, length=48 * MIB)
    kept = Extent(source=source, offset=48 * MIB, length=48 * MIB)
    copies = (Copy(extent=moved, offset=0), Copy(extent=kept, offset=48 * MIB))
    output = OutputFile(path=folder / "out", head=b"", copies=copies, size=96 * MIB)
    plan = Plan(outputs=(output,), inputs=(source,))
    fill_up(folder, 64 * MIB)
    with pytest.raises(_Stopped):
        execute(plan, Options(checkpoint=4 * MIB, progress=stop_behind(40 * MIB)))
    said: list[str] = []
    execute(plan, Options(checkpoint=4 * MIB, note=said.append))
    assert "resumed after" in said[0]
    assert (folder / "out").read_bytes() == data[32 : 48 * MIB + 32] + data[48 * MIB :]


def test_consume_goes_on_where_the_copy_that_was_interrupted_is_all_there_was_room_for(folder: Path) -> None:
    """One source is gone, the next one half copied and still there, and the last one shares its blocks."""
    sizes, shifts = (4 * MIB, 24 * MIB, 48 * MIB), (32, 32, 0)
    copies: list[Copy] = []
    wanted = b""
    for number, (size, shift) in enumerate(zip(sizes, shifts, strict=True)):
        path = folder / f"in-{number}"
        path.write_bytes(data := filler(path.name, size + shift))
        extent = Extent(source=open_local(path), offset=shift, length=size)
        copies.append(Copy(extent=extent, offset=len(wanted)))
        wanted += data[shift:]
    sources = tuple(copy.extent.source for copy in copies)
    request = Request(models=(str(folder / "in-*"),))
    out = folder / "out"
    consume = Consume(anchor=out, steps=tuple(Step(source=one, frees=True) for one in sources), request=request)
    output = OutputFile(path=out, head=b"", copies=tuple(copies), size=len(wanted))
    fill_up(folder, 34 * MIB)
    with pytest.raises(_Stopped):
        execute(
            Plan(outputs=(output,), inputs=sources, consume=consume), Options(progress=stop_behind(22 * MIB), jobs=1)
        )
    assert sorted(path.name for path in folder.glob("in-*")) == ["in-1", "in-2"]
    subprocess.run(["sync", "-f", folder], check=True)
    unfinished = find_unfinished(out, request, check=lambda plan: None)
    assert unfinished is not None
    execute(unfinished)
    assert out.read_bytes() == wanted
    assert not list(folder.glob("in-*"))


def test_a_change_in_place_of_a_file_that_shares_blocks_needs_new_ones(folder: Path) -> None:
    (folder / "old").write_bytes(filler("reflink", 24 * MIB))
    (folder / "donor").write_bytes(filler("donor", 24 * MIB))
    subprocess.run(["cp", "--reflink=always", "old", "copy"], cwd=folder, check=True)
    base, donor = open_local(folder / "copy"), open_local(folder / "donor")
    fill_up(folder, 30 * MIB)
    free(folder)  # settles what btrfs counts
    for shift, fits in ((32, False), (0, True)):
        extent = Extent(source=donor, offset=shift, length=20 * MIB)
        output = OutputFile(
            path=folder / "copy", head=b"", copies=(Copy(extent=extent, offset=0),), size=base.size, base=base
        )
        plan = Plan(outputs=(output,), inputs=(base, donor))
        if fits:
            execute(plan)
            assert (folder / "copy").read_bytes()[: 20 * MIB] == (folder / "donor").read_bytes()[: 20 * MIB]
        else:
            with pytest.raises(ExecuteError, match=r"needs [\d,]+ bytes for its journal and for new blocks"):
                execute(plan)
            assert (folder / "copy").read_bytes() == (folder / "old").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["copy", "donor", "filler", "old"]
