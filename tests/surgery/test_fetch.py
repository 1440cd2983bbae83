"""Fetching a model, some tensors of it, and what a damaged copy lacks: as plans, from a source that counts."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguftool.errors import ExecuteError, PlanError
from gguftool.format.file_names import parse_shard_name
from gguftool.model.grouping import Group, Member
from gguftool.model.model import Model, ModelFile
from gguftool.model.opening import _model_of_group, open_model, read_header
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.storage.execute.streaming import MAX_GAP
from gguftool.storage.sources.local import open_local
from gguftool.surgery.fetch import FetchOptions, plan_fetch, plan_fetch_files
from gguftool.surgery.inputs import Donor
from gguftool.surgery.merge import plan_merge
from gguftool.surgery.repair import Damage, DamageOptions, find_damage, plan_repair
from gguftool.surgery.swap import plan_swap
from tests.support import builders as b
from tests.support.builders import filler
from tests.support.command import run_gguftool
from tests.support.faults import tree
from tests.support.slow_source import SlowSource

PAGE = 4096


@dataclass(eq=False)
class Recorded(SlowSource):
    """A server that says the sha256 of its file, as the Hub does; `said` overrides it."""

    said: str | None = None

    @property
    def sha256(self) -> str:
        return self.said or hashlib.sha256(self.data).hexdigest()


def remote_model(*sources: SlowSource) -> Model:
    return _model_of_group(Group([Member(source=source, shard=parse_shard_name(source.name)) for source in sources]))


def original(source: SlowSource) -> ModelFile:
    return ModelFile(source=source, header=read_header(source), shard=None)


BIG = b.gguf(
    b.llama_kvs(),
    [
        b.Tensor(made.name, made.dims, made.type, filler(made.name, len(made.data)), None)
        for made in (b.tensor(f"blk.{n}.ffn_down.weight", "F16", (64, 700 + n)) for n in range(6))
    ],
)


# --- a model, some tensors ---


def test_one_file_comes_byte_for_byte_and_once(tmp_path: Path) -> None:
    source = Recorded(BIG + b"whatever lies behind")
    plan = plan_fetch(remote_model(source), tmp_path / "out.gguf")
    source.served = 0
    execute(plan)
    assert (tmp_path / "out.gguf").read_bytes() == source.data
    assert source.served == len(source.data)
    preview = plan.preview()
    assert preview.bytes_fetched == len(source.data)
    assert preview.bytes_congruent == preview.bytes_congruent_padded == 0


def test_other_bytes_than_recorded_are_not_published(tmp_path: Path) -> None:
    source = Recorded(BIG, said="0" * 64)
    plan = plan_fetch(remote_model(source), tmp_path / "out.gguf")
    with pytest.raises(ExecuteError, match=f"{hashlib.sha256(BIG).hexdigest()}, but the recorded one is 0000"):
        execute(plan)
    assert not list(tmp_path.iterdir())


def test_a_set_comes_as_one_file_or_as_it_is(tmp_path: Path) -> None:
    tensors = b.llama_tensors()[:4]
    files = b.shard_set("set", [[], tensors[:2], tensors[2:]])
    sources = [Recorded(data, name=f"hf://org/repo/{name}") for name, data in files.items()]
    execute(plan_fetch(remote_model(*sources), tmp_path / "one.gguf"))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    execute(plan_merge([open_model(tmp_path / next(iter(files)))], tmp_path / "merged.gguf"))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()
    (tmp_path / "folder").mkdir()
    execute(plan_fetch_files(remote_model(*sources), tmp_path / "folder"))
    assert tree(tmp_path / "folder") == dict(files)


@pytest.mark.parametrize(
    "name", ["..gguf", "-o.gguf", "a\\b.gguf", "a\x1b[2J.gguf", "a%2F..%2F..%2Fb.gguf", "%2Fetc%2Fb.gguf"]
)
def test_names_of_strangers_are_no_names_here(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be the name of a file here"):
        plan_fetch_files(remote_model(SlowSource(BIG, name=f"https://host.example/{name}")), tmp_path)


def test_some_tensors_are_a_donor_and_no_complete_model(tmp_path: Path) -> None:
    source = Recorded(BIG)
    model = remote_model(source)
    wanted = model.tensors["blk.3.ffn_down.weight"]
    source.served = 0
    plan = plan_fetch(model, tmp_path / "part.gguf", FetchOptions(patterns=("blk.3.ffn_down.weight",)))
    execute(plan)
    assert source.served == wanted.padded_extent.length
    part = open_model(tmp_path / "part.gguf")
    assert list(part.tensors) == ["blk.3.ffn_down.weight"]
    assert part.tensors["blk.3.ffn_down.weight"].extent.read() == wanted.extent.read()
    assert part.get("general.architecture") is not None
    assert not part.is_complete
    (tmp_path / "model.gguf").write_bytes(BIG)
    local = open_model(tmp_path / "model.gguf")
    donor = Donor(name="part", tensors=part.tensors, sources=part.sources, model=part)
    swapped = plan_swap(local, donor, ["blk.3.ffn_down.weight"], tmp_path / "swapped.gguf")
    execute(swapped)
    assert (tmp_path / "swapped.gguf").read_bytes() == BIG
    with pytest.raises(PlanError, match="tensors were found"):
        plan_merge([part], tmp_path / "no.gguf")


def test_two_fetched_halves_merge_into_the_whole(tmp_path: Path) -> None:
    model = remote_model(Recorded(BIG))
    for name, pattern in (("a", r"blk\.[0-2]\."), ("b", r"blk\.[3-5]\.")):
        execute(plan_fetch(model, tmp_path / f"{name}.gguf", FetchOptions(patterns=(pattern,))))
    halves = [open_model(tmp_path / "a.gguf"), open_model(tmp_path / "b.gguf")]
    execute(plan_merge(halves, tmp_path / "whole.gguf"))
    assert (tmp_path / "whole.gguf").read_bytes() == BIG


def test_all_tensors_are_the_whole_model(tmp_path: Path) -> None:
    execute(plan_fetch(remote_model(Recorded(BIG)), tmp_path / "out.gguf", FetchOptions(patterns=("blk",))))
    assert (tmp_path / "out.gguf").read_bytes() == BIG


# --- repair ---


def cut(data: bytearray) -> None:
    del data[-100_000:]


def longer(data: bytearray) -> None:
    data += bytes(1000)


def zeroed(data: bytearray) -> None:
    data[50 * PAGE : 60 * PAGE] = bytes(10 * PAGE)
    data[100 * PAGE : 101 * PAGE] = bytes(PAGE)


def zeroed_off_the_grid(data: bytearray) -> None:
    data[50_001:80_003] = bytes(30_002)


def head_flipped(data: bytearray) -> None:
    data[200] ^= 1


def head_gone(data: bytearray) -> None:
    data[: 2 * PAGE] = bytes(2 * PAGE)


def cut_and_zeroed(data: bytearray) -> None:
    zeroed(data)
    cut(data)


def nothing_left(data: bytearray) -> None:
    data.clear()


# Damage -> the most bytes that its repair may fetch.
KINDS: dict[Callable[[bytearray], None], int] = {
    cut: 100_000 + PAGE,
    longer: 0,
    zeroed: 11 * PAGE,
    zeroed_off_the_grid: 30_002 + 64,
    head_flipped: PAGE,
    head_gone: 2 * PAGE,
    cut_and_zeroed: 100_000 + 11 * PAGE + MAX_GAP,
    nothing_left: len(BIG),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("beside", [False, True])
def test_repair_fetches_what_is_damaged_and_no_more(
    kind: Callable[[bytearray], None], beside: bool, tmp_path: Path
) -> None:
    broken = bytearray(BIG)
    kind(broken)
    path = tmp_path / "local.gguf"
    path.write_bytes(broken)
    source = Recorded(BIG)
    file = original(source)
    local = open_local(path)
    damage = find_damage(local, file)
    plan = plan_repair(local, file, damage, tmp_path / "out.gguf" if beside else None)
    assert plan.preview().bytes_fetched == damage.nbytes <= KINDS[kind]
    source.served = 0
    execute(plan)
    assert source.served == damage.nbytes
    assert (tmp_path / ("out.gguf" if beside else "local.gguf")).read_bytes() == BIG
    assert path.read_bytes() == (broken if beside else BIG)
    assert {entry.name for entry in tmp_path.iterdir()} == ({"local.gguf", "out.gguf"} if beside else {"local.gguf"})


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    broken = bytearray(BIG)
    cut_and_zeroed(broken)
    head_flipped(broken)
    (tmp_path / "local.gguf").write_bytes(broken)
    file = original(Recorded(BIG))
    damage = find_damage(open_local(tmp_path / "local.gguf"), file)
    assert damage.found == (
        f"{min(PAGE, file.header.data_offset):,} bytes of the head differ",
        "45,056 bytes are zeros, in 2 ranges",
        "100,000 bytes are missing at the end",
    )


def test_a_hole_is_found_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "local.gguf"
    with path.open("wb") as file:
        file.write(BIG[: 10 * PAGE])
        file.truncate(len(BIG))
    damage = find_damage(open_local(path), original(Recorded(BIG)))
    assert damage.ranges == ((10 * PAGE, len(BIG)),)


def test_a_sound_file_is_proven_by_the_recorded_hash_and_zeros_in_it_stay(tmp_path: Path) -> None:
    zeros = b.gguf(b.llama_kvs(), [b.Tensor("z.weight", (64, 700), 1, bytes(64 * 700 * 2), None)])
    (tmp_path / "local.gguf").write_bytes(zeros)
    source = Recorded(zeros)
    file = original(source)
    source.served = 0
    damage = find_damage(open_local(tmp_path / "local.gguf"), file)
    assert damage == Damage(ranges=(), found=(), sha256=hashlib.sha256(zeros).hexdigest(), is_proven=True)
    assert source.served == 0


def test_damage_that_leaves_no_trace_is_found_by_hashes_only(tmp_path: Path) -> None:
    broken = bytearray(BIG)
    broken[-50_000] ^= 1
    (tmp_path / "local.gguf").write_bytes(broken)
    local, source = open_local(tmp_path / "local.gguf"), Recorded(BIG)
    file = original(source)
    with pytest.raises(PlanError, match="--check MANIFEST"):
        plan_repair(local, file, find_damage(local, file), None)
    model = remote_model(Recorded(BIG))
    hashes = {name: hashlib.sha256(tensor.extent.read()).hexdigest() for name, tensor in model.tensors.items()}
    damage = find_damage(local, file, DamageOptions(hashes=hashes))
    last = list(model.tensors.values())[-1]
    assert damage.ranges == ((last.extent.offset, last.extent.end),)
    execute(plan_repair(local, file, damage, None))
    assert (tmp_path / "local.gguf").read_bytes() == BIG


def test_where_the_repaired_file_is_not_as_recorded_the_old_one_stays(tmp_path: Path) -> None:
    broken = bytearray(BIG)
    zeroed(broken)
    broken[-50_000] ^= 1
    path = tmp_path / "local.gguf"
    path.write_bytes(broken)
    for shorter in (False, True):
        if shorter:
            os.truncate(path, len(BIG) - 7)
        before = path.read_bytes()
        local, file = open_local(path), original(Recorded(BIG))
        with pytest.raises(ExecuteError, match="the recorded one is"):
            execute(plan_repair(local, file, find_damage(local, file), None))
        assert tree(tmp_path) == {"local.gguf": before}


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = b.gguf(b.llama_kvs(), b.llama_tensors())
    (tmp_path / "local.gguf").write_bytes(other)
    with pytest.raises(PlanError, match=r"only 0 of 6 tensors agree with https://.*another model"):
        find_damage(open_local(tmp_path / "local.gguf"), original(Recorded(BIG)))


def test_damage_all_over_is_fetched_in_few_ranges(tmp_path: Path) -> None:
    broken = bytearray(BIG)
    for page in range(10, 130, 4):
        broken[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    (tmp_path / "local.gguf").write_bytes(broken)
    local, file = open_local(tmp_path / "local.gguf"), original(Recorded(BIG))
    damage = find_damage(local, file, DamageOptions(max_gap=1, max_ranges=5))
    assert 1 <= len(damage.ranges) <= 5
    execute(plan_repair(local, file, damage, None))
    assert (tmp_path / "local.gguf").read_bytes() == BIG


@settings(max_examples=40)
@given(seed=st.integers(0, 10**9), size=st.integers(0, len(BIG)))
def test_any_pages_lost_and_any_cut_are_repaired(
    seed: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("repair")
    rng = random.Random(seed)
    broken = bytearray(BIG[:size])
    for page in range(0, size, PAGE):
        if rng.random() < 0.2:
            broken[page : min(page + PAGE, size)] = bytes(min(PAGE, size - page))
    (folder / "local.gguf").write_bytes(broken)
    local, file = open_local(folder / "local.gguf"), original(Recorded(BIG))
    damage = find_damage(local, file)
    if damage.found:
        execute(plan_repair(local, file, damage, None), Options(sync=False))
    assert (folder / "local.gguf").read_bytes() == BIG


def test_a_set_is_repaired_shard_by_shard(tmp_path: Path) -> None:
    right, broken = tmp_path / "right", tmp_path / "broken"
    for folder in (right, broken):
        folder.mkdir()
        for name, data in b.shard_set("m", ((), b.llama_tensors()[:3], b.llama_tensors()[3:])).items():
            (folder / name).write_bytes(data)
    second, third = (broken / f"m-0000{number}-of-00003.gguf" for number in (2, 3))
    second.write_bytes(second.read_bytes()[:-200])
    third.unlink()
    done = run_gguftool("fetch", "--repair", broken, "--from", right)
    assert done.returncode == 0, done.stderr
    for path in right.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()
