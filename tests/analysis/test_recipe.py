"""Operations on recipes: expand, compact, extract, check, and what llama-quantize falls back to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguftool.analysis.lint.rules import Severity
from gguftool.analysis.recipe import RecipeReport, check
from gguftool.analysis.recipe_compact import compact, expand, extract
from gguftool.errors import Notes, PlanError
from gguftool.format.engine_facts.engines import IK_LLAMA_CPP, LLAMA_CPP
from gguftool.format.engine_facts.fallback import explain_fallback, fallback_type, keeps_type, rows_fallback
from gguftool.format.engine_facts.presets.names import find_preset, presets_of
from gguftool.format.ggml import TYPES, type_name
from gguftool.format.recipe import Recipe, RecipeFormat, parse_any, parse_recipe, render_any, render_recipe, spelling
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.model.preset import PresetMix, preset_types
from gguftool.record import replace
from gguftool.surgery.quantize.target_types import EngineRules, target_types
from tests.support import builders, preset_heads
from tests.support.paths import FIXTURES

MODELS = [
    *(f"tiny-llama-{name}" for name in ("BF16", "IQ4_KS", "IQ4_XS", "IQ5_K", "Q4_K", "Q6_K", "Q8_0")),
    *(f"tiny-qwen3moe-{name}" for name in ("IQ4_KS", "Q4_K")),
]


def targets(recipe: Recipe, names: list[str]) -> dict[str, str | None]:
    return {name: rule.target if rule else None for name, rule in recipe.assign(names).items()}


# --- expand, compact, extract ----------------------------------------------------------------------------------------

ROLES = st.sampled_from(["attn_k.weight", "ffn_up.0.weight", "a", "7", "\n"])
NAMES = (
    st.builds(lambda layer, role: f"blk.{layer}.{role}", st.integers(0, 130), ROLES)
    | st.builds(lambda layer, role: f"v.blk.0{layer}.{role}", st.integers(0, 12), ROLES)
    | st.sampled_from(["output.weight", "blk.1", "1.x", "blk.01.a", "blk.1.a\n", "BLK.1.a", "x=y,z #w"])
    | st.text(max_size=6)
)
ASSIGNED = st.dictionaries(NAMES, st.sampled_from(["q8_0", "iq4_ks", "@A", "type#777"]), max_size=40)


@given(ASSIGNED, st.lists(NAMES, max_size=20))
def test_compact_says_exactly_the_same(assignment: dict[str, str], others: list[str]) -> None:
    compacted = compact(assignment)
    names = list(assignment)
    assert targets(compacted, names) == assignment
    assert not [name for name in others if name not in assignment and compacted.match(name)]
    written_out = expand(compacted, names)
    assert targets(written_out, names) == assignment
    assert len(written_out.rules) == len(names)
    assert compact({name: rule for name, rule in written_out.assign(names).items() if rule}) == compacted


@given(ASSIGNED.filter(bool))
def test_what_is_compacted_can_be_written_and_read(assignment: dict[str, str]) -> None:
    compacted = compact(assignment)
    assert parse_recipe(render_recipe(compacted)) == compacted


def test_the_order_of_rules_does_not_matter_once_expanded() -> None:
    names = ["output.weight", "blk.0.attn_output.weight", "blk.1.attn_output.weight", "other"]
    recipe = parse_recipe("output\\.weight=q6_K=locked\n^blk\\.0\\.attn_output\\.weight$=q4_K")
    written_out = expand(recipe, names)
    turned = Recipe(rules=written_out.rules[::-1])
    assert targets(turned, names) == targets(recipe, names)
    assert targets(recipe, names)["blk.0.attn_output.weight"] == "q6_K"
    assert all(rule.locked for rule in written_out.rules)
    assert len(written_out.rules) == 3


def test_layers_become_ranges() -> None:
    layers = {3, 7, *range(10, 16)}
    assignment = {f"blk.{n}.attn_k.weight": 153 if n in layers else 12 for n in range(16)}
    assert render_recipe(compact(assignment)).splitlines() == [
        r"^blk\.[0-24-689]\.attn_k\.weight$=q4_K",
        r"^blk\.([37]|1[0-5])\.attn_k\.weight$=iq2_kt",
    ]


def test_a_rule_too_long_becomes_several() -> None:
    assignment = {f"blk.{n * n % 999_983}.x": "q8_0" for n in range(1, 4000)}
    compacted = compact(assignment)
    assert 1 < len(compacted.rules) < 50
    assert targets(compacted, list(assignment)) == assignment


def test_bounds_of_recipes_hold_for_what_is_made() -> None:
    with pytest.raises(PlanError, match="10,000 at most"):
        compact({f"t{number}": "f32" for number in range(10_001)})
    with pytest.raises(PlanError, match="longer than a rule"):
        compact({"x" * 5000: "f32"})
    with pytest.raises(PlanError, match="nearest"):
        compact({"x": "q4k"})


@pytest.mark.parametrize("name", MODELS)
def test_extract_reproduces_a_model(name: str) -> None:
    model = open_model(FIXTURES / "engines" / f"{name}.gguf")
    types = {tensor.info.name: tensor.info.type for tensor in model.tensors.values()}
    extracted = extract(model)
    assert len(extracted.rules) < len(types)
    forms = [RecipeFormat.RECIPE]
    for engine, form in ((IK_LLAMA_CPP, RecipeFormat.CUSTOM_Q), (LLAMA_CPP, RecipeFormat.TENSOR_TYPE_FILE)):
        if all(engine in TYPES[number].engines for number in types.values()):
            forms.append(form)
    assert len(forms) > 1
    for form in forms:
        again = parse_any(render_any(extracted, form), "again", form)
        assert {tensor: rule and rule.type_id for tensor, rule in again.assign(types).items()} == types
    report = check(extracted, model)
    assert (report.nbytes, report.bits_per_weight) == (report.model_nbytes, report.model_bits_per_weight)
    assert {finding.severity for finding in report.findings} <= {Severity.INFO}


# --- fallbacks -------------------------------------------------------------------------------------------------------


def test_fallbacks_are_those_of_the_engines() -> None:
    table = json.loads((FIXTURES / "engines" / "ggml-types.json").read_text())
    checked = 0
    for row in table:
        if not row["primary"] or not row["in_files"]:
            continue
        assert rows_fallback(row["name"]) == row["row_fallback"]
        if row["block_size"] == 1:
            continue
        ne0 = row["block_size"] + 32 if row["block_size"] > 32 else 33  # a multiple of what it falls back to
        for key, engine in (("mainline", LLAMA_CPP), ("ik", IK_LLAMA_CPP)):
            expected = row["ne0_fallback"].get(key)
            said = explain_fallback(row["name"], ne0, engine)
            special = {"THROWS": "stops", "NOT CHECKED": "does not check"}.get(expected)
            assert fallback_type(row["name"], ne0, engine) == (None if special else expected)
            assert (special or expected or "no such type") in said
            checked += 1
    assert checked > 120


@pytest.mark.parametrize(
    ("name", "ne0", "engine", "expected"),
    [
        ("Q5_K", 576, LLAMA_CPP, "Q5_1"),
        ("Q5_K", 576, IK_LLAMA_CPP, "Q6_0"),
        ("q4_k", 512, IK_LLAMA_CPP, "Q4_K"),
        ("Q4_K", 40, LLAMA_CPP, "F16"),
        ("Q4_K", 40, IK_LLAMA_CPP, None),
        ("Q8_0", 40, LLAMA_CPP, "F16"),
        ("F32", 1, LLAMA_CPP, "F32"),
        ("IQ4_KS", 512, LLAMA_CPP, None),
        ("nonsense", 512, LLAMA_CPP, None),
    ],
)
def test_fallback_of_a_row(name: str, ne0: int, engine: str, expected: str | None) -> None:
    assert fallback_type(name, ne0, engine) == expected


@pytest.mark.parametrize(
    ("name", "dims", "kept"),
    [
        ("blk.0.attn_norm.weight", (64,), True),
        ("blk.0.attn_k_norm.weight", (64, 4), True),
        ("blk.0.ffn_gate_inp.weight", (64, 8), True),
        ("blk.0.attn_q.bias", (64, 64), True),
        ("blk.0.attn_q.weight", (64, 1, 1), True),
        ("blk.0.ffn_gate_exps.weight", (64, 64, 8), False),
        ("output.weight", (64, 64), False),
    ],
)
def test_what_llama_quantize_leaves_alone(name: str, dims: tuple[int, ...], kept: bool) -> None:
    assert keeps_type(name, dims) is kept


def test_engines_differ_in_what_they_leave_alone() -> None:
    name, dims = "blk.0.altup_proj.weight", (64, 64)
    assert (keeps_type(name, dims, engine=LLAMA_CPP), keeps_type(name, dims, engine=IK_LLAMA_CPP)) == (True, False)
    assert not keeps_type(name, dims)
    assert keeps_type("blk.0.tid.weight", (64, 64), "I32")


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Two layers of a mixture of experts; rows of 512, 96 in attn_q, 3 rows in attn_v."""
    layer = [
        ("attn_norm.weight", (512,)),
        ("attn_q.weight", (96, 8)),
        ("attn_v.weight", (512, 3)),
        ("ffn_gate_inp.weight", (512, 2)),
        ("ffn_gate_exps.weight", (512, 8, 2)),
        ("ffn_up_exps.weight", (512, 8, 2)),
    ]
    tensors = [builders.tensor("token_embd.weight", "F32", (512, 4))]
    tensors += [builders.tensor(f"blk.{n}.{role}", "F32", dims) for n in range(2) for role, dims in layer]
    path = tmp_path / "model.gguf"
    path.write_bytes(builders.gguf(builders.llama_kvs(), tensors))
    return open_model(path)


def findings(report: RecipeReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(f"{finding.severity.name.lower()} {finding.code}", []).append(finding.message)
    return found


def test_a_plain_recipe_has_nothing_but_remarks(model: Model) -> None:
    report = check(parse_recipe(".*=q8_0"), model)
    assert list(findings(report)) == ["info kept-type"]
    kept = 2 * (512 + 1024) * 4
    assert report.nbytes == kept + (512 * 4 + 2 * (96 * 8 + 512 * 3 + 2 * 512 * 16)) // 32 * 34
    assert report.bits_per_weight == round(report.nbytes * 8 / report.elements, 4)
    assert {share.type: share.tensors for share in report.types} == {"Q8_0": 9, "F32": 4}
    assert sum(share.nbytes for share in report.types) == report.nbytes


def test_row_meta_counts(model: Model) -> None:
    report = check(parse_recipe("attn_v=iq4_ks\n.*=f32"), model)
    (share,) = (share for share in report.types if share.type == "IQ4_KS")
    assert share.nbytes == 2 * 3 * (4 + 2 * 136)


def test_tensors_without_a_rule_and_unknown_types_are_errors(model: Model) -> None:
    report = check(parse_recipe("blk\\.0=q8_0\nattn=q4_k_m", lenient=True), model)
    found = findings(report)
    assert found["error unmatched-tensor"] == ["no rule matches 4 of 13 tensors"]
    assert "file type of llama-quantize" in found["error unknown-type"][0]
    assert report.findings[0].tensors[0] == "token_embd.weight"
    unknown = ("token_embd.weight", "blk.1.attn_q.weight", "blk.1.attn_v.weight", "blk.1.ffn_gate_inp.weight")
    assert set(unknown) <= set(report.unpredicted)


def test_dead_and_shadowed_rules_are_told_apart(model: Model) -> None:
    text = "ffn=q8_0\n^blk\\.1\\.ffn_up_exps\\.weight$=q4_K\nnothing=f16\nattn_q=q8_0\nattn=q8_0\n.*=f32"
    report = check(parse_recipe(text), model)
    found = {(finding.code, finding.line) for finding in report.findings if finding.severity is Severity.WARNING}
    assert found == {("shadowed-rule", 2), ("dead-rule", 3)}
    assert "line 1 took" in findings(report)["warning shadowed-rule"][0]
    assert [(use.tensors, use.matches) for use in report.rules] == [(6, 6), (0, 1), (0, 0), (2, 2), (4, 6), (1, 13)]


def test_rows_that_do_not_divide(model: Model) -> None:
    report = check(parse_recipe("attn_q=q5_K\n.*=q8_0"), model)
    (message,) = findings(report)["warning row-fallback"]
    assert "2 tensors with rows of 96" in message
    assert "llama.cpp falls back to Q5_1; ik_llama.cpp falls back to Q6_0" in message
    assert report.engine == LLAMA_CPP
    assert {"Q5_1"} == {share.type for share in report.types} - {"Q8_0", "F32"}
    other = check(parse_recipe("attn_q=q5_K\n.*=iq4_nl\nx=iq4_ks"), model)
    assert other.engine == IK_LLAMA_CPP
    assert "Q6_0" in {share.type for share in other.types}


def test_rows_that_no_engine_handles_are_not_predicted(model: Model) -> None:
    report = check(parse_recipe("attn_q=iq1_bn\n.*=f32"), model)
    assert "ik_llama.cpp stops" in findings(report)["warning row-fallback"][0]
    assert report.unpredicted == ("blk.0.attn_q.weight", "blk.1.attn_q.weight")
    assert report.nbytes == report.model_nbytes


def test_interleaved_types_need_whole_groups_of_rows(model: Model) -> None:
    report = check(parse_recipe("attn_v=q4_k_r4\nattn_q=q8_0_r8\ntoken_embd=q4_k_r4\n.*=q8_0"), model)
    (message,) = findings(report)["warning interleave-fallback"]
    assert "3 tensors cannot be q4_k_r4" in message
    assert "falls back to q4_K" in message
    assert {share.type: share.tensors for share in report.types} == {"Q8_0": 4, "Q4_K": 3, "Q8_0_R8": 2, "F32": 4}


def test_up_and_gate_belong_together(model: Model) -> None:
    text = "blk\\.1\\.ffn_up_exps=q4_K\n.*=q8_0"
    report = check(parse_recipe(text), model)
    (found,) = (each for each in report.head if each.code == "M01")
    assert (found.where, found.engines, found.severity_there) == ("blk.1", (IK_LLAMA_CPP,), Severity.WARNING)
    assert "no fused MoE" in found.message
    (found,) = (each for each in check(parse_recipe(text), model, engine=IK_LLAMA_CPP).head if each.code == "M01")
    assert (found.severity, found.severity_there) == (Severity.WARNING, None)
    assert not check(parse_recipe(".*=q8_0"), model).head


def test_what_tensors_of_unknown_type_have_a_part_in_is_not_judged(model: Model) -> None:
    assert not check(parse_recipe("ffn_up=@A\n.*=q8_0"), model).head


def test_the_head_is_judged_against_that_of_the_model(tmp_path: Path) -> None:
    """What the model has already is not the recipe's doing: this one has F16 norms and lacks its keys."""
    tensors = [
        builders.tensor("token_embd.weight", "F16", (512, 4)),
        builders.tensor("output_norm.weight", "F16", (9,)),
    ]
    (tmp_path / "x.gguf").write_bytes(builders.gguf(builders.llama_kvs(), tensors))
    assert not check(parse_recipe(".*=f16"), tmp_path / "x.gguf").head


def test_a_mix_that_no_engine_loads(model: Model) -> None:
    report = check(parse_recipe("attn_v=tq1_0\n.*=iq4_ks"), model)
    found = {(each.code, each.severity): each.message for each in report.head}
    assert "IQ4_KS (id 144) is not a type of llama.cpp" in found["T01", Severity.ERROR]
    assert "TQ1_0 (id 34) is not a type of ik_llama.cpp" in found["T02", Severity.ERROR]
    assert report.reaches(Severity.ERROR)
    for_ik = check(parse_recipe("attn_q=q8_0\n.*=iq4_ks"), model)
    assert {each.severity_there for each in for_ik.head if each.code == "T01"} == {Severity.ERROR}
    assert not for_ik.reaches(Severity.ERROR)


@pytest.mark.parametrize("type_id", sorted(TYPES))
def test_no_type_confuses_the_prediction(model: Model, type_id: int) -> None:
    report = check(parse_recipe(f".*={spelling(type_id)}"), model)
    predicted = {share.type for share in report.types}
    assert predicted <= {"F32", "?", *(type_name(number) for number in TYPES)}
    assert sum(share.elements for share in report.types) == report.elements
    at_run_time = {type_name(number) for number, traits in TYPES.items() if not traits.in_files}
    assert any(each.code == "T03" for each in report.head) is bool(predicted & at_run_time)


# --- with a preset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-gqa", "tied", "mixtral", "qwen2moe", "rows-of-96"])
@pytest.mark.parametrize("engine", [LLAMA_CPP, IK_LLAMA_CPP])
@pytest.mark.parametrize("rules", ["", "ffn_down=q3_K\nattn_(k|norm)=q6_K"], ids=["alone", "rules"])
def test_a_preset_is_predicted_as_quantize_decides_it(tmp_path: Path, name: str, rules: str, engine: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(preset_heads.heads()[name])
    opened = open_model(path)
    recipe = parse_recipe(rules) if rules else Recipe(rules=())
    for preset in presets_of(engine).values():
        for pure, imatrix in ((False, bool(rules)), (True, False)) if name == "tied" else ((False, bool(rules)),):
            mix, notes = PresetMix(preset=preset, imatrix=imatrix, pure=pure), Notes()
            made = target_types(opened, recipe, EngineRules(engine=engine, mix=mix), notes)
            refused = {tensor for reason in notes.problems.values() for tensor in reason}
            report = check(recipe, opened, mix, engine)
            assert set(report.unpredicted) == refused & set(made)
            counts = Counter(type_name(kind) for tensor, kind in made.items() if tensor not in refused)
            assert {share.type: share.tensors for share in report.types if share.type != "?"} == counts, preset.name
            assert "unmatched-tensor" not in {finding.code for finding in report.findings}


def test_a_type_that_the_presets_engine_lacks_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(preset_heads.heads()["llama"])
    mix = PresetMix(preset=find_preset("Q4_K_M", LLAMA_CPP), imatrix=False)
    report = check(parse_recipe("attn_q=iq4_ks"), tmp_path / "x.gguf", mix)
    (found,) = (finding for finding in report.head if finding.code == "T01")
    assert (found.severity, found.engines) == (Severity.ERROR, (LLAMA_CPP,))


@pytest.mark.parametrize("engine", [LLAMA_CPP, IK_LLAMA_CPP])
def test_the_output_of_an_incomplete_set_is_not_taken_to_be_tied(tmp_path: Path, engine: str) -> None:
    """The shard with output.weight is missing: the embeddings get no type that is meant for the output."""
    mix = PresetMix(preset=find_preset("Q4_K_M", engine), imatrix=False)
    heads = preset_heads.heads()
    (tmp_path / "x.gguf").write_bytes(heads["llama-gqa"])
    whole = open_model(tmp_path / "x.gguf")
    names = [name for name in whole.tensors if name != "output.weight"]
    part = replace(whole, tensors={name: whole.tensors[name] for name in names}, missing=("x-00002-of-00002.gguf",))
    of_whole, of_part = (preset_types(model, mix, (), engine) for model in (whole, part))
    assert {name: of_whole.get(name) for name in names} == {name: of_part.get(name) for name in names}
    tied = preset_types(replace(part, missing=()), mix, (), engine)
    assert of_part["token_embd.weight"] != tied["token_embd.weight"]


def test_scales_that_a_mix_multiplies_in_do_not_count(tmp_path: Path) -> None:
    weight = builders.Tensor("blk.0.ffn_up.weight", (512, 4), 40, bytes(512 * 4 // 64 * 36))  # NVFP4
    scale = builders.tensor("blk.0.ffn_up.scale", "F32", (1,))
    (tmp_path / "x.gguf").write_bytes(builders.gguf(builders.llama_kvs(), [weight, scale]))
    report = check(parse_recipe(".*=q8_0"), tmp_path / "x.gguf")
    assert (report.tensors, report.nbytes) == (1, 512 * 4 // 32 * 34)
    assert check(parse_recipe("weight=nvfp4\n.*=q8_0"), tmp_path / "x.gguf").tensors == 2
