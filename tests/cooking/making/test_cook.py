"""cook merges what is there and quantizes what is not; the bytes are those of merge and of quantize."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.cooking.making.cook import RECIPE_KEY, Cooked, plan_cook
from gguftool.cooking.making.gather import open_cook_inputs
from gguftool.errors import PlanError, SourceError
from gguftool.format.recipe import Recipe, parse_recipe
from gguftool.model.layout import OutputOptions
from gguftool.model.opening import open_model
from gguftool.surgery.merge import MergeOptions, plan_merge
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import plan_quantize
from tests.support import builders
from tests.support.mix_models import NORMS, merged, quant, quant_tensors, write
from tests.support.suite import make_suite

MIX = "norm=f32\nattn_q=q4_K\nffn=bf16\n.*=q8_0"
NO_NORMS = MIX.removeprefix("norm=f32\n").replace(".*", "(embd|attn|^output\\.weight)")


def _cook(recipe: str | Recipe, specs: list[str], output: Path, **options: object) -> Cooked:
    parsed = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    inputs, _ = open_cook_inputs(specs, parsed)
    return plan_cook(parsed, inputs, output, MergeOptions(**options), QuantizeOptions())  # type: ignore[arg-type]


def _pure_floats(path: Path) -> str:
    """A model of numbers between 0.007 and 0.03, so that it can be quantized."""
    tensors = [
        builders.Tensor(one.name, one.dims, one.type, _small(one.data))
        if one.type == builders.TYPES["BF16"][0]
        else one
        for one in quant_tensors("BF16")
    ]
    path.write_bytes(builders.gguf(builders.llama_kvs(), tensors))
    return str(path)


def _small(data: bytes) -> bytes:
    return bytes(0x3C if at % 2 else byte for at, byte in enumerate(data))


def test_a_suite_is_merged_as_its_whole_sets_would_be(tmp_path: Path) -> None:
    template = make_suite(tmp_path)
    whole = [template.replace("{QTYPE}", kind) for kind in ("Q4_K", "Q8_0", "BF16")]
    expected = merged(whole, tmp_path / "expected.gguf", MIX)
    cooked = _cook(MIX, [template], tmp_path / "out.gguf")
    write(cooked.plan)
    assert cooked.decision is None
    made = open_model(tmp_path / "out.gguf")
    assert list(made.tensors) == list(expected.tensors)
    for name, tensor in made.tensors.items():
        assert (tensor.info.type, tensor.raw()) == (expected.tensors[name].info.type, expected.tensors[name].raw())


def test_names_are_opened_and_what_was_published_is_compared(tmp_path: Path) -> None:
    template, recipe = make_suite(tmp_path), parse_recipe(MIX)
    cooked = plan_cook(recipe, template, tmp_path / "out.gguf")
    assert cooked.plan.fingerprint == _cook(MIX, [template], tmp_path / "out.gguf").plan.fingerprint
    assert any("signatures" in remark for remark in cooked.plan.remarks)
    path = Path(template.replace("{QTYPE}", "Q8_0")) / "tensors.map"
    path.write_text(path.read_text().replace("shape=(256", "shape=(512"))
    with pytest.raises(SourceError, match=r"the map says \(512"):
        plan_cook(recipe, template, tmp_path / "out.gguf")


def test_packed_shards_give_the_same_bytes(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    write(_cook(MIX, [make_suite(plain)], tmp_path / "a.gguf").plan)
    write(_cook(MIX, [make_suite(packed, packed=("Q4_K", "Q8_0"))], tmp_path / "b.gguf").plan)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_where_all_is_there_it_is_a_merge(tmp_path: Path) -> None:
    specs = [quant(tmp_path / f"{kind}.gguf", kind) for kind in ("Q4_K", "Q8_0", "BF16")]
    cooked = _cook(MIX, specs, tmp_path / "out.gguf")
    expected = plan_merge(specs, tmp_path / "out.gguf", MergeOptions(recipe=parse_recipe(MIX)))
    assert cooked.decision is None
    assert cooked.plan.fingerprint == expected.fingerprint


def test_what_no_rule_matches_is_taken_if_all_agree(tmp_path: Path) -> None:
    specs = [quant(tmp_path / f"{kind}.gguf", kind) for kind in ("Q4_K", "Q8_0", "BF16")]
    write(_cook(NO_NORMS, specs, tmp_path / "out.gguf").plan)
    made = open_model(tmp_path / "out.gguf")
    assert all(made.tensors[name].type_name == "F32" for name in NORMS)


def test_what_is_not_there_is_quantized_and_the_rest_is_reused(tmp_path: Path) -> None:
    source, ready = _pure_floats(tmp_path / "BF16.gguf"), quant(tmp_path / "Q4_K.gguf", "Q4_K")
    cooked = _cook(MIX, [ready, source], tmp_path / "out.gguf")
    expected = plan_quantize(
        open_model(source), parse_recipe(MIX), tmp_path / "out.gguf", QuantizeOptions(reuse=(ready,))
    )
    assert cooked.decision is not None
    made = {step.tensor.name: step.origin.value for step in cooked.decision.steps}
    assert made["blk.0.attn_q.weight"] == "reused"
    assert made["output.weight"] == "quantized"
    assert made["blk.0.ffn_down.weight"] == "copied"
    assert [len(one.head) for one in cooked.plan.outputs] == [len(one.head) for one in expected.outputs]
    write(cooked.plan)
    assert open_model(tmp_path / "out.gguf").tensors["output.weight"].type_name == "Q8_0"


def test_without_plain_floats_the_lack_is_told_as_merge_tells_it(tmp_path: Path) -> None:
    specs = [quant(tmp_path / f"{kind}.gguf", kind) for kind in ("Q4_K", "Q8_0")]
    with pytest.raises(
        PlanError, match=r"no input has it as bf16; the inputs have q4_K, q8_0: blk\.0\.ffn_down\.weight"
    ):
        _cook(MIX, specs, tmp_path / "out.gguf")


def test_the_donor_of_metadata_is_for_merges(tmp_path: Path) -> None:
    source = open_model(_pure_floats(tmp_path / "BF16.gguf"))
    with pytest.raises(PlanError, match="leave out --kv-from"):
        _cook(MIX, [source.name], tmp_path / "out.gguf", kv_from=source)


@pytest.mark.parametrize("kinds", [("BF16",), ("Q4_K", "Q8_0", "BF16")])
def test_the_recipe_can_be_stored_and_goes_with_the_next_merge(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    specs = [_pure_floats(tmp_path / "floats.gguf")] if len(kinds) == 1 else []
    specs += [quant(tmp_path / f"{kind}.gguf", kind) for kind in kinds if len(kinds) > 1]
    parsed = parse_recipe(MIX)
    options = OutputOptions(texts=((RECIPE_KEY, MIX),))
    inputs, _ = open_cook_inputs(specs, parsed)
    quantize = QuantizeOptions(output=options)
    write(plan_cook(parsed, inputs, tmp_path / "out.gguf", MergeOptions(output=options), quantize).plan)
    model = open_model(tmp_path / "out.gguf")
    assert model[RECIPE_KEY] == MIX
    write(_cook(MIX, [model.name], tmp_path / "again.gguf", provenance=True).plan)
    assert RECIPE_KEY not in open_model(tmp_path / "again.gguf")
