"""Merge: the tensors of a set in one file again, byte for byte."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguftool.errors import PlanError
from gguftool.format.header import parse
from gguftool.model.layout import ForceSizes, OutputOptions
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.execute.options import Options
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support import builders as b
from tests.support import strategies as own
from tests.support.paths import FIXTURES

split_options = st.builds(
    SplitOptions,
    max_tensors=st.integers(1, 4),
    output=st.builds(OutputOptions, max_size=st.none() | st.integers(0, 4000)),
    bundle_small=st.sampled_from([0, 50, 300, 10**6]),
    tensor_first=st.booleans(),
)


def taken_apart_and_together(data: bytes, folder: Path, options: SplitOptions) -> bytes:
    (folder / "in.gguf").write_bytes(data)
    split = plan_split(open_model(folder / "in.gguf"), str(folder / "shards" / "m"), options)
    execute(split, Options(sync=False))
    merged = plan_merge([open_model(split.outputs[-1].path)], folder / "out.gguf")
    execute(merged, Options(sync=False))
    return (folder / "out.gguf").read_bytes()


@settings(max_examples=150)
@given(data=own.model_files(), options=split_options)
def test_merge_inverts_split(tmp_path_factory: pytest.TempPathFactory, data: bytes, options: SplitOptions) -> None:
    assert taken_apart_and_together(data, tmp_path_factory.mktemp("round"), options) == data


@pytest.mark.parametrize(
    "options", [SplitOptions(), SplitOptions(output=OutputOptions(max_size=1500), bundle_small=200, tensor_first=True)]
)
@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*.gguf") if "-of-" not in path.name))
def test_every_fixture_comes_back_byte_for_byte(tmp_path: Path, name: str, options: SplitOptions) -> None:
    data = (FIXTURES / name).read_bytes()
    assert taken_apart_and_together(data, tmp_path, options) == data


def test_no_trace_of_the_split_is_left(tmp_path: Path) -> None:
    plan = plan_merge([open_model(FIXTURES / "shards-00002-of-00003.gguf")], tmp_path / "out.gguf")
    (output,) = plan.outputs
    header = parse(output.head, output.size)
    assert not [kv.key for kv in header.kvs if kv.key.startswith(("split.", "gguftool."))]
    assert plan.remarks == ()


def test_offsets_are_dense_and_in_order(tmp_path: Path) -> None:
    tensors = b.llama_tensors()
    gaps = [b.Tensor(t.name, t.dims, t.type, t.data, 4096 * index) for index, t in enumerate(tensors)]
    (tmp_path / "in.gguf").write_bytes(b.gguf(b.llama_kvs(), gaps))
    options = MergeOptions(output=OutputOptions(force_sizes=ForceSizes.TYPE))
    execute(plan_merge([open_model(tmp_path / "in.gguf")], tmp_path / "out.gguf", options))
    assert (tmp_path / "out.gguf").read_bytes() == b.gguf(b.llama_kvs(), tensors)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_align_moves_every_tensor_and_changes_none(tmp_path: Path, alignment: int) -> None:
    model = open_model(FIXTURES / "mixed-ik.gguf")
    # At 8, data may start where engines with mmap abort.
    options = MergeOptions(output=OutputOptions(alignment=alignment, anyway=alignment < 32))
    execute(plan_merge([model], tmp_path / "out.gguf", options))
    merged = open_model(tmp_path / "out.gguf")
    assert merged.alignment == alignment
    assert all(tensor.padded_extent.offset % alignment == 0 for tensor in merged.tensors.values())
    assert {n: t.extent.read() for n, t in merged.tensors.items()} == {
        n: t.extent.read() for n, t in model.tensors.items()
    }


def test_shards_are_read_each_by_its_own_alignment(tmp_path: Path) -> None:
    """Shards made by other tools need not carry the key; llama-gguf-split pads by 32 whatever it says."""
    tensors = b.llama_tensors()
    key = b.KV("general.alignment", b.U32, 64)
    first = b.gguf((*b.llama_kvs(key), *b.split_kvs(1, 2, len(tensors))), tensors[:3])
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b.gguf(b.split_kvs(2, 2, len(tensors)), tensors[3:]))
    execute(plan_merge([open_model(tmp_path)], tmp_path / "out.gguf"))
    assert (tmp_path / "out.gguf").read_bytes() == b.gguf(b.llama_kvs(key), tensors)


def test_a_padded_size_conflict_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    tensors = (b.Tensor("short", (64,), 0, bytes(96)), b.tensor("last", "F32", (80,)))
    (tmp_path / "x.gguf").write_bytes(b.gguf((), tensors))
    with pytest.raises(
        PlanError, match=r"'short' \(F32\) takes 256 bytes by its type, but 96 in the file.*--force-sizes"
    ):
        plan_merge([open_model(tmp_path / "x.gguf")], tmp_path / "out.gguf")


def test_an_alignment_for_which_a_stranger_asks_is_bounded(tmp_path: Path) -> None:
    kvs = (b.KV("general.alignment", b.U32, 1 << 31),)
    (tmp_path / "x.gguf").write_bytes(b.head(kvs) + bytes(64))
    with pytest.raises(PlanError, match="2,147,483,648"):
        plan_split(open_model(tmp_path / "x.gguf"), str(tmp_path / "m"))


@pytest.mark.parametrize("without", [1, 2, 3])
def test_an_incomplete_set_is_refused_with_what_is_missing(tmp_path: Path, without: int) -> None:
    for number in {1, 2, 3} - {without}:
        name = b.shard_name("shards", number, 3)
        (tmp_path / name).write_bytes((FIXTURES / name).read_bytes())
    with pytest.raises(PlanError, match=b.shard_name("shards", without, 3)):
        plan_merge([open_model(tmp_path)], tmp_path / "out.gguf")


def test_a_shard_that_holds_too_few_tensors_makes_the_set_incomplete(tmp_path: Path) -> None:
    tensors = b.llama_tensors()
    for name, data in b.shard_set("m", ((), tensors[:2], tensors[3:])).items():
        (tmp_path / name).write_bytes(
            data.replace(b"split.tensors.count\x05\0\0\0\x05", b"split.tensors.count\x05\0\0\0\x06")
        )
    with pytest.raises(PlanError, match="5 of 6 tensors"):
        plan_merge([open_model(tmp_path)], tmp_path / "out.gguf")


def test_a_tensor_in_two_inputs_is_named(tmp_path: Path) -> None:
    model = open_model(FIXTURES / "v2.gguf")
    with pytest.raises(PlanError, match=r"more than one input|in several inputs") as error:
        plan_merge([model, open_model(FIXTURES / "v1.gguf")], tmp_path / "out.gguf")
    assert all(name in str(error.value) for name in model.tensors)


def test_inputs_of_two_byte_orders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "extra.gguf").write_bytes(b.gguf((), [b.tensor("extra", "F32", (8,))]))
    models = [open_model(FIXTURES / "big-endian.gguf"), open_model(tmp_path / "extra.gguf")]
    for pair in itertools.permutations(models):
        with pytest.raises(PlanError, match=r"byte order|-endian"):
            plan_merge(pair, tmp_path / "out.gguf")


@pytest.mark.parametrize("order", [["x"], [], ["last", "last", "nobody"]])
def test_a_recorded_order_that_lists_other_names_loses_no_tensor(tmp_path: Path, order: list[str]) -> None:
    tensors = (b.tensor("first", "F32", (8,)), b.tensor("last", "F32", (8,)))
    kvs = (b.KV("gguftool.tensor_order", b.ARR, b.Array(b.STR, order)),)
    (tmp_path / "x.gguf").write_bytes(b.gguf(kvs, tensors))
    model = open_model(tmp_path / "x.gguf")
    assert sorted(model.tensors) == ["first", "last"]
    execute(plan_merge([model], tmp_path / "out.gguf"))
    assert sorted(open_model(tmp_path / "out.gguf").tensors) == ["first", "last"]
