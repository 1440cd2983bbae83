"""What a file says of its own quantization after its tensors were chosen from several sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gguftool
from gguftool.format.ftypes import ftypes_of
from gguftool.format.ggml import find_type, nbytes
from gguftool.format.kv import ValueType, make_kv
from gguftool.surgery.metadata import OutputMetadata, majority_type, with_preset
from tests.support import builders as b
from tests.support.command import run_gguftool
from tests.support.mix_models import FILE_TYPE, QUANT_VERSION, SHAPES, merge_plan, merged, quant, value

# Numbers of general.file_type, from include/llama.h of llama.cpp and ik_llama.cpp
Q8_0, Q4_K_M, Q6_K, BF16, IQ4_KS, IQ4_XS = 7, 15, 18, 32, 145, 30
IMATRIX = "quantize.imatrix.file"


def ftype(number: int) -> b.KV:
    return b.KV(FILE_TYPE, b.U32, number)


def imatrix(name: str) -> tuple[b.KV, ...]:
    return (b.KV(IMATRIX, b.STR, name), b.KV("quantize.imatrix.chunks_count", b.I32, 128))


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [
        quant(tmp_path / "Q8_0.gguf", "Q8_0", ftype(Q8_0), *imatrix("eight.dat")),
        quant(tmp_path / "Q4_K.gguf", "Q4_K", ftype(Q4_K_M), *imatrix("four.dat")),
    ]


def test_the_majority_counts_elements_of_matrices_but_embeddings(tmp_path: Path) -> None:
    shapes = {
        "token_embd.weight": (256, 99),
        "output.weight": (256, 99),
        "per_layer_token_embd.weight": (256, 99),
        "big.bias": (9999,),
        "a.weight": (256, 3),
        "b.weight": (256, 1, 2),
        "c.weight": (256, 2),
    }
    types = {"a.weight": "Q4_K", "b.weight": "Q6_K", "c.weight": "Q6_K"}
    model = gguftool.open_model(quant(tmp_path / "a.gguf", "Q8_0", types=types, shapes=shapes))
    assert majority_type(model.tensors.values()) == b.TYPES["Q6_K"][0]


def test_no_matrix_is_no_majority(tmp_path: Path) -> None:
    model = gguftool.open_model(quant(tmp_path / "a.gguf", "Q8_0", shapes={"a.bias": (32,), "output.weight": (256, 2)}))
    assert majority_type(model.tensors.values()) is None


def test_file_type_stays_while_the_donors_majority_stays(tmp_path: Path) -> None:
    donor = quant(tmp_path / "d.gguf", "Q4_K", ftype(14))  # Q4_K_S: another name for the same majority
    other = quant(tmp_path / "o.gguf", "Q8_0", ftype(Q8_0))
    model = merged([donor, other], tmp_path / "out.gguf", "norm=f32\nattn_q=q8_0\n.*=q4_K")
    assert value(model, FILE_TYPE) == 14


def test_file_type_follows_the_majority_and_it_is_remarked(tmp_path: Path, pair: list[str]) -> None:
    plan = merge_plan(pair, tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0")
    assert f"{FILE_TYPE} is now 15 (Q4_K_M), it was Q8_0: most elements are Q4_K" in plan.remarks
    model = merged(pair, tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0")
    assert value(model, FILE_TYPE) == Q4_K_M
    keys = [kv.key for kv in model.kvs]
    assert keys.index(FILE_TYPE) == [kv.key for kv in gguftool.open_model(pair[0]).kvs].index(FILE_TYPE)


def test_the_iks_row_is_taken_where_an_ik_only_type_is_present(tmp_path: Path) -> None:
    """IQ2_S is 28 in llama.cpp, and 29 (IQ2_M) in ik_llama.cpp."""
    b.TYPES.setdefault("IQ2_S", (22, 256, 82, 0))
    bf16 = quant(tmp_path / "b.gguf", "BF16", ftype(BF16))
    iq2 = quant(tmp_path / "i.gguf", "IQ2_S")
    ik = quant(tmp_path / "k.gguf", "IQ4_KS")
    model = merged([bf16, iq2], tmp_path / "1.gguf", "norm=f32\nblk=iq2_s\n.*=bf16")
    assert value(model, FILE_TYPE) == 28
    model = merged([bf16, iq2, ik], tmp_path / "2.gguf", "norm=f32\nattn_q=iq4_ks\nblk=iq2_s\n.*=bf16")
    assert value(model, FILE_TYPE) == 29
    model = merged([bf16, ik], tmp_path / "3.gguf", "norm=f32\nblk=iq4_ks\n.*=bf16")
    assert value(model, FILE_TYPE) == IQ4_KS


def test_a_majority_that_no_file_type_stands_for_leaves_the_key_out(tmp_path: Path) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", ftype(Q8_0))
    other = quant(
        tmp_path / "o.gguf", "Q8_0", types={name: "I32" for name in SHAPES if "blk" in name and "norm" not in name}
    )
    recipe = "norm=f32\nblk=i32\n.*=q8_0"
    plan = merge_plan([donor, other], tmp_path / "out.gguf", recipe, anyway=True)
    assert f"{FILE_TYPE} left out (it was Q8_0): no file type stands for a majority of I32" in plan.remarks
    model = merged([donor, other], tmp_path / "out.gguf", recipe, anyway=True)
    kept = [kv.key for kv in gguftool.open_model(donor).kvs if kv.key != FILE_TYPE]
    assert [kv.key for kv in model.kvs if kv.key != QUANT_VERSION] == kept


def test_keep_file_type_keeps_it(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair, tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0", keep_file_type=True)
    assert value(model, FILE_TYPE) == Q8_0


def test_a_donor_without_a_file_type_gets_none(tmp_path: Path, pair: list[str]) -> None:
    donor = quant(tmp_path / "d.gguf", "Q6_K")
    model = merged([donor, *pair], tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q6_K")
    assert model.get(FILE_TYPE) is None


@pytest.mark.parametrize("old", [b.KV(FILE_TYPE, b.STR, "Q8_0"), b.KV(FILE_TYPE, b.I64, -5), ftype(1024 + Q8_0)])
def test_strange_file_types_end_nothing(tmp_path: Path, pair: list[str], old: b.KV) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", old)
    model = merged([donor, pair[1]], tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0")
    assert value(model, FILE_TYPE) == Q4_K_M


def test_a_donor_of_metadata_alone_votes_by_its_file_type(tmp_path: Path, pair: list[str]) -> None:
    """A lone shard 1 has no tensors to count: its file type says what its set was mostly made of."""
    shards = b.shard_set("D", [(), *(() for _ in SHAPES)])
    head = b.gguf((*b.llama_kvs(), ftype(14), *b.split_kvs(1, len(shards), len(SHAPES))))
    donor = tmp_path / "D-00001-of-00008.gguf"
    donor.write_bytes(head)
    four = merged(pair, tmp_path / "1.gguf", "norm=f32\nblk=q4_K\n.*=q8_0", kv_from=donor)
    assert value(four, FILE_TYPE) == 14
    eight = merged(pair, tmp_path / "2.gguf", "norm=f32\n.*=q8_0", kv_from=donor)
    assert value(eight, FILE_TYPE) == Q8_0


def test_a_donor_that_lacks_tensors_votes_by_its_file_type_too(tmp_path: Path, pair: list[str]) -> None:
    """The few that it has say little of its set."""
    head = (*b.llama_kvs(), ftype(14), *b.split_kvs(1, 8, len(SHAPES)))
    donor = tmp_path / "D-00001-of-00008.gguf"
    donor.write_bytes(b.gguf(head, (typed("blk.0.attn_q.weight", "Q8_0", (256, 6)),)))
    four = merged(pair, tmp_path / "1.gguf", "norm=f32\nblk=q4_K\n.*=q8_0", kv_from=donor)
    assert value(four, FILE_TYPE) == 14


# --- general.quantization_version ---


def test_quantization_version_is_two_where_something_is_quantized(tmp_path: Path) -> None:
    bf16 = quant(tmp_path / "b.gguf", "BF16")
    q8 = quant(tmp_path / "q.gguf", "Q8_0")
    assert value(merged([bf16, q8], tmp_path / "1.gguf", "norm=f32\nattn_q=q8_0\n.*=bf16"), QUANT_VERSION) == 2
    plain = quant(tmp_path / "f.gguf", "F16")
    assert merged([bf16, plain], tmp_path / "2.gguf", "norm=f32\nattn_q=f16\n.*=bf16").get(QUANT_VERSION) is None


@pytest.mark.parametrize("kind", [b.I32, b.U64, b.U32])
def test_a_right_quantization_version_stays_as_it_is_spelled(tmp_path: Path, pair: list[str], kind: int) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", b.KV(QUANT_VERSION, kind, 2))
    model = merged([donor, pair[1]], tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0")
    kv = model.get(QUANT_VERSION)
    assert kv is not None
    assert (kv.type.value, kv.value()) == (kind, 2)


@pytest.mark.parametrize("old", [b.KV(QUANT_VERSION, b.U32, 1), b.KV(QUANT_VERSION, b.STR, "2")])
def test_a_wrong_quantization_version_is_put_right(tmp_path: Path, pair: list[str], old: b.KV) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", old)
    model = merged([donor, pair[1]], tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=q8_0")
    assert value(model, QUANT_VERSION) == 2
    assert sum(kv.key == QUANT_VERSION for kv in model.kvs) == 1


# --- quantize.imatrix.* ---


def test_imatrix_is_that_of_the_one_model_that_gave_all_quantized_tensors(tmp_path: Path, pair: list[str]) -> None:
    bf16 = quant(tmp_path / "b.gguf", "BF16", *imatrix("none.dat"))
    model = merged([bf16, pair[1]], tmp_path / "out.gguf", "norm=f32\nblk=q4_K\n.*=bf16")
    assert value(model, IMATRIX) == "four.dat"
    assert value(model, "quantize.imatrix.chunks_count") == 128
    assert sum(kv.key == IMATRIX for kv in model.kvs) == 1


def test_imatrix_stays_where_all_quantized_tensors_are_the_donors(tmp_path: Path, pair: list[str]) -> None:
    bf16 = quant(tmp_path / "b.gguf", "BF16")
    model = merged([pair[0], bf16], tmp_path / "out.gguf", "norm=f32\nblk=q8_0\n.*=bf16")
    assert value(model, IMATRIX) == "eight.dat"
    donor = [kv.key for kv in gguftool.open_model(pair[0]).kvs]
    assert [kv.key for kv in model.kvs] == [*donor, QUANT_VERSION]


def test_imatrix_of_a_mix_is_dropped_and_it_is_said(tmp_path: Path, pair: list[str]) -> None:
    recipe = "norm=f32\nblk=q4_K\n.*=q8_0"
    plan = merge_plan(pair, tmp_path / "out.gguf", recipe)
    assert "quantize.imatrix.* left out: the quantized tensors come from 2 models" in plan.remarks
    model = merged(pair, tmp_path / "out.gguf", recipe)
    assert [kv.key for kv in model.kvs if "imatrix" in kv.key] == []


@pytest.mark.parametrize("blocks", ["bf16", "q6_K"])
def test_the_donors_imatrix_is_dropped_with_a_remark_where_nothing_comes_of_it(
    tmp_path: Path, pair: list[str], blocks: str
) -> None:
    """Nothing quantized is left, or all of it comes from a model that used no imatrix."""
    other = quant(tmp_path / "o.gguf", blocks.upper())
    recipe = f"norm=f32\n.*={blocks}"
    plan = merge_plan([pair[0], other], tmp_path / "out.gguf", recipe)
    assert any(remark.startswith("quantize.imatrix.* left out") for remark in plan.remarks)
    assert merged([pair[0], other], tmp_path / "out.gguf", recipe).get(IMATRIX) is None


# --- nothing changes ---


def test_nothing_changes_where_all_tensors_are_the_donors(tmp_path: Path, pair: list[str]) -> None:
    odd = (ftype(3), b.KV(QUANT_VERSION, b.U32, 1), *imatrix("odd.dat"))  # untrue, but not ours to judge here
    donor = quant(tmp_path / "d.gguf", "Q6_K", *odd)
    merged([f"d={donor}", *pair], tmp_path / "out.gguf", ".*=@d")
    assert (tmp_path / "out.gguf").read_bytes() == Path(donor).read_bytes()


def test_layout_keys_never_pass(tmp_path: Path, pair: list[str]) -> None:
    layout = (*b.split_kvs(1, 1, len(SHAPES)), b.KV("gguftool.padding", b.ARR, b.Array(b.U8, [0] * 9)))
    donor = quant(tmp_path / "d.gguf", "Q6_K", *layout)
    model = merged([f"d={donor}", *pair], tmp_path / "out.gguf", "blk=q4_K\n.*=@d")
    assert [kv.key for kv in model.kvs if kv.key.startswith(("split.", "gguftool."))] == []


@pytest.mark.parametrize("order", [("Q4_K", "Q6_K"), ("Q6_K", "Q4_K")])
def test_of_types_with_equally_many_elements_the_one_of_the_lower_number_is_the_majority(
    order: tuple[str, str], tmp_path: Path
) -> None:
    types = dict(zip(("a.weight", "b.weight"), order, strict=True))
    shapes = {"a.weight": (256, 3), "b.weight": (256, 3)}
    model = gguftool.open_model(quant(tmp_path / "a.gguf", "Q8_0", types=types, shapes=shapes))
    assert majority_type(model.tensors.values()) == b.TYPES["Q4_K"][0] < b.TYPES["Q6_K"][0]


# --- the true file type of one whole set ---


def typed(name: str, kind: str, dims: tuple[int, ...]) -> b.Tensor:
    """A tensor of any type; the data does not matter."""
    traits = find_type(kind)
    assert traits is not None
    return b.Tensor(name, dims, traits.id, bytes(nbytes(traits.id, dims) or 0))


def one_set(folder: Path, file_type: int, *tensors: b.Tensor) -> Path:
    path = folder / "whole.gguf"
    path.write_bytes(b.gguf(b.llama_kvs(b.KV("general.file_type", b.U32, file_type)), tensors))
    return path


MOSTLY_Q4_K = (
    typed("blk.0.attn_q.weight", "Q4_K", (256, 8)),
    typed("blk.0.ffn_up.weight", "BF16", (256, 1)),
    typed("output.weight", "BF16", (256, 64)),
)


def test_a_file_type_that_contradicts_a_whole_set_gets_a_remark_with_the_option(tmp_path: Path) -> None:
    path = one_set(tmp_path, 32, *MOSTLY_Q4_K)
    plan = merge_plan([path], tmp_path / "out.gguf")
    assert plan.remarks == (
        "general.file_type says 32 (BF16), but most elements are q4_K; --true-file-type writes 15 (Q4_K_M)",
    )
    model = merged([path], tmp_path / "out.gguf")
    assert value(model, FILE_TYPE) == 32


def test_true_file_type_mends_it(tmp_path: Path) -> None:
    done = run_gguftool("merge", one_set(tmp_path, 32, *MOSTLY_Q4_K), "--true-file-type", "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    model = gguftool.open_model(tmp_path / "out.gguf")
    numbers = {kv.key: kv.value() for kv in model.kvs if kv.type is ValueType.UINT32}
    assert (numbers[FILE_TYPE], numbers[QUANT_VERSION]) == (15, 2)


@pytest.mark.parametrize(
    ("file_type", "kind", "contradiction"),
    [
        (15, "Q4_K", False),
        (14, "Q4_K", False),
        (28, "IQ2_XS", False),
        (38, "Q8_0", False),  # a dense model under MXFP4_MOE
        (38, "MXFP4", False),
        (15, "Q5_K", True),
        (0, "Q8_0", True),
        (32, "F16", False),
        (7, "F16", True),
        (999, "Q4_K", False),
    ],
)
def test_contradictions(tmp_path: Path, file_type: int, kind: str, contradiction: bool) -> None:
    path = one_set(tmp_path, file_type, typed("blk.0.attn_q.weight", kind, (256, 8)))
    remarks = merge_plan([path], tmp_path / "out.gguf").remarks
    assert any("--true-file-type" in remark for remark in remarks) is contradiction


def test_fallbacks_are_no_contradiction(tmp_path: Path) -> None:
    path = one_set(tmp_path, 15, typed("blk.0.attn_q.weight", "Q5_0", (96, 8)))
    assert merge_plan([path], tmp_path / "out.gguf").remarks == ()


def test_a_model_of_mostly_mxfp4_has_a_file_type(tmp_path: Path) -> None:
    path = one_set(tmp_path, 32, typed("blk.0.attn_q.weight", "MXFP4", (256, 8)))
    assert "--true-file-type writes 38 (MXFP4_MOE)" in merge_plan([path], tmp_path / "out.gguf").remarks[0]


def plan_remarks(*sources: str | Path, recipe: str, folder: Path, **options: Any) -> tuple[str, ...]:
    return tuple(merge_plan([str(source) for source in sources], folder / "out.gguf", recipe, **options).remarks)


BLOCKS_Q4_K = "norm=f32\nblk=q4_K\n.*=q8_0"


# --- what the remarks say, exactly ---


def test_the_reason_for_a_lost_imatrix_is_that_nothing_is_quantized(tmp_path: Path, pair: list[str]) -> None:
    other = quant(tmp_path / "o.gguf", "BF16")
    remarks = plan_remarks(pair[0], other, recipe="norm=f32\n.*=bf16", folder=tmp_path)
    assert "quantize.imatrix.* left out: no tensor is quantized" in remarks


def test_the_reason_for_a_lost_imatrix_is_that_the_other_model_has_none(tmp_path: Path, pair: list[str]) -> None:
    other = quant(tmp_path / "o.gguf", "Q6_K")
    remarks = plan_remarks(pair[0], other, recipe="norm=f32\n.*=q6_K", folder=tmp_path)
    assert "quantize.imatrix.* left out: the model that the quantized tensors come from has no such keys" in remarks


def test_the_imatrix_of_an_input_that_is_not_the_donor_is_missed_too(tmp_path: Path, pair: list[str]) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0")
    remarks = plan_remarks(donor, pair[1], recipe=BLOCKS_Q4_K, folder=tmp_path)
    assert "quantize.imatrix.* left out: the quantized tensors come from 2 models" in remarks


def test_nothing_is_said_of_an_imatrix_that_no_input_has(tmp_path: Path) -> None:
    many = [b.KV(f"x.{number}", b.U8, 1) for number in range(300)]
    sources = [quant(tmp_path / f"{kind}.gguf", kind, *many) for kind in ("Q8_0", "Q4_K")]
    assert not any("imatrix" in remark for remark in plan_remarks(*sources, recipe=BLOCKS_Q4_K, folder=tmp_path))


def test_models_of_one_imatrix_keep_it_in_whatever_order_their_keys_are(tmp_path: Path) -> None:
    entries = (b.KV(IMATRIX, b.STR, "z.dat"), b.KV("quantize.imatrix.dataset", b.STR, "a.txt"))
    sources = [
        quant(tmp_path / "Q8_0.gguf", "Q8_0", *entries),
        quant(tmp_path / "Q4_K.gguf", "Q4_K", *reversed(entries)),
    ]
    model = merged(sources, tmp_path / "out.gguf", BLOCKS_Q4_K)
    assert [kv.key for kv in model.kvs if "imatrix" in kv.key] == [IMATRIX, "quantize.imatrix.dataset"]
    assert value(model, IMATRIX) == "z.dat"


@pytest.mark.parametrize(
    "other",
    [
        (b.KV(IMATRIX, b.STR, "y.dat"),),
        (b.KV(IMATRIX, b.I32, 5),),
        (),
        (b.KV(IMATRIX, b.STR, "z.dat"), b.KV("quantize.imatrix.chunks_count", b.I32, 128)),
    ],
)
def test_models_of_different_imatrices_keep_none(tmp_path: Path, other: tuple[b.KV, ...]) -> None:
    sources = [
        quant(tmp_path / "Q8_0.gguf", "Q8_0", b.KV(IMATRIX, b.STR, "z.dat")),
        quant(tmp_path / "Q4_K.gguf", "Q4_K", *other),
    ]
    assert merged(sources, tmp_path / "out.gguf", BLOCKS_Q4_K).get(IMATRIX) is None


@pytest.mark.parametrize(
    ("old", "before"), [(b.KV(FILE_TYPE, b.STR, "Q8_0"), "no number"), (b.KV(FILE_TYPE, b.U64, 7), "Q8_0")]
)
def test_the_old_file_type_is_named(tmp_path: Path, pair: list[str], old: b.KV, before: str) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", old)
    remarks = plan_remarks(donor, pair[1], recipe=BLOCKS_Q4_K, folder=tmp_path)
    assert f"{FILE_TYPE} is now 15 (Q4_K_M), it was {before}: most elements are Q4_K" in remarks


def test_a_file_type_that_comes_true_is_not_remarked(tmp_path: Path, pair: list[str]) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", ftype(Q4_K_M))
    assert not any(FILE_TYPE in text for text in plan_remarks(donor, pair[1], recipe=BLOCKS_Q4_K, folder=tmp_path))
    wide = quant(tmp_path / "w.gguf", "Q8_0", b.KV(FILE_TYPE, b.U64, Q4_K_M))
    model = merged([wide, pair[1]], tmp_path / "out.gguf", BLOCKS_Q4_K)
    kv = model.get(FILE_TYPE)
    assert kv is not None
    assert (kv.type, kv.value()) == (ValueType.UINT32, Q4_K_M)


def test_without_matrices_the_file_type_stays(tmp_path: Path) -> None:
    shapes = {"token_embd.weight": (256, 4), "output_norm.weight": (256,)}
    sources = [quant(tmp_path / f"{kind}.gguf", kind, ftype(5), shapes=shapes) for kind in ("Q8_0", "Q4_K")]
    model = merged(sources, tmp_path / "out.gguf", "norm=f32\n.*=q4_K")
    assert value(model, FILE_TYPE) == 5


def test_what_is_written_has_the_byte_order_of_the_donor(tmp_path: Path) -> None:
    donor = quant(tmp_path / "d.gguf", "Q8_0", ftype(Q8_0), order=">")
    other = quant(tmp_path / "o.gguf", "Q4_K", ftype(Q4_K_M), order=">")
    model = merged([donor, other], tmp_path / "out.gguf", BLOCKS_Q4_K)
    for key, number in ((FILE_TYPE, Q4_K_M), (QUANT_VERSION, 2)):
        kv = model.get(key)
        assert kv is not None
        assert bytes(kv.raw) == number.to_bytes(4, "big")


def test_where_the_tensors_of_an_earlier_merge_came_from_is_forgotten(tmp_path: Path, pair: list[str]) -> None:
    records = (b.KV("gguftool.source.0.name", b.STR, "x"), b.KV("gguftool.sources", b.STR, "kept"))
    donor = quant(tmp_path / "d.gguf", "Q8_0", *records)
    model = merged([donor, pair[1]], tmp_path / "out.gguf", BLOCKS_Q4_K)
    assert [kv.key for kv in model.kvs if kv.key.startswith("gguftool.")] == ["gguftool.sources"]


# --- contradictions, at their edges ---


@pytest.mark.parametrize(
    ("file_type", "tensors", "contradiction"),
    [
        (15, (("a.weight", "Q5_K", (256, 8)), ("b.weight", "Q4_K", (256, 1))), True),  # one row is a vector
        (15, (("a.weight", "Q5_K", (256, 8)), ("b.weight", "Q4_K", (256, 2))), False),
        (15, (("a.weight", "Q5_K", (256, 8)), ("b.weight", "Q5_0", (32, 2))), False),  # its fallback
        (15, (("a.weight", "Q5_K", (256, 8)), ("b.weight", "Q5_0", (256, 2))), True),  # no need to fall back
        (38, (("a.weight", "Q4_K", (256, 8)),), True),
        (38, (("a.weight", "TQ1_0", (256, 8)),), True),
        (7, (("a.weight", "Q4_K", (256, 8)), ("b.bias", "Q8_0", (256,))), True),
        (0, (("a.weight", "F16", (256, 8)),), False),
        (1, (("a.weight", "I32", (256, 8)),), False),
        (15, (("output.weight", "Q8_0", (256, 8)),), False),
    ],
)
def test_contradictions_at_their_edges(
    tmp_path: Path, file_type: int, tensors: tuple[tuple[str, str, tuple[int, ...]], ...], contradiction: bool
) -> None:
    path = one_set(tmp_path, file_type, *(typed(*tensor) for tensor in tensors))
    remarks = merge_plan([path], tmp_path / "out.gguf", None, anyway=True).remarks
    assert any("--true-file-type" in remark for remark in remarks) is contradiction


def test_a_number_is_needed_for_a_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    for old in ((), (b.KV(FILE_TYPE, b.STR, "BF16"),)):
        path.write_bytes(b.gguf(b.llama_kvs(*old), MOSTLY_Q4_K))
        assert merge_plan([path], tmp_path / "out.gguf").remarks == ()


def test_without_a_true_file_type_the_remark_and_the_option_leave_it_out(tmp_path: Path) -> None:
    path = one_set(tmp_path, 32, typed("blk.0.attn_q.weight", "Q8_K", (256, 8)))
    plan = merge_plan([path], tmp_path / "out.gguf", None, anyway=True)
    assert plan.remarks == (
        "general.file_type says 32 (BF16), but most elements are q8_K; --true-file-type leaves it out",
    )
    model = merged([path], tmp_path / "out.gguf", None, anyway=True, true_file_type=True)
    kept = [kv.key for kv in gguftool.open_model(path).kvs if kv.key != FILE_TYPE]
    assert [kv.key for kv in model.kvs if kv.key != QUANT_VERSION] == kept


def test_a_preset_sets_its_file_type_and_the_version() -> None:
    old = make_kv(FILE_TYPE, ValueType.UINT32, 1)
    other = make_kv("general.name", ValueType.STRING, "x")
    remarks = (f"{FILE_TYPE} says so", "quantize.imatrix.* left out")
    metadata = OutputMetadata(kvs=(old, other), remarks=remarks)
    preset = next(found for found in ftypes_of(15) if found.name == "Q4_K_M")
    made = with_preset(metadata, preset)
    assert [(kv.key, kv.value()) for kv in made.kvs] == [(FILE_TYPE, 15), ("general.name", "x"), (QUANT_VERSION, 2)]
    assert made.remarks == ("quantize.imatrix.* left out",)
