"""The filler: where it puts the data, what an edit in place does with it, and what the plan says about it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gguftool.errors import PlanError
from gguftool.format.header import ALIGNMENT_KEY, Header, TensorInfo, parse, serialize
from gguftool.format.kv import KV, ByteOrder, ValueType, make_kv
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.model.padding import PADDING_KEY, Filler, best_residue, filled
from gguftool.storage.execute.executor import execute
from gguftool.storage.plan import BLOCK, Copy, congruent_bytes
from gguftool.storage.sources.local import open_local
from gguftool.storage.sources.source import Extent
from gguftool.surgery.edit.plan import Edits, plan_edit
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.split import SplitOptions, plan_split
from gguftool.surgery.swap import plan_swap
from tests.support import builders
from tests.support.builders import ARR, STR, U8, U32, Array, gguf, llama_kvs, llama_tensors, small_model, tensor
from tests.support.command import one_error_line

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def text(key: str, length: int) -> KV:
    return make_kv(key, ValueType.STRING, "x" * length)


def set_(key: str, length: int) -> Edits:
    return Edits(values=(text(key, length),))


def filler_length(model: Model) -> int | None:
    kv = model.get(PADDING_KEY)
    return None if kv is None else kv.count


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A model whose tensors span many blocks."""
    tensors = [tensor(f"blk.{index}.ffn_up.weight", "Q8_0", (32, 1000 + index)) for index in range(4)]
    path = tmp_path / "big.gguf"
    path.write_bytes(gguf(llama_kvs(layers=4), tensors))
    return path


# --- heads ---


@st.composite
def headers(draw: st.DrawFn) -> Header:
    order = draw(st.sampled_from(ByteOrder))
    alignment = draw(st.sampled_from([None, 8, 32, 4096, 8192]))
    kvs = [make_kv("a", ValueType.STRING, "x" * draw(st.integers(0, 9000)), byte_order=order)]
    if alignment is not None:
        kvs.append(make_kv(ALIGNMENT_KEY, ValueType.UINT32, alignment, byte_order=order))
    if draw(st.booleans()):
        old = make_kv(PADDING_KEY, ValueType.ARRAY, [0] * 7, element=ValueType.UINT8, byte_order=order)
        kvs.insert(draw(st.integers(0, len(kvs))), old)
    infos = (TensorInfo(name="t", dims=(3,), type=0, offset=0),)
    return Header(version=draw(st.sampled_from([1, 2, 3])), byte_order=order, kvs=tuple(kvs), tensors=infos)


@given(header=headers(), residue=st.integers(0, BLOCK - 1), reserve=st.integers(0, 70_000), pad=st.booleans())
def test_the_data_lands_where_it_is_wanted(
    tmp_path: Path, header: Header, residue: int, reserve: int, pad: bool
) -> None:
    assume(pad or reserve)
    residue = residue // header.alignment * header.alignment if header.alignment < BLOCK else 0
    path = tmp_path / "source"
    if not path.exists():
        path.write_bytes(bytes(10))
    copy = Copy(extent=Extent(source=open_local(path), offset=residue, length=1), offset=0)
    result = filled(header, [copy], Filler(pad=pad, reserve=reserve))
    head = serialize(result)
    assert parse(head, len(head)) == result
    assert len(head) == result.data_offset
    others = [kv for kv in header.kvs if kv.key != PADDING_KEY]
    assert [kv for kv in result.kvs if kv.key != PADDING_KEY] == others
    found = result.get(PADDING_KEY)
    if found is not None:
        assert result.length == result.data_offset  # up to the very end: not one byte is left to the rounding
        assert found.raw[12:] == bytes(found.count)
    bare = Header(version=header.version, byte_order=header.byte_order, kvs=tuple(others), tensors=header.tensors)
    step = header.alignment
    if pad:
        assert result.data_offset % BLOCK == residue
        step = max(BLOCK, step)
    assert result.data_offset - bare.length >= reserve
    assert result.data_offset - bare.length < reserve + 40 + step + (40 if pad or reserve else 0)
    assert filled(result, [copy], Filler(data_offset=result.data_offset)) == result


def test_a_head_without_reason_is_left_alone() -> None:
    header = Header(kvs=(text("a", 100),))
    assert filled(header, [], Filler()) is header


def test_a_gap_too_small_for_a_filler_is_refused() -> None:
    header = Header(kvs=(text("a", 110),))
    with pytest.raises(PlanError, match=r"must end at 192; a filler in between takes at least 40"):
        filled(header, [], Filler(data_offset=header.data_offset + 32))


def test_most_bytes_decide(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(10))

    def copy(residue: int, length: int) -> Copy:
        return Copy(extent=Extent(source=open_local(path), offset=residue + BLOCK, length=length), offset=0)

    assert best_residue([copy(32, 100), copy(64, 60), copy(64, 60)], 32) == 64
    assert best_residue([copy(33, 100), copy(64, 60)], 32) == 64  # 33 is no place for data aligned to 32
    assert best_residue([], 32) == 0


# --- operations ---


def test_edit_pads_so_that_the_data_can_be_shared(big: Path, tmp_path: Path) -> None:
    edits = set_("tokenizer.chat_template", 5000)
    plain = plan_edit(open_model(big), edits, tmp_path / "plain.gguf").preview()
    padded = plan_edit(open_model(big), edits, tmp_path / "out.gguf", Filler(pad=True))
    assert plain.bytes_congruent == 0
    assert plain.bytes_congruent_padded == padded.preview().bytes_congruent > plain.bytes_copied - 2 * BLOCK
    execute(padded)
    model, old = open_model(tmp_path / "out.gguf"), open_model(big)
    assert model.files[0].header.data_offset % BLOCK == old.files[0].header.data_offset % BLOCK
    assert [t.extent.read() for t in model.tensors.values()] == [t.extent.read() for t in old.tensors.values()]


def test_an_edit_in_place_uses_the_reserve_and_gives_it_back(big: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    execute(plan_edit(open_model(big), Edits(), path, Filler(reserve=3000)))
    before = path.read_bytes()
    room = filler_length(open_model(path))
    assert room is not None
    assert room >= 3000
    execute(plan_edit(open_model(path), set_("tokenizer.chat_template", 2000), None))
    model = open_model(path)
    assert filler_length(model) == room - 2000 - len("tokenizer.chat_template") - 8 - 4 - 8
    assert path.stat().st_size == len(before)
    data = model.files[0].header.data_offset
    assert path.read_bytes()[data:] == before[data:]
    execute(plan_edit(model, Edits(remove=("tokenizer.chat_template",)), None))
    assert path.read_bytes() == before


def test_more_than_the_reserve_is_refused_and_nothing_changes(big: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    execute(plan_edit(open_model(big), Edits(), path, Filler(reserve=3000)))
    before = path.read_bytes()
    with pytest.raises(PlanError, match=r"cannot be changed in place.*-o OUT\) takes .* with --pad, .*--reserve 64KiB"):
        plan_edit(open_model(path), set_("tokenizer.chat_template", 4000), None)
    assert path.read_bytes() == before


def test_in_place_a_head_that_shrank_gets_a_filler_unasked(big: Path) -> None:
    path = big.with_name("more.gguf")
    execute(plan_edit(open_model(big), set_("general.description", 500), path))
    size = path.stat().st_size
    execute(plan_edit(open_model(path), Edits(remove=("general.description",)), None))
    model = open_model(path)
    assert path.stat().st_size == size
    assert model.get("general.description") is None
    assert filler_length(model) is not None
    assert [t.extent.read() for t in model.tensors.values()] == [
        t.extent.read() for t in open_model(big).tensors.values()
    ]


def test_a_new_file_keeps_the_room_that_there_was(big: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    execute(plan_edit(open_model(big), Edits(), first, Filler(reserve=30_000)))
    execute(plan_edit(open_model(first), set_("general.description", 50), second))
    old, new = (open_model(path).files[0].header.data_offset for path in (first, second))
    assert old == new


def test_merge_and_split_drop_the_filler(big: Path, tmp_path: Path) -> None:
    padded, merged = tmp_path / "padded.gguf", tmp_path / "merged.gguf"
    execute(plan_edit(open_model(big), Edits(), padded, Filler(reserve=3000)))
    execute(plan_merge([open_model(padded)], merged))
    assert merged.read_bytes() == big.read_bytes()
    execute(plan_split(open_model(padded), str(tmp_path / "set")))
    assert open_model(tmp_path / "set-00001-of-00005.gguf").get(PADDING_KEY) is None


def test_merge_with_pad_shares_what_split_with_a_large_alignment_left(big: Path, tmp_path: Path) -> None:
    execute(plan_split(open_model(big), str(tmp_path / "set"), SplitOptions(output=OutputOptions(alignment=4096))))
    shards = open_model(tmp_path / "set-00001-of-00005.gguf")
    preview = plan_merge([shards], tmp_path / "out.gguf").preview()
    assert preview.bytes_congruent == preview.bytes_copied
    options = MergeOptions(output=OutputOptions(alignment=32, filler=Filler(pad=True)))
    plan = plan_merge([shards], tmp_path / "out.gguf", options)
    assert 0 < plan.preview().bytes_congruent < plan.preview().bytes_copied


def test_swap_pads_for_the_larger_part_and_keeps_a_filler_in_place(big: Path, tmp_path: Path) -> None:
    donor = tmp_path / "donor.gguf"
    donor.write_bytes(
        gguf(
            llama_kvs(builders.KV("general.description", STR, "d" * 777), layers=4),
            [tensor(f"blk.{index}.ffn_up.weight", "Q8_0", (32, 1000 + index)) for index in range(4)],
        )
    )
    from gguftool.surgery.inputs import open_donor

    names = ["blk.1.ffn_up.weight"]
    out = tmp_path / "out.gguf"
    options = OutputOptions(filler=Filler(pad=True, reserve=100))
    execute(plan_swap(open_model(big), open_donor(str(donor)), names, out, options))
    model = open_model(out)
    offset = model.files[0].header.data_offset
    assert offset % BLOCK == open_model(big).files[0].header.data_offset % BLOCK
    room = filler_length(model)
    execute(plan_swap(model, open_donor(str(donor)), names, None))
    assert filler_length(open_model(out)) == room
    assert open_model(out).files[0].header.data_offset == offset


def test_shards_up_to_a_size_stay_below_it_with_a_filler(big: Path, tmp_path: Path) -> None:
    options = MergeOptions(output=OutputOptions(max_size=100_000, filler=Filler(pad=True, reserve=10_000)))
    plan = plan_merge([open_model(big)], tmp_path / "out", options)
    assert len(plan.outputs) > 1
    assert all(output.size <= 100_000 for output in plan.outputs)
    execute(plan)
    first = open_model(plan.outputs[0].path, this_file_only=True)
    others = [open_model(output.path, this_file_only=True) for output in plan.outputs[1:]]
    assert (filler_length(first) or 0) >= 10_000
    assert all((filler_length(model) or 0) < 2 * BLOCK for model in others)


def test_congruent_bytes_count_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(10))

    def copy(offset: int, length: int, place: int) -> Copy:
        return Copy(extent=Extent(source=open_local(path), offset=offset, length=length), offset=place)

    assert congruent_bytes([copy(100, 3 * BLOCK, BLOCK + 100)]) == 2 * BLOCK
    assert congruent_bytes([copy(100, 3 * BLOCK, BLOCK)]) == 0
    assert congruent_bytes([copy(100, 3 * BLOCK, BLOCK)], shift=100) == 2 * BLOCK
    assert congruent_bytes([copy(100, 200, 100)]) == 0


# --- the command line ---


def test_dry_run_says_what_pad_would_save(big: Path, tmp_path: Path, gguftool: Run) -> None:
    args = ("edit", big, "--set", "general.name=str:" + "n" * 200, "-o", tmp_path / "out.gguf", "--dry-run")
    said = json.loads(gguftool(*args, "--json").stdout)
    assert said["bytes_congruent"] == 0
    assert said["bytes_congruent_padded"] > 100_000
    assert b"more with --align 4096, or --pad" in gguftool(*args).stdout
    padded = json.loads(gguftool(*args, "--json", "--pad").stdout)
    assert padded["bytes_congruent"] == said["bytes_congruent_padded"]
    assert b"more with --align" not in gguftool(*args, "--pad").stdout


def test_reserve_on_the_command_line(tmp_path: Path, gguftool: Run) -> None:
    model, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    model.write_bytes(small_model())
    assert gguftool("edit", model, "--reserve", "64KiB", "-o", out).returncode == 0
    assert (filler_length(open_model(out)) or 0) >= 65536
    assert gguftool("edit", out, "--set", "general.name=str:" + "n" * 60_000, "--in-place").returncode == 0
    refused = gguftool("edit", out, "--set", "a=str:" + "n" * 60_000, "--in-place")
    assert refused.returncode == 2
    assert "--reserve 64KiB" in one_error_line(refused.stderr)
    assert gguftool("edit", out, "--reserve", "1KiB", "--in-place").returncode == 2
    assert gguftool("edit", out, "--reserve", "1GiB", "-o", tmp_path / "x.gguf").returncode == 2
    assert gguftool("edit", out, "-o", tmp_path / "x.gguf").returncode == 2


def test_a_hostile_filler_is_replaced_whatever_it_is(tmp_path: Path) -> None:
    path, out = tmp_path / "m.gguf", tmp_path / "out.gguf"
    odd = (builders.KV(PADDING_KEY, U32, 7), builders.KV(PADDING_KEY, ARR, Array(U8, [1, 2, 3])))
    path.write_bytes(gguf(llama_kvs(*odd), llama_tensors()))
    execute(plan_edit(open_model(path), set_("general.name", 10), out))
    found = [kv for kv in open_model(out).kvs if kv.key == PADDING_KEY]
    assert len(found) <= 1
    assert all(kv.element_type is ValueType.UINT8 and set(kv.value()) <= {0} for kv in found)
