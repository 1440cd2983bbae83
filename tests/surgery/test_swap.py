"""Swap: the chosen tensors are the donor's, everything else is as it was."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import gguftool
from gguftool.errors import GGUFToolError, PlanError
from gguftool.model.layout import OutputOptions
from gguftool.model.model import Model
from gguftool.surgery.inputs import open_donor
from gguftool.surgery.swap import plan_swap, select_swaps
from tests.support import builders as b
from tests.support.command import environment, run_gguftool
from tests.support.mix_models import FILE_TYPE, SHAPES, per_tensor, quant, quant_tensors, value, write
from tests.support.peak_memory import MEASURED

MIB = 1 << 20


def swapped(model: object, donor: object, patterns: list[str], output: Path, **options: object) -> Model:
    plan = plan_swap(
        gguftool.open_model(str(model)), open_donor(str(donor)), patterns, output, OutputOptions(**options)  # type: ignore[arg-type]
    )  # fmt: skip
    write(plan)
    return gguftool.open_model(plan.outputs[0].path)


def data(model: object) -> dict[str, bytes]:
    opened = model if isinstance(model, Model) else gguftool.open_model(str(model))
    return {name: tensor.extent.read() for name, tensor in opened.tensors.items()}


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [quant(tmp_path / "Q8_0.gguf", "Q8_0"), quant(tmp_path / "Q4_K.gguf", "Q4_K")]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["output.weight"], ["output.weight"]),
        (["output\\.weight"], ["blk.0.attn_output.weight", "output.weight"]),
        (["attn_[qk]", "^token"], ["token_embd.weight", "blk.0.attn_q.weight"]),
        (["[[:digit:]].ffn"], ["blk.0.ffn_down.weight"]),
        (["norm", "output_norm.weight"], ["blk.0.attn_norm.weight", "output_norm.weight"]),
    ],
)
def test_a_name_is_one_tensor_and_anything_else_is_searched(
    pair: list[str], patterns: list[str], names: list[str]
) -> None:
    assert list(select_swaps(gguftool.open_model(pair[0]), open_donor(pair[1]), patterns).taken) == names


def test_the_chosen_are_the_donors_and_the_rest_is_as_it_was(tmp_path: Path, pair: list[str]) -> None:
    model = swapped(pair[0], pair[1], ["attn"], tmp_path / "out.gguf")
    ours, theirs = data(pair[0]), data(pair[1])
    assert data(model) == {name: (theirs if "attn" in name else ours)[name] for name in SHAPES}
    assert list(model.tensors) == list(SHAPES)


def test_a_tensor_swapped_with_itself_changes_nothing(tmp_path: Path, pair: list[str]) -> None:
    swapped(pair[0], pair[0], ["attn"], tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == Path(pair[0]).read_bytes()


def test_swapped_there_and_back_gives_the_file_back(tmp_path: Path) -> None:
    """The donor's majority stays, so that nothing but the tensors changes."""
    kvs = (b.KV(FILE_TYPE, b.U32, 7), b.KV("general.quantization_version", b.U32, 2))
    pair = [quant(tmp_path / "a.gguf", "Q8_0", *kvs), quant(tmp_path / "b.gguf", "Q4_K", *kvs)]
    swapped(pair[0], pair[1], ["attn_q"], tmp_path / "there.gguf")
    swapped(tmp_path / "there.gguf", pair[0], ["attn_q"], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == Path(pair[0]).read_bytes()


def test_the_metadata_is_true_for_the_result(tmp_path: Path) -> None:
    model = quant(tmp_path / "a.gguf", "Q8_0", b.KV(FILE_TYPE, b.U32, 7), b.KV("quantize.imatrix.file", b.STR, "x"))
    donor = quant(tmp_path / "b.gguf", "Q4_K")
    out = swapped(model, donor, ["blk"], tmp_path / "out.gguf")
    assert value(out, FILE_TYPE) == 15
    assert out.get("quantize.imatrix.file") is None
    kept = swapped(model, donor, ["blk"], tmp_path / "kept.gguf", keep_file_type=True)
    assert value(kept, FILE_TYPE) == 7


@pytest.mark.parametrize("alignment", [None, 4096])
def test_donors_of_other_alignment(tmp_path: Path, pair: list[str], alignment: int | None) -> None:
    donor = quant(tmp_path / "d.gguf", "Q4_K", b.KV("general.alignment", b.U32, 64))
    model = swapped(pair[0], donor, ["attn"], tmp_path / "out.gguf", alignment=alignment)
    ours, theirs = data(pair[0]), data(donor)
    assert data(model) == {name: (theirs if "attn" in name else ours)[name] for name in SHAPES}
    assert model.alignment == (alignment or 32)


# --- donors ---


def test_a_lone_shard_and_a_split_set_are_donors(tmp_path: Path, pair: list[str]) -> None:
    folder = per_tensor(tmp_path / "s", "M", "Q6_K")
    whole = data(folder)
    shard = tmp_path / "lone" / "M-00004-of-00008.gguf"
    shard.parent.mkdir()
    shard.write_bytes((folder / shard.name).read_bytes())
    for number, donor in enumerate((folder, shard, folder / shard.name)):
        model = swapped(pair[0], donor, ["blk.0.attn_q.weight"], tmp_path / f"{number}.gguf")
        assert data(model)["blk.0.attn_q.weight"] == whole["blk.0.attn_q.weight"]


def _safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    listing, at = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        listing[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    head = json.dumps(listing).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(raw for _, _, raw in tensors.values()))
    return path


@pytest.mark.parametrize(("dtype", "kind", "size"), [("F32", 0, 4), ("F16", 1, 2), ("BF16", 30, 2)])
def test_safetensors_floats_are_donors(tmp_path: Path, pair: list[str], dtype: str, kind: int, size: int) -> None:
    raw = b.filler(dtype, 256 * 6 * size)
    path = _safetensors(tmp_path / "x.SafeTensors", {"blk.0.attn_q.weight": (dtype, [6, 256], raw)})
    model = swapped(pair[0], path, ["attn_q"], tmp_path / "out.gguf")
    swapped_in = model.tensors["blk.0.attn_q.weight"]
    assert (swapped_in.info.type, swapped_in.info.dims, swapped_in.extent.read()) == (kind, (256, 6), raw)


def test_raw_exports_come_back(tmp_path: Path, pair: list[str]) -> None:
    exported = tmp_path / "x.safetensors"
    assert run_gguftool("export", pair[1], "--tensor", "attn|norm", "-o", exported).returncode == 0
    model = swapped(pair[0], exported, ["attn|norm"], tmp_path / "out.gguf")
    assert data(model) == data(swapped(pair[0], pair[1], ["attn|norm"], tmp_path / "straight.gguf"))


def test_a_dtype_that_ggml_lacks_is_told(tmp_path: Path, pair: list[str]) -> None:
    path = _safetensors(tmp_path / "x.safetensors", {"blk.0.attn_q.weight": ("F8_E4M3", [6, 256], bytes(256 * 6))})
    with pytest.raises(PlanError, match=r"not in the donor .*, or of a type that ggml lacks"):
        swapped(pair[0], path, ["attn_q"], tmp_path / "out.gguf")


def test_safetensors_into_a_big_endian_model_are_refused(tmp_path: Path) -> None:
    big = quant(tmp_path / "big.gguf", "Q8_0", order=">")
    path = _safetensors(tmp_path / "x.safetensors", {"blk.0.attn_q.weight": ("F16", [6, 256], bytes(512 * 6))})
    with pytest.raises(PlanError, match=r"is big-endian, but the donor's bytes are not: 'blk\.0\.attn_q\.weight'"):
        swapped(big, path, ["attn_q"], tmp_path / "out.gguf")


def test_raw_bytes_of_a_big_endian_model_go_back_into_such_a_one_only(tmp_path: Path, pair: list[str]) -> None:
    big = quant(tmp_path / "big.gguf", "Q8_0", order=">")
    exported = tmp_path / "x.safetensors"
    assert run_gguftool("export", big, "--tensor", "attn", "-o", exported).returncode == 0
    with pytest.raises(PlanError, match="the model is little-endian"):
        swapped(pair[0], exported, ["attn"], tmp_path / "out.gguf")
    swapped(big, exported, ["attn"], tmp_path / "same.gguf")
    assert data(tmp_path / "same.gguf") == data(big)


# --- split sets ---


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_untouched_shards_of_a_set_stay_as_they_are(tmp_path: Path, pair: list[str], suffix: str) -> None:
    folder = per_tensor(tmp_path / "s", "M", "Q8_0")
    plan = plan_swap(
        gguftool.open_model(str(folder)), open_donor(pair[1]), ["attn_q"], tmp_path / "o" / f"M{suffix}"
    )  # fmt: skip
    write(plan)
    before, after = _bytes(folder), _bytes(tmp_path / "o")
    assert list(before) == list(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"M-00001-of-00008.gguf", "M-00004-of-00008.gguf"}  # general.quantization_version; the tensor
    expected = data(folder) | {"blk.0.attn_q.weight": data(pair[1])["blk.0.attn_q.weight"]}
    assert data(tmp_path / "o") == expected
    model = gguftool.open_model(str(tmp_path / "o"))
    assert value(model, "general.quantization_version") == 2
    assert value(model, "split.count") == 8


def test_shard_one_of_a_set_says_the_truth(tmp_path: Path, pair: list[str]) -> None:
    tensors = quant_tensors("Q8_0", "x")
    shards = b.shard_set("M", [(), tensors[:4], tensors[4:]])
    shards["M-00001-of-00003.gguf"] = b.gguf((*b.llama_kvs(), b.KV(FILE_TYPE, b.U32, 7), *b.split_kvs(1, 3, 7)))
    (tmp_path / "s").mkdir()
    for name, raw in shards.items():
        (tmp_path / "s" / name).write_bytes(raw)
    model = swapped(tmp_path / "s", pair[1], ["blk"], tmp_path / "o" / "M")
    assert value(model, FILE_TYPE) == 15
    assert [value(model, key) for key in ("split.no", "split.count", "split.tensors.count")] == [0, 3, 7]


def test_shards_of_other_alignment_than_the_first_stay_untouched(tmp_path: Path, pair: list[str]) -> None:
    """llama-gguf-split writes general.alignment into shard 1 alone."""
    folder = per_tensor(tmp_path / "s", "M", "Q8_0")
    kvs = (*b.llama_kvs(), b.KV("general.alignment", b.U32, 64), *b.split_kvs(1, 8, len(SHAPES)))
    (folder / "M-00001-of-00008.gguf").write_bytes(b.gguf(kvs))
    swapped(folder, pair[1], ["attn_q"], tmp_path / "o" / "M")
    before, after = _bytes(folder), _bytes(tmp_path / "o")
    assert {name for name in before if before[name] != after[name]} == {
        "M-00001-of-00008.gguf",
        "M-00004-of-00008.gguf",
    }
    assert data(tmp_path / "o")["blk.0.attn_q.weight"] == data(pair[1])["blk.0.attn_q.weight"]


def test_a_model_joined_from_partial_sets_becomes_a_set_that_agrees_with_itself(
    tmp_path: Path, pair: list[str]
) -> None:
    folder = per_tensor(tmp_path / "s", "B-x", "Q8_0", only=(1, 2, 6, 7))
    per_tensor(folder, "A-x", "Q8_0", only=(3, 4, 5, 8))
    expected = data(folder) | {"output.weight": data(pair[1])["output.weight"]}
    swapped(folder, pair[1], ["output.weight"], tmp_path / "o" / "M")
    assert data(tmp_path / "o") == expected
    assert list(gguftool.open_model(str(tmp_path / "o")).tensors) == list(SHAPES)


def test_an_incomplete_model_is_refused(tmp_path: Path, pair: list[str]) -> None:
    folder = per_tensor(tmp_path / "s", "M", "Q8_0", only=(1, 2, 3))
    with pytest.raises(PlanError, match="incomplete: it has 2 of 7"):
        swapped(folder, pair[1], ["norm"], tmp_path / "out")


# --- what stands in the way ---


def test_all_problems_are_told_at_once(tmp_path: Path, pair: list[str]) -> None:
    shapes = {"blk.0.attn_q.weight": (256, 5), "output.weight": (512, 2), "\x1bx": (3,)}
    donor = quant(tmp_path / "d.gguf", "Q8_0", shapes=shapes)
    with pytest.raises(PlanError) as caught:
        swapped(pair[0], donor, ["attn_q|^output|norm"], tmp_path / "out.gguf")
    said = str(caught.value)
    assert "blk.0.attn_norm.weight, output_norm.weight: not in the donor" in said
    assert "'blk.0.attn_q.weight' is 256 x 6 here and 256 x 5 in the donor" in said
    assert "'output.weight' is 256 x 4 here and 512 x 2 in the donor" in said


def test_trailing_ones_are_no_other_shape(tmp_path: Path, pair: list[str]) -> None:
    donor = quant(tmp_path / "d.gguf", "Q6_K", shapes={name: (*dims, 1) for name, dims in SHAPES.items()})
    model = swapped(pair[0], donor, ["attn_q"], tmp_path / "out.gguf")
    assert model.tensors["blk.0.attn_q.weight"].info.dims == (256, 6)


def test_patterns_that_match_nothing_are_all_told_with_the_nearest_name(tmp_path: Path, pair: list[str]) -> None:
    with pytest.raises(
        PlanError, match=r"'outptu\.weight' matches no tensor; did you mean 'output\.weight'.*'\(' is not"
    ):
        swapped(pair[0], pair[1], ["outptu.weight", "("], tmp_path / "out.gguf")


def test_other_byte_order_is_refused(tmp_path: Path, pair: list[str]) -> None:
    big = quant(tmp_path / "big.gguf", "Q8_0", order=">")
    with pytest.raises(PlanError, match="the model is little-endian, but the donor's bytes are not"):
        swapped(pair[0], big, ["attn_q"], tmp_path / "out.gguf")


def test_a_type_nobody_knows_is_taken_as_it_lies_at_the_same_alignment(tmp_path: Path, pair: list[str]) -> None:
    raw = b.filler("strange", 100)
    donor = tmp_path / "d.gguf"
    donor.write_bytes(b.gguf(b.llama_kvs(), (b.Tensor("blk.0.attn_q.weight", (256, 6), 999, raw),)))
    model = swapped(pair[0], donor, ["attn_q"], tmp_path / "out.gguf")
    taken = model.tensors["blk.0.attn_q.weight"]
    assert (taken.info.type, taken.extent.read()[:100]) == (999, raw)
    aligned = quant(tmp_path / "a8.gguf", "Q8_0", b.KV("general.alignment", b.U32, 8))
    with pytest.raises(PlanError, match="its end is unknown at alignment 8"):
        swapped(aligned, donor, ["attn_q"], tmp_path / "out8.gguf")


def test_the_command_says_what_it_swaps(tmp_path: Path, pair: list[str]) -> None:
    arguments = ("swap", pair[0], "--from", pair[1], "--tensor", "output.weight", "-o", tmp_path / "out.gguf")
    dry = run_gguftool(*arguments, "--dry-run")
    assert (dry.returncode, (tmp_path / "out.gguf").exists()) == (0, False)
    assert b"output.weight q8_0 -> q4_K" in dry.stderr
    assert run_gguftool(*arguments).returncode == 0
    with pytest.raises(GGUFToolError):
        gguftool.open_model(str(tmp_path / "none.gguf"))


# --- large files ---


def _sparse(path: Path, big: int) -> Path:
    """A model of one tensor of `big` bytes, a hole in the file, behind a small one."""
    small = b.tensor("small.weight", "Q8_0", (32, 2))
    head = b.head(b.llama_kvs(), (small, b.Tensor("big.weight", (1 << 20, big >> 21), 1)))
    whole = bytearray(head.ljust(b.round_up(len(head), 32), b"\0"))
    whole += small.data
    path.write_bytes(whole)
    with path.open("r+b") as file:
        file.truncate(b.round_up(len(whole), 32) + big)
    return path


@pytest.mark.parametrize(("size", "more"), [(1 << 40, ("--dry-run",)), (256 * MIB, ("--no-sync",))])
def test_a_small_swap_in_a_big_file_takes_little_memory_and_time(
    tmp_path: Path, size: int, more: tuple[str, ...]
) -> None:
    big, small = _sparse(tmp_path / "big.gguf", size), _sparse(tmp_path / "small.gguf", MIB)
    donor = tmp_path / "d.gguf"
    donor.write_bytes(b.gguf(b.llama_kvs(), (b.tensor("small.weight", "F16", (32, 2)),)))

    def swap(model: Path, out: str) -> tuple[float, int]:
        """Swap in a process of its own; return its processor time and its peak memory."""
        arguments = ("swap", model, "--from", donor, "--tensor", "small.weight", "-o", tmp_path / out, *more)
        command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, env=environment(), check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, int(done.stderr.splitlines()[-1])

    seconds, peak = swap(big, "out.gguf")
    assert peak < 128 * MIB
    assert seconds < 5 * swap(small, "small-out.gguf")[0]
    if not more[0].startswith("--dry"):
        out = gguftool.open_model(str(tmp_path / "out.gguf"))
        assert out.tensors["small.weight"].extent.read() == data(donor)["small.weight"]
        assert out.tensors["big.weight"].nbytes == size


@pytest.mark.parametrize(("kind", "other"), [("Q8_0", "Q4_K"), ("Q4_K", "Q8_0")])
def test_in_place_a_smaller_tensor_is_refused_as_a_larger_one_is(kind: str, other: str, tmp_path: Path) -> None:
    base, donor = quant(tmp_path / "base.gguf", kind), quant(tmp_path / "donor.gguf", other)
    with pytest.raises(PlanError, match=r"attn_q.weight' takes .* bytes, but its place has"):
        plan_swap(gguftool.open_model(base), open_donor(donor), ["attn_q"], None, OutputOptions())
