"""Merging a pool: what must agree, whose metadata, order and alignment the output has, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import gguftool
from gguftool.errors import GGUFToolError, PlanError
from gguftool.format.recipe import parse_recipe
from gguftool.surgery.inputs import find_inputs, open_inputs
from gguftool.surgery.merge import MergeOptions, plan_merge
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.mix_models import (
    NORMS,
    SHAPES,
    merge_plan,
    merged,
    origin,
    per_tensor,
    quant,
    quant_tensors,
    value,
    write,
)

ALL_Q4 = "norm=f32\n.*=q4_K"
MIX = "norm=f32\nattn=q4_K\n.*=q8_0"


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [quant(tmp_path / "Q8_0.gguf", "Q8_0"), quant(tmp_path / "Q4_K.gguf", "Q4_K")]


def problems(*arguments: object, **options: object) -> str:
    with pytest.raises(GGUFToolError) as caught:
        merge_plan(*arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


def _without(name: str) -> dict[str, tuple[int, ...]]:
    return {other: dims for other, dims in SHAPES.items() if other != name}


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_bytes_order_and_names_are_those_of_the_sources(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair, tmp_path / "out.gguf", MIX)
    assert list(model.tensors) == list(SHAPES)
    for name, tensor in model.tensors.items():
        source = gguftool.open_model(tmp_path / origin(model, name, pair)).tensors[name]
        assert tensor.extent.read() == source.extent.read()
        assert (tensor.info.type, tensor.info.dims) == (source.info.type, source.info.dims)


def test_missing_tensors_are_listed(tmp_path: Path) -> None:
    whole = quant(tmp_path / "whole.gguf", "Q8_0")
    part = quant(tmp_path / "part.gguf", "Q4_K", shapes=_without("output.weight"))
    said = problems([part], tmp_path / "out.gguf", kv_from=whole)
    assert "in no input: output.weight" in said


def test_extra_tensors_are_listed(tmp_path: Path, pair: list[str]) -> None:
    more = quant(tmp_path / "more.gguf", "Q4_K", shapes={**SHAPES, "blk.1.attn_q.weight": (256, 6)})
    said = problems([pair[0], more], tmp_path / "out.gguf", MIX)
    assert f"not in {pair[0]}, but in {more}: blk.1.attn_q.weight" in said


def test_a_tensor_in_two_shards_of_one_set_is_refused(tmp_path: Path) -> None:
    tensors = quant_tensors("Q8_0", "x")
    for name, data in b.shard_set("M", [(), tensors[:4], tensors[3:]]).items():
        (tmp_path / name).write_bytes(data)
    said = problems([tmp_path], tmp_path / "out.gguf")
    assert "are in more than one shard: 'blk.0.attn_output.weight'" in said


def test_shapes_that_differ_are_all_listed(tmp_path: Path, pair: list[str]) -> None:
    shapes = {**SHAPES, "output.weight": (256, 5), "blk.0.attn_q.weight": (512, 3)}
    other = quant(tmp_path / "other.gguf", "Q4_K", shapes=shapes)
    said = problems([pair[0], other], tmp_path / "out.gguf", MIX)
    assert f"'output.weight' is 256 x 5 in {other}, 256 x 4 in {pair[0]}" in said
    assert f"'blk.0.attn_q.weight' is 512 x 3 in {other}, 256 x 6 in {pair[0]}" in said


@pytest.mark.parametrize("donor", ["plain.gguf", "ones.gguf"])
def test_trailing_ones_do_not_matter_and_are_spelled_as_in_the_donor(tmp_path: Path, donor: str) -> None:
    ones = {name: (*dims, 1) for name, dims in SHAPES.items()}
    inputs = [quant(tmp_path / "plain.gguf", "Q8_0"), quant(tmp_path / "ones.gguf", "Q4_K", shapes=ones)]
    model = merged(inputs, tmp_path / "out.gguf", MIX, kv_from=tmp_path / donor)
    expected = ones if donor == "ones.gguf" else SHAPES
    assert {name: tensor.info.dims for name, tensor in model.tensors.items()} == expected


def test_order_is_the_donors(tmp_path: Path) -> None:
    backwards = dict(reversed(SHAPES.items()))
    inputs = [quant(tmp_path / "a.gguf", "Q8_0"), quant(tmp_path / "b.gguf", "Q4_K", shapes=backwards)]
    assert list(merged(inputs, tmp_path / "1.gguf", MIX).tensors) == list(SHAPES)
    assert list(merged(inputs, tmp_path / "2.gguf", MIX, kv_from=inputs[1]).tensors) == list(backwards)


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kv",
    [
        b.KV("general.architecture", b.STR, "qwen3"),
        b.KV("llama.rope.freq_base", b.F32, 500000.0),
        b.KV("llama.block_count", b.U32, 2),
        b.KV("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, ["x", "y", "z", "w"])),
        b.KV("tokenizer.ggml.scores", b.ARR, b.Array(b.F32, [0.0] * 5)),
    ],
    ids=lambda kv: kv.key,
)
def test_contradictions_are_refused_unless_named(tmp_path: Path, pair: list[str], kv: b.KV) -> None:
    kvs = tuple(kv if kv.key == own.key else own for own in b.llama_kvs())
    other = quant(tmp_path / "other.gguf", "Q4_K", *kvs, llama=False)
    said = problems([pair[0], other], tmp_path / "out.gguf", MIX)
    assert f"{kv.key} differs" in said
    assert f"--allow-kv-mismatch {kv.key} lets it pass" in said
    model = merged([pair[0], other], tmp_path / "out.gguf", MIX, allowed_mismatches=(kv.key,))
    donor = gguftool.open_model(pair[0])
    assert value(model, kv.key) == value(donor, kv.key)


def test_arrays_that_differ_say_where(tmp_path: Path, pair: list[str]) -> None:
    tokens = b.KV("tokenizer.ggml.tokens", b.ARR, b.Array(b.STR, ["t0", "t1", "\x1bX", "t3"]))
    kvs = tuple(tokens if own.key == tokens.key else own for own in b.llama_kvs())
    other = quant(tmp_path / "other.gguf", "Q4_K", *kvs, llama=False)
    said = problems([pair[0], other], tmp_path / "out.gguf", MIX)
    assert "array of 4 with t2 as element 2 in" in said
    assert "array of 4 with \\x1bX as element 2 in" in said


def test_names_urls_and_templates_never_matter(tmp_path: Path, pair: list[str]) -> None:
    other = quant(
        tmp_path / "other.gguf",
        "Q4_K",
        b.KV("general.url", b.STR, "https://example.org"),
        b.KV("general.quantized_by", b.STR, "somebody"),
        b.KV("tokenizer.chat_template", b.STR, "{{ x }}"),
        b.KV("tokenizer.ggml.padding_token_id", b.U32, 3),
        *(kv for kv in b.llama_kvs() if kv.key != "general.name"),
        b.KV("general.name", b.STR, "Other"),
        llama=False,
    )
    model = merged([pair[0], other], tmp_path / "out.gguf", MIX)
    assert value(model, "general.name") == "Tiny"
    assert model.get("general.url") is None


def test_the_donor_is_the_first_input_with_an_architecture(tmp_path: Path, pair: list[str]) -> None:
    bare = quant(tmp_path / "bare.gguf", "Q4_K", llama=False)
    named = quant(tmp_path / "named.gguf", "Q6_K", b.KV("general.finetune", b.STR, "named"))
    model = merged([bare, named, pair[0]], tmp_path / "out.gguf", MIX)
    assert value(model, "general.finetune") == "named"


def test_no_architecture_anywhere_is_an_error_of_a_mix(tmp_path: Path, pair: list[str]) -> None:
    bare = quant(tmp_path / "bare.gguf", "Q4_K", llama=False)
    other = quant(tmp_path / "other.gguf", "Q8_0", llama=False)
    assert "--kv-from names a model" in problems([bare, other], tmp_path / "out.gguf", MIX)
    assert "has no general.architecture" in problems([bare, *pair], tmp_path / "out.gguf", MIX, kv_from=bare)


def test_a_set_without_its_first_shard_is_refused(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "s", "M", "Q8_0", only=(2, 3, 4, 5, 6, 7, 8))
    said = problems([folder], tmp_path / "out.gguf")
    assert "no input has a general.architecture (missing shards: " in said


def test_kv_from_may_be_a_shard_or_no_input_at_all(tmp_path: Path, pair: list[str]) -> None:
    folder = per_tensor(tmp_path / "set", "M", "Q6_K", only=(1,))
    (first,) = folder.iterdir()
    model = merged(pair, tmp_path / "out.gguf", MIX, kv_from=first)
    assert [kv.key for kv in model.kvs if kv.key.startswith("split.")] == []
    assert value(model, "general.architecture") == "llama"
    assert list(model.tensors) == list(SHAPES)


def test_everything_but_the_truth_is_the_donors_byte_for_byte(tmp_path: Path, pair: list[str]) -> None:
    odd = (b.KV(b"odd.\xff", b.STR, b"\xfe\xff"), b.KV("nested", b.ARR, b.Array(b.ARR, [b.Array(b.I8, [1])])))
    donor = quant(tmp_path / "donor.gguf", "Q8_0", *odd)
    model = merged([donor, pair[1]], tmp_path / "out.gguf", MIX)
    theirs = gguftool.open_model(donor)
    assert [(kv.key, kv.type, kv.raw) for kv in model.kvs][: len(theirs.kvs)] == [
        (kv.key, kv.type, kv.raw) for kv in theirs.kvs
    ]
    assert [kv.key for kv in model.kvs][len(theirs.kvs) :] == ["general.quantization_version"]


def test_inputs_of_other_architecture_are_left_out_where_the_donor_is_named(tmp_path: Path, pair: list[str]) -> None:
    """A folder of several models' quants is a pool; without --kv-from nobody knows which model is meant."""
    clip = b.KV("general.architecture", b.STR, "clip")
    other = quant(tmp_path / "other.gguf", "Q6_K", clip, llama=False, shapes={"v.blk.0.attn_q.weight": (256, 4)})
    assert "general.architecture differs" in problems([*pair, other], tmp_path / "out.gguf", MIX)
    plan = merge_plan([*pair, other], tmp_path / "out.gguf", MIX, kv_from=pair[0])
    assert f"left out, as their architecture differs from that of {pair[0]}: {other}" in plan.remarks
    said = problems([*pair, other], tmp_path / "out.gguf", ".*=q6_K", kv_from=pair[0])
    assert f"left out, as their architecture differs from that of {pair[0]}: {other}" in said


def test_mixed_byte_orders_are_refused(tmp_path: Path, pair: list[str]) -> None:
    big = quant(tmp_path / "big.gguf", "Q4_K", order=">")
    said = problems([pair[0], big], tmp_path / "out.gguf", MIX)
    assert f"{big} is big-endian, but {pair[0]} is not" in said


def test_versions_mix_and_the_donors_is_kept(tmp_path: Path) -> None:
    inputs = [
        quant(tmp_path / "v2.gguf", "Q8_0", version=2),
        quant(tmp_path / "v3.gguf", "Q4_K"),
        quant(tmp_path / "v1.gguf", "Q6_K", version=1),
    ]
    model = merged(inputs, tmp_path / "out.gguf", "norm=f32\nattn=q4_K\noutput=q6_K\n.*=q8_0")
    assert model.version == 2
    assert [origin(model, name, inputs) for name in ("blk.0.attn_q.weight", "output.weight")] == ["v3.gguf", "v1.gguf"]


def _align(number: int) -> tuple[b.KV, ...]:
    return (b.KV("general.alignment", b.U32, number),)


@pytest.mark.parametrize("donor", [0, 1, 2])
@pytest.mark.parametrize("asked", [None, 64])
def test_each_input_is_read_by_its_own_alignment(tmp_path: Path, donor: int, asked: int | None) -> None:
    inputs = [
        quant(tmp_path / f"{number}-{kind}.gguf", kind, *(_align(number) if number != 32 else ()))
        for number, kind in ((32, "Q8_0"), (64, "Q4_K"), (4096, "Q6_K"))
    ]
    recipe = "norm=f32\nattn=q4_K\noutput=q6_K\n.*=q8_0"
    model = merged(inputs, tmp_path / "out.gguf", recipe, kv_from=inputs[donor], alignment=asked)
    assert model.alignment == (asked or (32, 64, 4096)[donor])
    origins = [origin(model, name, inputs) for name in SHAPES if name not in NORMS]
    assert set(origins) == {Path(path).name for path in inputs}
    start = model.files[0].header.data_offset
    assert all((tensor.extent.offset - start) % model.alignment == 0 for tensor in model.tensors.values())


def test_large_shards_are_a_set_that_merges_back(tmp_path: Path, pair: list[str]) -> None:
    plan = merge_plan(pair, tmp_path / "set" / "mix.gguf", MIX, max_size=6000)
    write(plan)
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert len(names) > 2
    assert names == [b.shard_name("mix", number, len(names)) for number in range(1, len(names) + 1)]
    assert all(path.stat().st_size <= 6000 for path in (tmp_path / "set").iterdir())
    single = merged(pair, tmp_path / "single.gguf", MIX)
    again = merged([tmp_path / "set"], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "single.gguf").read_bytes()
    assert list(again.tensors) == list(single.tensors)


def test_provenance_names_files_without_folders_and_is_renewed(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair, tmp_path / "out.gguf", MIX, provenance=True)
    files, of_tensor = value(model, "gguftool.source.files"), value(model, "gguftool.source.of_tensor")
    assert isinstance(files, list)
    assert isinstance(of_tensor, list)
    assert [files[index] for index in of_tensor] == [origin(model, name, pair) for name in SHAPES]
    again = merged([tmp_path / "out.gguf"], tmp_path / "again.gguf", provenance=True)
    assert value(again, "gguftool.source.files") == ["out.gguf"]
    assert len({kv.key for kv in again.kvs}) == len(again.kvs)


def test_provenance_of_other_tensors_is_not_carried_on(tmp_path: Path, pair: list[str]) -> None:
    first = merged(pair, tmp_path / "first.gguf", MIX, provenance=True)
    assert first.get("gguftool.source.files") is not None
    mix = merged([f"first={tmp_path / 'first.gguf'}", f"q4={pair[1]}"], tmp_path / "mix.gguf", "ffn=@q4\n.*=@first")
    assert mix.get("gguftool.source.files") is None


# --- what lies in a folder -------------------------------------------------------------------------------------------


def test_strays_beside_a_complete_set_are_left_out_and_said(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "f", "M-Q8_0", "Q8_0")
    per_tensor(folder, "M-Q4_K", "Q4_K", only=(2, 5))
    plan = merge_plan([folder], tmp_path / "out.gguf")
    assert any("left out incomplete sets" in remark and "M-Q4_K-00002-of-00008" in remark for remark in plan.remarks)
    assert not any("Q4_K" in copy.extent.source.name for copy in plan.outputs[0].copies)


def _scatter(folder: Path) -> None:
    """Shards of one model downloaded from three repositories; no prefix is complete."""
    per_tensor(folder, "M-A-BF16", "BF16", only=(1, 3, 7))
    per_tensor(folder, "M-B-Q8_0", "Q8_0", only=(2, 4, 8))
    per_tensor(folder, "M-C-Q4_K", "Q4_K", only=(5, 6))


@pytest.mark.parametrize("way", ["folder", "glob", "expanded", "reversed", "one by one labelled"])
def test_partial_sets_under_several_prefixes_are_one_pool(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scatter(tmp_path / "f")
    files = sorted(str(path) for path in (tmp_path / "f").iterdir())
    arguments: dict[str, list[object]] = {
        "folder": [tmp_path / "f"],
        "glob": [tmp_path / "f" / "*.gguf"],
        "expanded": list(files),
        "reversed": list(files[::-1]),
        "one by one labelled": [f"l{index}={path}" for index, path in enumerate(files)],
    }
    model = merged(arguments[way], tmp_path / "out.gguf")
    assert list(model.tensors) == list(SHAPES)
    assert [tensor.info.type for tensor in model.tensors.values()] == [8, 0, 8, 12, 12, 0, 8]
    assert model.is_complete


def test_unrelated_files_in_the_pool_are_refused_with_a_list(tmp_path: Path) -> None:
    _scatter(tmp_path / "f")
    mmproj = (b.KV("general.architecture", b.STR, "clip"), b.KV("clip.vision.block_count", b.U32, 1))
    quant(tmp_path / "f" / "mmproj.gguf", "F16", *mmproj, llama=False, shapes={"v.blk.0.attn_q.weight": (32, 4)})
    said = problems([tmp_path / "f"], tmp_path / "out.gguf")
    assert re.search(r"8 tensors were found, but 7 belong together: .*, 1 in \S+mmproj\.gguf", said)
    assert "general.architecture differs" in said


def test_text_files_in_the_folder_do_not_matter_and_broken_ggufs_are_named(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "f", "M-Q8_0", "Q8_0")
    (folder / "README.md").write_text("hello")
    (folder / "x.gguf.part").write_bytes(b"GG")
    merge_plan([folder], tmp_path / "out.gguf")
    (folder / "z.gguf").write_text("<!DOCTYPE html>")
    assert "z.gguf" in problems([folder], tmp_path / "out.gguf")


def test_an_incomplete_pool_says_which_shards_are_missing(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "f", "M-Q8_0", "Q8_0", only=(1, 2, 3, 5))
    said = problems([folder], tmp_path / "out.gguf")
    assert "3 of 7 tensors were found" in said
    assert "M-Q8_0-00004-of-00008.gguf" in said


def test_a_small_whole_file_beside_an_incomplete_set_is_not_taken_for_the_model(tmp_path: Path) -> None:
    """A lone tensor in a file of its own is complete as far as it tells; it must not become the reference."""
    folder = per_tensor(tmp_path / "f", "M-Q8_0", "Q8_0", only=(1, 2, 3, 5, 6, 7, 8))
    patch = quant(tmp_path / "patch.gguf", "Q4_K", shapes={"blk.0.attn_q.weight": (256, 6)}, llama=False)
    model = merged([folder, patch], tmp_path / "out.gguf")
    assert set(model.tensors) == set(SHAPES)
    assert model.tensors["blk.0.attn_q.weight"].info.type == b.TYPES["Q4_K"][0]


def test_a_set_of_links_to_another_sets_files_is_whole(tmp_path: Path) -> None:
    """Mixes are often folders of links into the repositories: the same files under other names, given beside them."""
    source = per_tensor(tmp_path / "s", "M-Q8_0", "Q8_0")
    links = tmp_path / "l"
    links.mkdir()
    for path in source.iterdir():
        (links / path.name).symlink_to(path)
    model = merged([links], tmp_path / "out.gguf")
    assert list(model.tensors) == list(SHAPES)
    both = merged([source, links], tmp_path / "both.gguf")
    assert list(both.tensors) == list(SHAPES)


def test_inputs_are_never_outputs(tmp_path: Path, pair: list[str]) -> None:
    before = Path(pair[0]).read_bytes()
    with pytest.raises(GGUFToolError, match="is an input"):
        write(merge_plan(pair, Path(pair[0]), MIX))
    assert Path(pair[0]).read_bytes() == before


# --- the command -----------------------------------------------------------------------------------------------------


def test_problems_are_listed_one_a_line_and_nothing_is_written(tmp_path: Path, pair: list[str]) -> None:
    (tmp_path / "r.recipe").write_text("norm=f32\nattn_q=iq4_xs\nnothing=q8_0\nattn=q4_K\nblk=q8_0\n")
    output = tmp_path / "out" / "o.gguf"
    done = run_gguftool("merge", *pair, "--recipe", tmp_path / "r.recipe", "-o", output)
    assert done.returncode == 2
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "gguftool: error: cannot merge, 3 problems:"
    assert len(lines) == 4
    assert all(line.startswith("  - ") for line in lines[1:])
    assert not output.parent.exists()


def test_one_problem_is_one_line(tmp_path: Path, pair: list[str]) -> None:
    done = run_gguftool("merge", *pair, "-o", tmp_path / "o.gguf")
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("gguftool: error: cannot merge, 1 problem: in several inputs (")


def test_a_dry_run_writes_nothing(tmp_path: Path, pair: list[str]) -> None:
    (tmp_path / "r.recipe").write_text(MIX)
    before = sorted(tmp_path.iterdir())
    done = run_gguftool("merge", *pair, "--recipe", tmp_path / "r.recipe", "-o", tmp_path / "d" / "o.gguf", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert b"nothing was written" in done.stdout


def test_a_damaged_shard_with_a_map_beside_it_is_refused(tmp_path: Path) -> None:
    whole = quant(tmp_path / "whole.gguf", "Q8_0")
    assert run_gguftool("split", whole, tmp_path / "s" / "M", "--map", "--no-sync").returncode == 0
    shard = tmp_path / "s" / "M-00004-of-00008.gguf"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    output = tmp_path / "o" / "out.gguf"
    done = run_gguftool("merge", tmp_path / "s", "-o", output)
    assert done.returncode == 2
    assert b"M-00004-of-00008.gguf: sha256 is" in done.stderr
    assert not output.parent.exists()
    assert run_gguftool("merge", tmp_path / "s", "-o", output, "--no-verify").returncode == 0
    shard.write_bytes(good)
    assert run_gguftool("merge", tmp_path / "s", "-o", output, "--force").returncode == 0
    assert output.read_bytes() == Path(whole).read_bytes()


def test_a_damaged_shard_that_the_mix_does_not_take_does_not_matter(tmp_path: Path) -> None:
    whole = quant(tmp_path / "whole.gguf", "Q8_0")
    other = quant(tmp_path / "q4.gguf", "Q4_K")
    assert run_gguftool("split", whole, tmp_path / "s" / "M", "--map", "--no-sync").returncode == 0
    shard = tmp_path / "s" / "M-00004-of-00008.gguf"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "r.recipe").write_text("norm=f32\nattn_q=q4_K\n.*=q8_0")
    arguments = (tmp_path / "s", other, "--recipe", tmp_path / "r.recipe", "-o", tmp_path / "out.gguf")
    done = run_gguftool("merge", *arguments)
    assert done.returncode == 0, done.stderr


def test_a_shell_expanded_glob_equals_a_quoted_one_on_the_command_line(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "s", "M", "Q8_0")
    shutil.copy(quant(tmp_path / "whole.gguf", "Q4_K"), tmp_path / "s" / "other.gguf")
    (tmp_path / "r.recipe").write_text("norm=f32\nattn=q4_K\n.*=q8_0")
    outputs = []
    for arguments in ([f"{folder}/*.gguf"], sorted(folder.iterdir())):
        output = tmp_path / f"{len(arguments)}.gguf"
        done = run_gguftool("merge", *arguments, "--recipe", tmp_path / "r.recipe", "-o", output, "--no-sync")
        assert done.returncode == 0, done.stderr
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]


def test_a_plan_error_is_what_bad_requests_raise(tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        merge_plan([per_tensor(tmp_path / "s", "M", "Q8_0", only=(1, 2))], tmp_path / "o.gguf")


@pytest.mark.parametrize("given_first", [False, True])
def test_a_label_that_the_user_gave_goes_before_one_of_a_file_name(given_first: bool, tmp_path: Path) -> None:
    """No input has the type; the name of one file and the label of the other both say it."""
    claimed = quant(tmp_path / "m-Q8_0.gguf", "Q6_K")
    given = quant(tmp_path / "other.gguf", "Q4_K")
    arguments = [f"q8_0={given}", claimed] if given_first else [claimed, f"q8_0={given}"]
    model = merged(arguments, tmp_path / "out.gguf", "norm=f32\n.*=q8_0")
    assert origin(model, "blk.0.attn_q.weight", [claimed, given]) == "other.gguf"
    assert [one.name for one in find_inputs(open_inputs(arguments), "q8_0")] == [given]


def test_missing_shards_are_those_that_no_input_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = b.llama_tensors()
    files = b.shard_set("m", ((), *((tensor,) for tensor in tensors)))
    for folder, numbers in (("x", (1, 2, 4)), ("y", (3, 5, 7))):
        Path(folder).mkdir()
        for number, (name, data) in enumerate(files.items(), 1):
            if number in numbers:
                Path(folder, name).write_bytes(data)
    with pytest.raises(PlanError) as error:
        plan_merge(["x", "y"], "out.gguf")
    assert "in no input: shards 00006-of-00007" in str(error.value)
    assert "00003-of" not in str(error.value)


def test_a_rule_for_tensors_that_the_donor_lacks_names_kv_from(tmp_path: Path) -> None:
    put = {"text.gguf": b.small_model(), "mm.gguf": b.gguf((), [b.tensor("mm.0.weight", "F32", (8,))])}
    for name, data in put.items():
        (tmp_path / name).write_bytes(data)
    recipe = parse_recipe("^mm=@mm\n.*=@t\n")
    with pytest.raises(PlanError) as error:
        plan_merge([f"t={tmp_path}/text.gguf", f"mm={tmp_path}/mm.gguf"], "out.gguf", MergeOptions(recipe=recipe))
    said = str(error.value)
    assert "this rule matches only tensors that the model with the metadata does not have (--kv-from" in said
    assert "matches no tensor" not in said
