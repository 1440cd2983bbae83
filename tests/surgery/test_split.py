"""Split: what goes into which shard, and what every shard says."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.format.file_names import MAX_SHARDS
from gguftool.format.header import Header, parse
from gguftool.model.layout import ForceSizes, OutputOptions
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.storage.execute.executor import execute
from gguftool.storage.plan import Plan
from gguftool.surgery import shards
from gguftool.surgery.split import SplitOptions, plan_split
from tests.support import builders as b
from tests.support.paths import FIXTURES


@pytest.fixture
def model(tmp_path: Path) -> Model:
    path = tmp_path / "in.gguf"
    path.write_bytes(b.small_model(layers=3))
    return open_model(path)


def headers(plan: Plan) -> list[Header]:
    return [parse(output.head, output.size) for output in plan.outputs]


def names(plan: Plan) -> list[list[str]]:
    return [[info.name for info in header.tensors] for header in headers(plan)]


def layout_keys(header: Header) -> dict[str, tuple[str, int]]:
    return {kv.key: (kv.type.name, kv.value()) for kv in header.kvs if kv.key.startswith("split.")}


def test_by_default_a_shard_without_tensors_then_one_tensor_each(model: Model) -> None:
    plan = plan_split(model, "out/m")
    assert names(plan) == [[], *([name] for name in model.tensors)]
    count = len(model.tensors) + 1
    assert [str(output.path) for output in plan.outputs] == [
        f"out/m-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    for number, header in enumerate(headers(plan)):
        assert layout_keys(header) == {
            "split.no": ("UINT16", number),
            "split.count": ("UINT16", count),
            "split.tensors.count": ("INT32", len(model.tensors)),
        }
        assert len(header.kvs) == (3 if number else 3 + len(model.kvs))


@pytest.mark.parametrize("max_tensors", [1, 2, 3, 13, 14, 15, 1000])
@pytest.mark.parametrize("tensor_first", [False, True])
def test_max_tensors(model: Model, max_tensors: int, tensor_first: bool) -> None:
    plan = plan_split(model, "m", SplitOptions(max_tensors=max_tensors, tensor_first=tensor_first))
    shards = names(plan)
    held = shards if tensor_first else shards[1:]
    assert [name for shard in shards for name in shard] == list(model.tensors)
    assert all(len(shard) == max_tensors for shard in held[:-1])
    assert 1 <= len(held[-1]) <= max_tensors
    assert tensor_first or shards[0] == []


@pytest.mark.parametrize("tensor_first", [False, True])
@pytest.mark.parametrize("bundle_small", [0, 300])
@pytest.mark.parametrize("limit", [0, 200, 700, 900, 1100, 1300, 1500, 2000, 2600, 10**6])
def test_max_size_is_a_real_limit(model: Model, limit: int, bundle_small: int, tensor_first: bool) -> None:
    options = SplitOptions(output=OutputOptions(max_size=limit), bundle_small=bundle_small, tensor_first=tensor_first)
    plan = plan_split(model, "m", options)
    over = [output for output in plan.outputs if output.size > limit]
    for output in over:
        held = parse(output.head, output.size).tensors
        assert len(held) == (0 if output is plan.outputs[0] else 1), "only what cannot be cut further is larger"
    assert len([remark for remark in plan.remarks if "over the limit" in remark]) == len(over)
    # Nothing is cut finer than the limit asks for: no shard's first tensor would have fitted into the one before.
    shards = plan.outputs if tensor_first and not bundle_small else plan.outputs[1:]
    for before, after in itertools.pairwise(shards):
        grown = parse(before.head, before.size), parse(after.head, after.size).tensors[0]
        head = replace(grown[0], tensors=(*grown[0].tensors, grown[1])).data_offset
        data = before.size - len(before.head) + b.round_up(model.tensors[grown[1].name].nbytes, 32)
        assert head + data > limit


def test_a_tensor_over_the_limit_gets_its_own_shard_and_a_remark_that_names_it(model: Model) -> None:
    plan = plan_split(model, "m", SplitOptions(output=OutputOptions(max_size=600)))
    for name, tensor in model.tensors.items():
        if tensor.nbytes > 600:
            assert [name] in names(plan)
            assert any(f"'{name}' alone" in remark for remark in plan.remarks)
    assert "metadata is larger" not in plan.remarks[0] or plan.outputs[0].size > 600


def test_small_tensors_ride_in_shard_1_and_their_order_is_recorded(model: Model) -> None:
    plan = plan_split(model, "m", SplitOptions(bundle_small=300))
    first, *others = names(plan)
    assert first == [name for name, tensor in model.tensors.items() if tensor.nbytes < 300]
    assert [name for shard in others for name in shard] == [n for n, t in model.tensors.items() if t.nbytes >= 300]
    order = headers(plan)[0].get("gguftool.tensor_order")
    assert order is not None
    assert order.value() == list(model.tensors)
    assert all(header.get("gguftool.tensor_order") is None for header in headers(plan)[1:])


def test_no_order_is_recorded_where_nothing_is_bundled(model: Model) -> None:
    plan = plan_split(model, "m", SplitOptions(bundle_small=1))
    assert headers(plan)[0].get("gguftool.tensor_order") is None


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_align_is_written_into_every_shard(model: Model, alignment: int) -> None:
    plan = plan_split(model, "m", SplitOptions(max_tensors=3, output=OutputOptions(alignment=alignment)))
    for header, output in zip(headers(plan), plan.outputs, strict=True):
        kv = header.get("general.alignment")
        assert kv is not None
        assert (kv.type.name, kv.value()) == ("UINT32", alignment)
        assert len(output.head) % alignment == 0
        assert all(info.offset % alignment == 0 for info in header.tensors)


def test_the_alignment_of_the_input_is_in_every_shard() -> None:
    plan = plan_split(open_model(FIXTURES / "align64.gguf"), "m")
    assert {header.alignment for header in headers(plan)} == {64}


def test_version_and_byte_order_stay() -> None:
    for name, version, order in (("v1", 1, "<"), ("v2", 2, "<"), ("big-endian", 3, ">")):
        plan = plan_split(open_model(FIXTURES / f"{name}.gguf"), "m")
        assert {(header.version, header.byte_order.value) for header in headers(plan)} == {(version, order)}


@pytest.mark.parametrize("prefix", ["", "out/", "/", "a\n/"])
def test_a_prefix_that_ends_in_a_folder_is_refused(model: Model, prefix: str) -> None:
    with pytest.raises(PlanError, match="PREFIX"):
        plan_split(model, prefix)


@pytest.mark.slow
def test_more_shards_than_split_count_holds_are_refused(model: Model) -> None:
    tensor = next(iter(model.tensors.values()))
    many = {f"t{index}": replace(tensor, info=replace(tensor.info, name=f"t{index}")) for index in range(65_535)}
    with pytest.raises(PlanError, match="65,536 shards"):
        plan_split(replace(model, tensors=many), "m")


def test_more_files_than_ik_llama_opens_are_remarked(model: Model) -> None:
    assert not plan_split(model, "m").remarks
    tensor = next(iter(model.tensors.values()))
    many = {f"t{index}": replace(tensor, info=replace(tensor.info, name=f"t{index}")) for index in range(64)}
    (remark,) = plan_split(replace(model, tensors=many), "m").remarks
    assert "GGML_MAX_CONTEXTS" in remark


def test_sizes_in_doubt_are_named_and_settled_by_force(tmp_path: Path) -> None:
    tensors = (b.Tensor("roomy", (8,), 0, bytes(range(96))), b.tensor("last", "F32", (8,)))
    (tmp_path / "x.gguf").write_bytes(b.gguf((), tensors))
    model = open_model(tmp_path / "x.gguf")
    with pytest.raises(PlanError, match="'roomy'"):
        plan_split(model, "m")
    for force, size in ((ForceSizes.GAP, 96), (ForceSizes.TYPE, 32)):
        plan = plan_split(
            model, str(tmp_path / force.value / "m"), SplitOptions(output=OutputOptions(force_sizes=force))
        )
        execute(plan)
        assert plan.outputs[1].path.read_bytes()[len(plan.outputs[1].head) :] == bytes(range(size))


def test_an_unknown_type_stays_where_it_is_but_cannot_be_packed_tighter() -> None:
    model = open_model(FIXTURES / "unknown-type.gguf")
    assert len(plan_split(model, "m", SplitOptions(output=OutputOptions(alignment=64))).outputs) == 4
    with pytest.raises(PlanError, match="end is unknown at alignment 8"):
        plan_split(model, "m", SplitOptions(output=OutputOptions(alignment=8)))


def test_tensor_names_never_become_file_names(tmp_path: Path) -> None:
    tensors = [b.tensor(name, "F32", (8,)) for name in ("../../evil", "/etc/passwd", "a\0b", "..", "")]
    (tmp_path / "x.gguf").write_bytes(b.gguf(b.llama_kvs(), tensors))
    execute(plan_split(open_model(tmp_path / "x.gguf"), str(tmp_path / "out" / "m")))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ["x.gguf", *(f"m-{number:05d}-of-00006.gguf" for number in range(1, 7))]
    )


def test_as_many_shards_as_fit_are_written_and_one_more_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real bound is that of a u16, which takes long to reach."""
    struct.pack("<H", MAX_SHARDS)
    with pytest.raises(struct.error):
        struct.pack("<H", MAX_SHARDS + 1)
    count = len(plan_split(model, "m").outputs)
    monkeypatch.setattr(shards, "MAX_SHARDS", count)
    assert len(plan_split(model, "m").outputs) == count
    monkeypatch.setattr(shards, "MAX_SHARDS", count - 1)
    with pytest.raises(PlanError, match=f"{count} shards; split.count holds at most {count - 1}"):
        plan_split(model, "m")
