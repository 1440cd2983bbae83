"""Which tensors are scales of which weights, and what is multiplied by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguftool.model.opening import open_model
from gguftool.model.scales import factor_of, owner_of, scale_names, scales_of, weight_name
from tests.support.scaled_models import SCALES, UP, f32, floats, scaled, write


def test_names_of_scales_and_weights_belong_together() -> None:
    assert weight_name("blk.3.ffn_up.scale") == weight_name("blk.3.ffn_up.input_scale") == "blk.3.ffn_up.weight"
    assert scale_names("output.weight") == ("output.scale", "output.input_scale")
    assert weight_name("layer_output_scale.weight") is None
    assert scale_names("blk.0.attn_q.bias") == ()


def test_scales_are_found_beside_their_weight(tmp_path: Path) -> None:
    tensors = open_model(scaled(tmp_path / "m.gguf")).tensors
    assert list(scales_of(tensors, UP)) == SCALES[:2]
    assert [owner_of(tensors, name) for name in (*SCALES[:2], UP, "token_embd.weight")] == [UP, UP, None, None]


EXPERTS = "blk.0.ffn_up_exps.weight"


@pytest.mark.parametrize(("length", "is_scale"), [(1, True), (3, True), (2, False), (32, False)])
def test_a_scale_has_one_number_or_one_for_each_expert(tmp_path: Path, length: int, is_scale: bool) -> None:
    scale = f32("blk.0.ffn_up_exps.scale", (length,), [2.0] * length)
    tensors = open_model(write(tmp_path / "m.gguf", floats(EXPERTS, (32, 2, 3)), scale)).tensors
    assert (owner_of(tensors, "blk.0.ffn_up_exps.scale") == EXPERTS) is is_scale


def test_a_vector_beside_a_router_is_no_scale(tmp_path: Path) -> None:
    router = [floats("blk.0.ffn_gate_inp.weight", (32, 3)), f32("blk.0.ffn_gate_inp.scale", (32,), [2.0] * 32)]
    tensors = open_model(write(tmp_path / "m.gguf", *router)).tensors
    assert scales_of(tensors, "blk.0.ffn_gate_inp.weight") == {}
    assert factor_of(tensors, "blk.0.ffn_gate_inp.weight") is None


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 150])
def test_each_expert_is_multiplied_by_its_own_number(tmp_path: Path, start: int) -> None:
    import numpy as np

    scale = f32("blk.0.ffn_up_exps.scale", (3,), [2.0, 3.0, 5.0])
    tensors = open_model(write(tmp_path / "m.gguf", floats(EXPERTS, (32, 2, 3)), scale)).tensors
    factor = factor_of(tensors, EXPERTS)
    assert factor is not None
    expected = np.repeat(np.float32([2, 3, 5]), 64)
    for count in (1, 40, 192 - start):
        given = np.ones(min(count, 192 - start), dtype=np.float32)
        assert factor.times(given, start).tolist() == expected[start : start + len(given)].tolist()
        assert given.tolist() == [1.0] * len(given)
