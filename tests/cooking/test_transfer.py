"""A mix goes over to another model: by name, by relative depth, by the nearest type that can be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.analysis.recipe_compact import extract
from gguftool.cooking.transfer import Transfer, TransferOptions, transfer_recipe, transfer_words
from gguftool.errors import PlanError
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP
from gguftool.format.ggml import find_type, nbytes
from tests.support import builders as b
from tests.support.command import run_gguftool

WIDTH = 512


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> b.Tensor:
    """A tensor of zeros, of any type."""
    traits = find_type(kind)
    assert traits is not None
    size = nbytes(traits.id, dims)
    assert size is not None
    return b.Tensor(name, dims, traits.id, bytes(size))


def _model(path: Path, layers: int, types: dict[str, str], *, parts: tuple[str, ...] = (), width: int = WIDTH) -> str:
    """A model with `parts` in each layer; `types` by part, or by part and layer as ``ffn_up@3``, Q8_0 for others."""
    names = [("token_embd.weight", "token_embd"), ("output_norm.weight", "norm")]
    for layer in range(layers):
        names += [(f"blk.{layer}.{part}.weight", f"{part}@{layer}") for part in parts or ("attn_v", "ffn_up")]
        names.append((f"blk.{layer}.attn_norm.weight", "norm"))
    tensors = []
    for name, key in names:
        kind = "F32" if key == "norm" else types.get(key, types.get(key.partition("@")[0], "Q8_0"))
        dims = (width,) if key == "norm" else (width, 4, 2) if "_exps" in name else (width, 4)
        tensors.append(_tensor(name, kind, dims))
    path.write_bytes(b.gguf(b.llama_kvs(layers=layers), tensors))
    return str(path)


def _types(transfer: Transfer, layers: int, part: str) -> list[str]:
    rules = [transfer.recipe.match(f"blk.{layer}.{part}.weight") for layer in range(layers)]
    return [rule.target if rule else "" for rule in rules]


def test_to_itself_it_is_the_recipe_of_the_model(tmp_path: Path) -> None:
    model = _model(tmp_path / "a.gguf", 3, {"ffn_up": "Q4_K", "ffn_up@0": "Q6_K", "token_embd": "Q5_K"})
    transfer = transfer_recipe(model, model)
    assert transfer.recipe.rules == extract(model).rules
    assert not transfer.substitutions
    assert not transfer.matched
    assert transfer.old == transfer.new


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (8, ["q6_K", "q6_K", "q4_K", "q4_K", "q4_K", "q4_K", "q5_K", "q5_K"]),
        (4, ["q6_K", "q4_K", "q4_K", "q5_K"]),
        (2, ["q6_K", "q5_K"]),
        (1, ["q6_K"]),
    ],
)
def test_layers_are_matched_in_proportion_and_the_ends_stay_the_ends(
    tmp_path: Path, layers: int, expected: list[str]
) -> None:
    old = _model(tmp_path / "a.gguf", 4, {"ffn_up": "Q4_K", "ffn_up@0": "Q6_K", "ffn_up@3": "Q5_K"})
    new = _model(tmp_path / "b.gguf", layers, {"ffn_up": "BF16"})
    assert _types(transfer_recipe(old, new), layers, "ffn_up") == expected


def test_layers_count_among_those_that_have_such_a_tensor(tmp_path: Path) -> None:
    """Dense layers first, then experts: the first layer with experts is the first of the mix, whatever its number."""
    old = tmp_path / "a.gguf"
    tensors = [_tensor("blk.0.ffn_up.weight", "Q6_K", (WIDTH, 4))]
    tensors += [_tensor(f"blk.{at}.ffn_up_exps.weight", kind, (WIDTH, 4, 2)) for at, kind in ((1, "Q2_K"), (2, "Q3_K"))]
    old.write_bytes(b.gguf(b.llama_kvs(layers=3), tensors))
    new = tmp_path / "b.gguf"
    more = [_tensor(f"blk.{at}.ffn_up_exps.weight", "Q8_0", (WIDTH, 4, 2)) for at in (3, 4, 5, 6)]
    new.write_bytes(b.gguf(b.llama_kvs(layers=7), more))
    types = _types(transfer_recipe(old, new), 7, "ffn_up_exps")
    assert types[3:] == ["q2_K", "q2_K", "q3_K", "q3_K"]


def test_experts_take_the_types_of_a_dense_model_and_that_is_told(tmp_path: Path) -> None:
    old = _model(tmp_path / "a.gguf", 2, {"ffn_up": "Q3_K", "attn_v": "Q6_K"})
    new = _model(tmp_path / "b.gguf", 2, {}, parts=("attn_v", "ffn_up_exps"))
    transfer = transfer_recipe(old, new)
    assert _types(transfer, 2, "ffn_up_exps") == ["q3_K", "q3_K"]
    assert transfer.matched == (("ffn_up_exps.weight", "ffn_up.weight"),)
    assert "ffn_up_exps.weight is only there; it takes the types of ffn_up.weight" in transfer_words(transfer)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("IQ4_KS", "iq4_xs"), ("IQ2_KT", "iq2_xxs"), ("Q6_0", "q6_K"), ("IQ4_K", "iq4_nl"), ("Q4_K_R4", "q4_K")],
)
def test_types_that_the_engine_lacks_become_the_nearest(tmp_path: Path, kind: str, expected: str) -> None:
    old = _model(tmp_path / "a.gguf", 2, {"ffn_up": kind})
    transfer = transfer_recipe(old, _model(tmp_path / "b.gguf", 2, {}))
    (one,) = transfer.substitutions
    assert (one.given, one.reason) == (expected, f"llama.cpp has no {one.wanted}")
    assert one.tensors == ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    assert not transfer_recipe(old, old, TransferOptions(engine=IK_LLAMA_CPP)).substitutions


def test_types_that_a_width_forbids_become_those_that_fit(tmp_path: Path) -> None:
    old = _model(tmp_path / "a.gguf", 2, {"ffn_up": "Q4_K", "attn_v": "Q8_0"})
    transfer = transfer_recipe(old, _model(tmp_path / "b.gguf", 2, {}, width=288))
    (one,) = transfer.substitutions
    assert (one.wanted, one.given) == ("q4_K", "iq4_nl")
    assert one.reason == "rows of 288 are not whole blocks of q4_K"


def test_a_type_for_models_that_are_trained_for_it_stands_in_for_no_other(tmp_path: Path) -> None:
    """mxfp4 has exactly the bits of iq4_ks, and rows of 32."""
    old = _model(tmp_path / "a.gguf", 1, {"ffn_up": "IQ4_KS", "attn_v": "MXFP4"})
    transfer = transfer_recipe(old, _model(tmp_path / "b.gguf", 1, {}, width=96))
    assert _types(transfer, 1, "ffn_up") == ["iq4_nl"]
    assert _types(transfer, 1, "attn_v") == ["mxfp4"]


def test_substitutes_come_first_and_slow_types_are_avoided(tmp_path: Path) -> None:
    model = _model(tmp_path / "a.gguf", 2, {"ffn_up": "IQ1_M", "attn_v": "IQ3_S", "token_embd": "Q6_K"})
    options = TransferOptions(engine=IK_LLAMA_CPP, substitutes=(("iq1_m", "iq1_s_r4"),), avoid=("iq3_s", "IQ3_S_R4"))
    transfer = transfer_recipe(model, model, options)
    by_type = {one.wanted: (one.given, one.reason) for one in transfer.substitutions}
    assert by_type["iq1_m"] == ("iq1_s_r4", "by --substitute")
    assert by_type["iq3_s"][0] not in ("iq3_s", "iq3_s_r4")
    assert by_type["iq3_s"][1] == "it is slow there, by --avoid"


def test_on_cuda_packed_rows_without_a_kernel_are_avoided(tmp_path: Path) -> None:
    model = _model(tmp_path / "a.gguf", 1, {"ffn_up": "IQ4_NL_R4"})
    assert not transfer_recipe(model, model, TransferOptions(engine=IK_LLAMA_CPP)).substitutions
    (one,) = transfer_recipe(model, model, TransferOptions(engine=IK_LLAMA_CPP, cuda=True)).substitutions
    assert (one.given, one.reason) == ("iq4_nl", "ik_llama.cpp does not multiply with it on CUDA")


def test_what_has_no_mix_and_what_is_no_type_are_one_message(tmp_path: Path) -> None:
    empty = tmp_path / "e.gguf"
    empty.write_bytes(b.gguf(b.llama_kvs(), [_tensor("output_norm.weight", "F32", (WIDTH,))]))
    model = _model(tmp_path / "a.gguf", 1, {})
    with pytest.raises(PlanError, match="no weights of a known type"):
        transfer_recipe(empty, model)
    with pytest.raises(PlanError, match=r"iq9_z.*; .*q77"):
        transfer_recipe(model, model, TransferOptions(substitutes=(("q4_K", "iq9_z"),), avoid=("q77",)))


def test_a_name_with_a_line_break_is_no_rule_of_the_recipe(tmp_path: Path) -> None:
    old, new = _model(tmp_path / "a.gguf", 1, {}), tmp_path / "b.gguf"
    new.write_bytes(b.gguf(b.llama_kvs(), [_tensor("blk.0.evil\n.*=f16\n.weight", "Q8_0", (WIDTH, 4))]))
    (matched,) = (line for line in transfer_words(transfer_recipe(old, str(new))) if "is only there" in line)
    assert "\n" not in matched


def test_the_command_prints_a_recipe_with_both_sizes_above_it(tmp_path: Path) -> None:
    old = _model(tmp_path / "a.gguf", 2, {"ffn_up": "IQ1_M", "token_embd": "Q6_K"})
    new = _model(tmp_path / "b.gguf", 4, {}, width=1024)
    words = ("recipe", "extract", old, "--for", new, "--engine", "ik_llama.cpp", "--substitute", "iq1_m=iq1_s_r4")
    done = run_gguftool(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("# a.gguf: ")
    assert " bits per weight; by this recipe " in lines[0]
    assert any(line.startswith("# iq1_m becomes iq1_s_r4 in 4 tensors (blk.0.ffn_up.weight") for line in lines)
    assert r"^blk\.[0-3]\.ffn_up\.weight$=iq1_s_r4" in lines
    assert done.stderr.decode().count("note: ") == sum(line.startswith("# ") for line in lines)
    alone = run_gguftool("recipe", "extract", old, "--avoid", "q4_K")
    assert alone.returncode == 2
    assert b"go with --for MODEL" in alone.stderr
