"""Scales go with their weights through merge, swap, export, quantize and diff."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gguftool.analysis.diff.data import DataOptions, DataVerdict, diff_data
from gguftool.errors import PlanError
from gguftool.format.recipe import parse_recipe
from gguftool.model.model import Model
from gguftool.model.opening import open_model
from gguftool.surgery.dequantized_source import FloatType
from gguftool.surgery.export import plan_export
from gguftool.surgery.quantize.options import QuantizeOptions
from gguftool.surgery.quantize.plan import plan_quantize
from gguftool.surgery.split import plan_split
from gguftool.surgery.swap import plan_swap
from tests.support import scaled_models
from tests.support.mix_models import merge_plan, merged, write
from tests.support.scaled_models import (
    GATE,
    NVFP4,
    SCALES,
    UP,
    floats,
    nvfp4,
    plain,
    scaled,
    with_scales,
)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [f"nv={scaled(tmp_path / 'nv.gguf')}", f"q={plain(tmp_path / 'q.gguf')}"]


def scales_in(model: Model) -> list[str]:
    return [name for name in model.tensors if name.endswith("scale")]


def same(model: Model, path: str, *names: str) -> bool:
    other = open_model(path.partition("=")[2] or path)
    return all(model.tensors[name].raw() == other.tensors[name].raw() for name in names)


# --- merge -----------------------------------------------------------------------------------------------------------


def test_a_weight_taken_from_elsewhere_leaves_its_scales(tmp_path: Path, pair: list[str]) -> None:
    recipe = "ffn_up\\.weight=q8_0\n.*=@nv"
    plan = merge_plan(pair, tmp_path / "o.gguf", recipe)
    model = merged(pair, tmp_path / "o.gguf", recipe)
    assert scales_in(model) == SCALES[2:]
    assert same(model, pair[0], GATE, *SCALES[2:])
    assert same(model, pair[1], UP)
    assert "scales go with their weights: 2 left out (blk.0.ffn_up.scale, blk.0.ffn_up.input_scale)" in plan.remarks


def test_a_weight_brings_scales_that_the_tensor_list_lacks(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair[::-1], tmp_path / "o.gguf", "ffn_up\\.weight=@nv\n.*=@q")
    assert list(model.tensors) == ["token_embd.weight", scaled_models.NORM, UP, *SCALES[:2], GATE]
    assert same(model, pair[0], UP, *SCALES[:2])


def test_scales_come_from_the_input_of_their_weight_if_several_have_them(tmp_path: Path, pair: list[str]) -> None:
    other = scaled_models.write(tmp_path / "other.gguf", *with_scales(nvfp4(UP), 9.0), *with_scales(nvfp4(GATE), 11.0))
    recipe = "ffn_up\\.weight=@other\n.*=@nv"
    model = merged([pair[0], f"other={other}"], tmp_path / "o.gguf", recipe)
    assert model.tensors["blk.0.ffn_up.scale"].numpy().tolist() == [9.0]
    assert model.tensors["blk.0.ffn_gate.scale"].numpy().tolist() == [7.0]


def test_kv_from_a_model_without_scales_gets_those_of_the_weights(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair[:1], tmp_path / "o.gguf", ".*=@nv", kv_from=tmp_path / "q.gguf")
    assert sorted(scales_in(model)) == sorted(SCALES)


@pytest.mark.parametrize("rule", ["\\.scale=@q", "blk\\.0\\.ffn_up\\.scale=f16"])
def test_a_rule_that_tears_a_scale_from_its_weight_is_an_error(tmp_path: Path, pair: list[str], rule: str) -> None:
    with pytest.raises(PlanError, match="delete that line; scales need no rule"):
        merge_plan(pair, tmp_path / "o.gguf", f"{rule}\n.*=@nv")


def test_a_rule_for_scales_that_agrees_with_the_weight_is_fine(tmp_path: Path, pair: list[str]) -> None:
    model = merged(pair, tmp_path / "o.gguf", "\\.scale=f32\n.*=@nv")
    assert sorted(scales_in(model)) == sorted(SCALES)


def test_a_split_set_with_scales_merges_back_byte_for_byte(tmp_path: Path) -> None:
    source = scaled(tmp_path / "nv.gguf")
    (tmp_path / "set").mkdir()
    write(plan_split(open_model(source), tmp_path / "set" / "s"))
    merged([tmp_path / "set"], tmp_path / "o.gguf")
    assert (tmp_path / "o.gguf").read_bytes() == Path(source).read_bytes()


# --- swap ------------------------------------------------------------------------------------------------------------


def swapped(model: str, donor: str, pattern: str, output: Path | None) -> Model:
    plan = plan_swap(model, donor, [pattern], output)
    write(plan)
    return open_model(plan.outputs[0].path)


def test_a_swapped_weight_brings_its_scales(tmp_path: Path) -> None:
    q, nv = plain(tmp_path / "q.gguf"), scaled(tmp_path / "nv.gguf")
    model = swapped(q, nv, GATE, tmp_path / "o.gguf")
    assert scales_in(model) == SCALES[2:]
    assert same(model, nv, GATE, *SCALES[2:])


def test_a_swapped_weight_loses_scales_that_its_donor_lacks(tmp_path: Path) -> None:
    q, nv = plain(tmp_path / "q.gguf"), scaled(tmp_path / "nv.gguf")
    plan = plan_swap(nv, q, [GATE], tmp_path / "o.gguf")
    write(plan)
    assert scales_in(open_model(tmp_path / "o.gguf")) == SCALES[:2]
    assert "scales go with their weights: 2 left out (blk.0.ffn_gate.input_scale, blk.0.ffn_gate.scale)" in plan.remarks


def test_a_set_counts_the_scales_that_come(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(plan_split(open_model(plain(tmp_path / "q.gguf")), tmp_path / "set" / "s"))
    model = swapped(str(tmp_path / "set"), scaled(tmp_path / "nv.gguf"), GATE, tmp_path / "o")
    assert model.is_complete
    assert model.expected_tensors == len(model.tensors) == 6
    assert scales_in(model) == SCALES[2:]


def test_in_place_changes_a_weight_with_its_scale_and_refuses_to_add_one(tmp_path: Path) -> None:
    nv = scaled(tmp_path / "nv.gguf")
    other = scaled_models.write(tmp_path / "other.gguf", *with_scales(nvfp4(UP), 9.0), *with_scales(nvfp4(GATE), 11.0))
    model = swapped(nv, other, UP, None)
    assert model.tensors["blk.0.ffn_up.scale"].numpy().tolist() == [9.0]
    assert model.tensors["blk.0.ffn_gate.scale"].numpy().tolist() == [7.0]
    with pytest.raises(PlanError, match=r"not in place: the scales .* come with their weights; -o OUT writes"):
        plan_swap(plain(tmp_path / "q.gguf"), other, [UP], None)
    with pytest.raises(PlanError, match=r"not in place: the scales .* go with their weights; -o OUT writes"):
        plan_swap(nv, plain(tmp_path / "q.gguf"), [UP], None)


def test_a_scale_alone_is_not_swapped(tmp_path: Path) -> None:
    nv, other = scaled(tmp_path / "nv.gguf"), scaled(tmp_path / "other.gguf")
    with pytest.raises(PlanError, match=r"is a scale of 'blk\.0\.ffn_up\.weight' .*--tensor '.*' swaps both"):
        plan_swap(nv, other, ["blk.0.ffn_up.scale"], tmp_path / "o.gguf")


# --- export ----------------------------------------------------------------------------------------------------------


def safetensors(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    head.pop("__metadata__", None)
    return {name: data[8 + length :][slice(*entry["data_offsets"])] for name, entry in head.items()}


def test_floats_are_multiplied_by_the_scale_and_raw_bytes_come_with_it(tmp_path: Path) -> None:
    nv, out = scaled(tmp_path / "nv.gguf"), tmp_path / "o.safetensors"
    write(plan_export(nv, ["ffn_gate"], out, FloatType.F32))
    found = safetensors(out)
    assert list(found) == [GATE]
    expected = open_model(nv).tensors[GATE].numpy() * 7
    assert found[GATE] == expected.astype("<f4").tobytes()
    write(plan_export(nv, [GATE], tmp_path / "raw.safetensors"))
    model = swapped(nv, str(tmp_path / "raw.safetensors"), GATE, tmp_path / "o.gguf")
    assert Path(tmp_path / "o.gguf").read_bytes() == Path(nv).read_bytes()
    assert same(model, nv, GATE)


def test_floats_of_experts_are_multiplied_by_their_own_scales_at_any_offset(tmp_path: Path) -> None:
    import numpy

    name = "blk.0.ffn_up_exps.weight"
    path = scaled_models.write(tmp_path / "m.gguf", *with_scales(floats(name, (32, 2, 3)), 2.0, 3.0, 5.0))
    (copy,) = plan_export(path, [name], tmp_path / "o.safetensors", FloatType.F32).outputs[0].copies
    expected = (open_model(path).tensors[name].numpy() * numpy.float32([2, 3, 5]).reshape(3, 1, 1)).tobytes()
    source = copy.extent.source
    for offset, length in ((0, len(expected)), (250, 14), (300, 400)):
        assert source.read_at(offset, length) == expected[offset : offset + length]
        assert b"".join(source.stream(offset, length)) == expected[offset : offset + length]


# --- quantize --------------------------------------------------------------------------------------------------------


def quantized(source: str, rules: str, output: Path, **options: object) -> Model:
    chosen = QuantizeOptions(requantize=True, **options)  # type: ignore[arg-type]
    write(plan_quantize(source, parse_recipe(rules), output, chosen))
    return open_model(output)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_another_type_gets_the_scale_multiplied_in(tmp_path: Path, kind: str) -> None:
    nv = scaled(tmp_path / "nv.gguf")
    model = quantized(nv, f"ffn_gate={kind}", tmp_path / "o.gguf")
    assert scales_in(model) == SCALES[:2]
    assert same(model, nv, UP, *SCALES[:2])
    expected = open_model(nv).tensors[GATE].numpy() * 7
    error = abs(model.tensors[GATE].numpy() - expected).max()
    assert error <= (0 if kind == "f32" else abs(expected).max() / 127)


def test_a_stray_scale_beside_another_type_is_multiplied_in_too(tmp_path: Path) -> None:
    path = scaled_models.write(tmp_path / "m.gguf", *with_scales(floats(UP), 4.0))
    model = quantized(path, f"{UP}=f16", tmp_path / "o.gguf")
    assert scales_in(model) == []
    expected = open_model(path).tensors[UP].numpy() * 4
    assert (model.tensors[UP].numpy() == expected).all()


def test_bitnet_keeps_its_scales(tmp_path: Path) -> None:
    path = scaled_models.write(tmp_path / "m.gguf", *with_scales(floats(UP), 4.0), arch="bitnet")
    model = quantized(path, f"{UP}=f16", tmp_path / "o.gguf")
    assert scales_in(model) == SCALES[:2]
    assert (model.tensors[UP].numpy() == open_model(path).tensors[UP].numpy()).all()


def test_a_reused_weight_brings_or_loses_scales_as_its_model_has_them(tmp_path: Path) -> None:
    source = scaled_models.write(tmp_path / "f.gguf", floats(UP), floats(GATE))
    model = quantized(source, "ffn=nvfp4", tmp_path / "o.gguf", reuse=(scaled(tmp_path / "nv.gguf"),))
    assert scales_in(model) == SCALES
    assert {model.tensors[name].info.type for name in (UP, GATE)} == {NVFP4}
    back = quantized(
        scaled(tmp_path / "nv2.gguf"), "ffn=q8_0", tmp_path / "b.gguf", reuse=(plain(tmp_path / "q.gguf"),)
    )
    assert scales_in(back) == []
    assert same(back, str(tmp_path / "q.gguf"), UP, GATE)


def test_a_bias_that_is_scaled_too_is_refused(tmp_path: Path) -> None:
    bias = scaled_models.f32("blk.0.ffn_up.bias", (scaled_models.ROWS,), [1.0] * scaled_models.ROWS)
    path = scaled_models.write(tmp_path / "m.gguf", *with_scales(floats(UP), 4.0), bias)
    with pytest.raises(PlanError, match="multiplies its bias by the scale, too"):
        quantized(path, f"{UP}=f16", tmp_path / "o.gguf")


# --- diff ------------------------------------------------------------------------------------------------------------


def test_numbers_are_compared_with_their_scales(tmp_path: Path) -> None:
    nv = scaled(tmp_path / "nv.gguf")
    folded = quantized(nv, "ffn=f32", tmp_path / "f.gguf")
    report = diff_data(open_model(nv), folded, lambda name: name == UP, DataOptions())
    assert report.whole.errors is not None
    assert report.whole.errors.max_abs_error == 0


def test_equal_bytes_under_another_scale_differ(tmp_path: Path) -> None:
    nv = open_model(scaled(tmp_path / "nv.gguf"))
    other = scaled_models.write(tmp_path / "o.gguf", *with_scales(nvfp4(UP), 6.0), *with_scales(nvfp4(GATE), 7.0))
    report = diff_data(nv, open_model(other), lambda name: name in (UP, GATE), DataOptions())
    verdicts = {one.name: one.verdict for one in report.tensors}
    assert verdicts == {UP: DataVerdict.DIFFERENT, GATE: DataVerdict.SAME}
    assert report.tensors[0].errors is not None
