"""Which input each tensor comes from: recipes, labels, agreement, fallbacks, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.errors import PlanError
from gguftool.surgery.inputs import open_inputs
from tests.support.mix_models import NORMS, SHAPES, merge_plan, merged, origin, per_tensor, quant

Q8, Q4 = "Q8_0.gguf", "Q4_K.gguf"


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """The model as Q8_0 and as Q4_K, under names that say so."""
    return [quant(tmp_path / Q8, "Q8_0"), quant(tmp_path / Q4, "Q4_K")]


def problems(*arguments: object, **options: object) -> str:
    with pytest.raises(PlanError) as caught:
        merge_plan(*arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_exact_type_wins_and_nothing_is_remarked(tmp_path: Path, pair: list[str]) -> None:
    recipe = "norm=f32\nattn=q4_K\n.*=q8_0\n"
    plan = merge_plan(["q4_K=" + pair[0], "q8_0=" + pair[1]], tmp_path / "out.gguf", recipe)
    assert [remark for remark in plan.remarks if "taken" in remark] == [
        f"f32 in 2 inputs, taken from {pair[0]}: {', '.join(NORMS)}"
    ]
    model = merged(pair, tmp_path / "out.gguf", recipe)
    for name in SHAPES:
        assert origin(model, name, pair) == (Q4 if "attn" in name and "norm" not in name else Q8)
    assert list(model.tensors) == list(SHAPES)


def test_a_label_stands_for_what_a_set_holds_in_other_types(tmp_path: Path) -> None:
    """A published q4_K set holds some Q6_K: `.*=q4_K` means that set."""
    impure = quant(tmp_path / "M-Q4_K.gguf", "Q4_K", types={"output.weight": "Q6_K"})
    q8 = quant(tmp_path / "M-Q8_0.gguf", "Q8_0")
    plan = merge_plan([q8, impure], tmp_path / "out.gguf", ".*=q4_K")
    said = [remark for remark in plan.remarks if "output.weight" in remark]
    assert said == [f"wanted q4_K, taken as q6_K from the input labelled q4_K ({impure}): output.weight"]
    model = merged([q8, impure], tmp_path / "out.gguf", ".*=q4_K")
    assert origin(model, "output.weight", [q8, impure]) == "M-Q4_K.gguf"


def test_an_exact_type_elsewhere_comes_before_the_label(tmp_path: Path) -> None:
    impure = quant(tmp_path / "M-Q4_K.gguf", "Q4_K", types={"output.weight": "Q6_K"})
    exact = quant(tmp_path / "M-Q8_0.gguf", "Q8_0", types={"output.weight": "Q4_K"})
    model = merged([impure, exact], tmp_path / "out.gguf", ".*=q4_K")
    assert origin(model, "output.weight", [impure, exact]) == "M-Q8_0.gguf"


@pytest.mark.parametrize("by", ["argument", "name", "map"])
def test_where_labels_come_from(tmp_path: Path, by: str) -> None:
    folder = per_tensor(tmp_path / "set", "M-X-Q4_K-SPECIAL_TENSOR" if by == "name" else "M", "Q6_K")
    if by == "map":
        zeros = "0" * 64
        line = f"M-X-Q4_K-SPECIAL_TENSOR-00002-of-00008.gguf:{zeros}:x:shape=(1,):dtype=q4_k:elements=1:bytes=1\n"
        (folder / "tensors.map").write_text(line)
    spec = f"q4-K={folder}" if by == "argument" else str(folder)
    plan = merge_plan([spec], tmp_path / "out.gguf", "norm=f32\n.*=q4_K")
    assert any(remark.startswith("wanted q4_K, taken as q6_K from the input labelled q4_K") for remark in plan.remarks)


def test_several_maps_beside_a_set_give_no_label(tmp_path: Path) -> None:
    folder = per_tensor(tmp_path / "set", "M", "Q6_K")
    for kind in ("Q4_K", "Q8_0"):
        line = f"M-{kind}-00002-of-00008.gguf:{'0' * 64}:x:shape=(1,):dtype={kind}:elements=1:bytes=1\n"
        (folder / f"tensors.{kind.lower()}.map").write_text(line)
    (found,) = open_inputs([str(folder)])
    assert found.labels == ()


def test_a_broken_map_gives_no_label_and_ends_nothing(tmp_path: Path) -> None:
    """Merge verifies against maps and refuses then; with --no-verify the map must not matter."""
    folder = per_tensor(tmp_path / "set", "M", "Q6_K")
    (folder / "tensors.map").write_text("not a map\n")
    (found,) = open_inputs([str(folder)])
    assert found.labels == ()


def test_an_equals_sign_in_a_file_name_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quant(Path("Q4_K=a.gguf"), "Q8_0")
    (found,) = open_inputs(["Q4_K=a.gguf"])
    assert (found.name, "q4_k" in found.labels) == ("Q4_K=a.gguf", False)


def test_a_label_given_to_a_file_named_before_is_not_lost(tmp_path: Path) -> None:
    path = quant(tmp_path / "a.gguf", "Q8_0")
    (found,) = open_inputs([path, "best=" + path])
    assert "best" in found.labels


def test_what_no_engine_quantizes_comes_in_the_type_that_the_inputs_agree_on(tmp_path: Path) -> None:
    router = {**SHAPES, "blk.0.ffn_gate_inp.weight": (256, 4)}
    types = {"blk.0.ffn_gate_inp.weight": "F32"}
    inputs = [quant(tmp_path / f"m{kind}x.gguf", kind, types=types, shapes=router) for kind in ("Q8_0", "Q4_K")]
    plan = merge_plan(inputs, tmp_path / "out.gguf", "attn=q4_K\n.*=q8_0")
    agreed = [remark for remark in plan.remarks if "every input (no engine quantizes it)" in remark]
    assert len(agreed) == 2  # under q4_K and under q8_0
    for name in (*NORMS, "blk.0.ffn_gate_inp.weight"):
        assert any(name in remark for remark in agreed)


def test_disagreement_on_what_no_engine_quantizes_is_a_problem(tmp_path: Path) -> None:
    a = quant(tmp_path / "ma.gguf", "Q8_0")
    c = quant(tmp_path / "mb.gguf", "Q4_K", types={"output_norm.weight": "F16"})
    said = problems([a, c], tmp_path / "out.gguf", "output_norm=bf16\nnorm=f32\n.*=q8_0")
    assert "no input has it as bf16; the inputs have f16, f32: output_norm.weight" in said


def test_matrices_are_never_taken_by_agreement(tmp_path: Path) -> None:
    a = quant(tmp_path / "ma.gguf", "Q8_0")
    said = problems([a], tmp_path / "out.gguf", "norm=f32\nattn_q=q4_K\n.*=q8_0")
    assert "no input has it as q4_K; the inputs have q8_0: blk.0.attn_q.weight" in said


def test_strict_takes_exact_types_only(tmp_path: Path, pair: list[str]) -> None:
    said = problems(pair, tmp_path / "out.gguf", "attn=q4_K\n.*=q8_0", strict=True)
    for name in NORMS:
        assert name in said
    assert "--strict forbids" in said
    merge_plan(pair, tmp_path / "out.gguf", "norm=f32\nattn=q4_K\n.*=q8_0", strict=True)


SHORT = {**SHAPES, "blk.0.ffn_down.weight": (96, 7)}


def test_a_fallback_is_taken_only_where_allowed_and_said(tmp_path: Path) -> None:
    """Rows of 96 are no whole Q4_K blocks; llama-quantize writes Q5_0 there."""
    inputs = [
        quant(tmp_path / "mq.gguf", "Q4_K", shapes=SHORT, types={"blk.0.ffn_down.weight": "Q5_0"}),
        quant(tmp_path / "mp.gguf", "Q8_0", shapes=SHORT),
    ]
    recipe = "norm=f32\n.*=q4_K"
    said = problems(inputs, tmp_path / "out.gguf", recipe)
    assert "no input has it as q4_K; the inputs have q5_0, q8_0: blk.0.ffn_down.weight" in said
    plan = merge_plan(inputs, tmp_path / "out.gguf", recipe, allow_fallback=True)
    assert "wanted q4_K, but its rows are too short; taken as the fallback q5_0: blk.0.ffn_down.weight" in plan.remarks


def test_a_fallback_is_not_taken_where_the_type_fits_the_rows(tmp_path: Path) -> None:
    inputs = [quant(tmp_path / "mq.gguf", "Q4_K", types={"blk.0.ffn_down.weight": "Q5_0"})]
    said = problems(inputs, tmp_path / "out.gguf", "norm=f32\n.*=q4_K", allow_fallback=True)
    assert "the inputs have q5_0: blk.0.ffn_down.weight" in said


@pytest.mark.parametrize("dims", [(), (96,), (96, 2)])
def test_types_that_nobody_knows_have_no_fallback_and_end_nothing(tmp_path: Path, dims: tuple[int, ...]) -> None:
    shapes = {**SHAPES, "odd.weight": dims}
    a = quant(tmp_path / "ma.gguf", "Q8_0", shapes=shapes, types={"odd.weight": "F32"})
    c = quant(tmp_path / "mb.gguf", "Q8_0", shapes=shapes, types={"odd.weight": "F16"})
    for target in ("type#999", "q4_K"):
        said = problems([a, c], tmp_path / "out.gguf", f"odd={target}\nnorm=f32\n.*=q8_0", allow_fallback=True)
        assert f"no input has it as {target}; the inputs have f16, f32: odd.weight" in said


def test_at_label_picks_an_input_outright(tmp_path: Path) -> None:
    """Two Q4_K sets with different imatrix."""
    inputs = [quant(tmp_path / f"{name}.gguf", "Q4_K") for name in ("one", "two")]
    labelled = [f"plain={inputs[0]}", f"wiki-text={inputs[1]}"]
    model = merged(labelled, tmp_path / "out.gguf", "attn=@WIKI_text\n.*=@plain")
    for name in SHAPES:
        assert origin(model, name, inputs) == ("two.gguf" if "attn" in name else "one.gguf")


def test_at_label_finds_the_part_of_the_labelled_folder_that_has_the_tensor(tmp_path: Path) -> None:
    """One LABEL=FOLDER may hold several partial sets."""
    per_tensor(tmp_path / "f", "A", "Q4_K", only=(1, 2, 3, 4))
    per_tensor(tmp_path / "f", "B", "Q4_K", only=(5, 6, 7, 8))
    model = merged([f"mine={tmp_path / 'f'}"], tmp_path / "out.gguf", ".*=@mine")
    assert list(model.tensors) == list(SHAPES)


def test_an_unknown_label_is_a_problem_with_the_labels_there_are(tmp_path: Path, pair: list[str]) -> None:
    said = problems(["x=" + pair[0], pair[1]], tmp_path / "out.gguf", "attn=@y\n.*=@x")
    assert "no input is labelled 'y'; the labels are q4_k, q8_0, x" in said


def test_a_label_whose_input_lacks_the_tensor_is_a_problem(tmp_path: Path, pair: list[str]) -> None:
    part = quant(tmp_path / "part.gguf", "Q4_K", shapes={"output.weight": SHAPES["output.weight"]}, llama=False)
    said = problems([*pair, "part=" + part], tmp_path / "out.gguf", "output.weight=@part\n.*=q8_0")
    assert f"not in the input @part ({part}): blk.0.attn_output.weight" in said


def test_where_several_qualify_the_earlier_wins_and_it_is_said(tmp_path: Path) -> None:
    inputs = [quant(tmp_path / f"{name}.gguf", "Q4_K") for name in ("one", "two")]
    for order in (inputs, inputs[::-1]):
        plan = merge_plan(order, tmp_path / "out.gguf", "norm=f32\n.*=q4_K")
        assert any(remark.startswith(f"q4_K in 2 inputs, taken from {order[0]}: ") for remark in plan.remarks)
        assert {copy.extent.source.name for copy in plan.outputs[0].copies} == {order[0]}


def test_without_a_recipe_each_tensor_comes_from_exactly_one_input(tmp_path: Path, pair: list[str]) -> None:
    said = problems(pair, tmp_path / "out.gguf")
    assert f"in several inputs ({pair[0]}, {pair[1]}); choose one with --recipe: " in said


@pytest.mark.parametrize("name", ["blk.0.attn_output.weight", "output.weight", "token_embd.weight"])
def test_a_tensor_that_no_rule_matches_is_an_error_wherever_it_stands(
    tmp_path: Path, pair: list[str], name: str
) -> None:
    rules = "\n".join(f"^{other}$=q8_0" for other in SHAPES if other not in (name, *NORMS))
    said = problems(pair, tmp_path / "out.gguf", f"norm=f32\n{rules}")
    assert f"matched by no rule of the recipe: {name}" in said


def test_a_rule_that_matches_no_tensor_is_an_error(tmp_path: Path, pair: list[str]) -> None:
    said = problems(pair, tmp_path / "out.gguf", "norm=f32\nblk\\.9\\.=q4_K\n.*=q8_0")
    assert r"this rule matches no tensor: line 2: blk\.9\.=q4_K" in said


def test_a_rule_whose_tensors_are_all_taken_is_remarked(tmp_path: Path, pair: list[str]) -> None:
    plan = merge_plan(pair, tmp_path / "out.gguf", ".*=q8_0\nattn_q=q4_K")
    assert "every tensor that this rule matches is taken by an earlier rule: line 2: attn_q=q4_K" in plan.remarks


def test_the_first_rule_that_matches_wins(tmp_path: Path, pair: list[str]) -> None:
    r"""`output\.weight` also matches blk.0.attn_output.weight."""
    for first, expected in ((r"output\.weight", Q4), (r"^output\.weight$", Q8)):
        model = merged(pair, tmp_path / f"{expected}.out", f"norm=f32\n{first}=q4_K\nattn_output=q8_0\n.*=q8_0")
        assert origin(model, "blk.0.attn_output.weight", pair) == expected
        assert origin(model, "output.weight", pair) == Q4


@pytest.mark.parametrize("text", ["\ufeff.*=q8_0\r\n", " .*=Q8_0  # all\r\n", ".*=q8-0=locked", "#x\n\n.*=q8_0"])
def test_spellings_of_recipes_that_trip_other_tools(tmp_path: Path, pair: list[str], text: str) -> None:
    model = merged(pair, tmp_path / "out.gguf", text)
    assert origin(model, "output.weight", pair) == Q8


def test_all_problems_are_told_in_one_error(tmp_path: Path, pair: list[str]) -> None:
    recipe = "nothing=f32\nattn_q=iq4_xs\nattn_output=@none\nffn=q8_0\nattn_norm=f32\noutput\\.weight=q4_K"
    said = problems(pair, tmp_path / "out.gguf", recipe)
    for part in (
        "the inputs have q4_K, q8_0: blk.0.attn_q.weight",
        "no input is labelled 'none'",
        "matched by no rule of the recipe: token_embd.weight, output_norm.weight",
        "this rule matches no tensor: line 1: nothing=f32",
    ):
        assert part in said
    assert said.startswith("cannot merge, 4 problems")


def test_hostile_names_are_escaped_in_remarks_and_problems(tmp_path: Path) -> None:
    shapes = {**SHAPES, "evil\x1b[2J\n.weight": (256, 2)}
    a = quant(tmp_path / "ma.gguf", "Q8_0", shapes=shapes)
    said = problems([a], tmp_path / "out.gguf", "norm=f32\nevil=q4_K\n.*=q8_0")
    assert "evil\\x1b[2J\\n.weight" in said
    assert "\x1b" not in said


def test_a_name_that_no_input_has_is_said_so(tmp_path: Path) -> None:
    whole = quant(tmp_path / "whole.gguf", "Q8_0")
    part = per_tensor(tmp_path / "p", "P-Q4_K", "Q4_K", only=(1, 2, 3))
    said = problems([str(part)], tmp_path / "out.gguf", kv_from=whole)
    assert "in no input: blk.0.attn_q.weight, " in said
